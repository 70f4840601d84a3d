"""Tunnel mode in whole gateways, the MTU of every way to wrap, and NAT keepalives at their interval."""

from __future__ import annotations

import pytest

from dsvpn.addresses import Endpoint, Path
from dsvpn.config.model import AuthConfig, IpsecConfig, TunnelConfig
from dsvpn.gateway.keepalives import Keepalives
from dsvpn.gateway.peers import Peer
from dsvpn.policy import inner_mtu, tunnel_mtu
from tests.gateway.model import address
from tests.gateway.network import Network


def test_a_shortcut_forms_in_tunnel_mode() -> None:
    network = Network(seed=5, nated=(), options={"profile": {"mode": "tunnel"}})
    network.start()
    network.stream("s1", "s2", 5.0)
    network.simulation.run_for(10.0)
    assert network.path("s1", "s2") == ("s1", "s2")
    for name in ("hub", "s1", "s2"):
        adjacencies = network[name].adjacencies.values()
        assert {adjacency.encapsulation for adjacency in adjacencies} == {"esp-tunnel"}
        assert {(adjacency.path.local.port, adjacency.path.remote.port) for adjacency in adjacencies} == {(0, 0)}
        # 1500 - 20 IP - 16 ESP and IV - 16 ICV = 1448; - 2 trailer - 20 IP - 8 GRE
        assert {adjacency.mtu for adjacency in adjacencies} == {1418}


def test_tunnel_mode_tells_operators_why_a_spoke_behind_nat_is_refused() -> None:
    network = Network(seed=6, nated=(1,), options={"profile": {"mode": "tunnel"}})
    for site in network.sites.values():
        site.start()
    network.simulation.run_until(lambda: network.registered(network["s2"]), 60.0, "the public spoke to register")
    network.simulation.run_for(20.0)
    assert not network.registered(network["s1"])
    status = network["s1"].gateway.status(network.simulation.now)
    (peer,) = status["peers"]["peers"]
    assert "tunnel mode cannot pass NAT" in peer["last_error"]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("suite", ["aes128gcm16", "aes256-sha256", "aes256-sha512", "aes128ctr-sha256"])
def test_no_packet_in_tunnel_mode_is_larger_than_the_underlay(version: int, suite: str) -> None:
    ip = 20 if version == 4 else 40
    cbc = "ctr" not in suite and "gcm" not in suite
    block, iv, icv = (16, 16, int(suite[-3:]) // 16) if cbc else (4, 8, 16)
    for underlay in range(1280, 1360):
        plaintext = ip + 8 + inner_mtu(underlay, version, "esp-tunnel", 42, suite) + 2
        plaintext += -plaintext % block
        assert underlay - block < ip + 8 + iv + plaintext + icv <= underlay


def test_the_device_of_tunnel_mode_leaves_room_for_the_inner_header() -> None:
    tunnel = TunnelConfig(address=("10.0.0.1/24",), source="eth0", key=42)  # type: ignore[arg-type]
    profile = IpsecConfig(mode="tunnel", auth=AuthConfig(psk="x"))
    # Without UDP there are 1448 octets of plaintext, of which whole blocks of 16 are 1440.
    assert tunnel_mtu(tunnel, 1500, 4, profile) == 1440 - 2 - 20 - 8
    assert tunnel_mtu(tunnel, 1500, 6, profile) == 1424 - 2 - 40 - 8
    assert tunnel_mtu(tunnel, 1500, 4, profile) <= inner_mtu(1500, 4, "esp-tunnel", 42)


def nated(profile: str, last: int) -> Peer:
    path = Path(Endpoint(address("10.1.0.7"), 4500), Endpoint(address(f"192.0.2.{last}"), 4500))
    return Peer(profile, path.remote.address, {}, path=path, current=1, local_nat=True)


def test_keepalives_go_at_the_interval_of_each_profile() -> None:
    keepalives = Keepalives({"fast": 5.0, "slow": 20.0, "never": 0.0})
    peers = [nated("fast", 1), nated("slow", 2), nated("never", 3), nated("fast", 4)]
    peers.append(Peer("fast", address("192.0.2.5"), {}, path=peers[0].path, current=1))
    for peer in peers:
        if peer.local_nat and peer.profile is not None:
            keepalives.start(peer.profile, 100.0)
    sent: dict[float, list[int]] = {}
    for _ in range(8):
        now = min(keepalives.timers())
        sent[now] = sorted(int(path.remote.address) % 256 for path in keepalives.paths(peers, now))
    fast = {100.0 + 5.0 * turn: [1, 4] for turn in range(1, 9)}
    assert sent == fast | {120.0: [1, 2, 4], 140.0: [1, 2, 4]}
    assert not keepalives.paths(peers, now)
    # Nobody is left: no timer either, until somebody comes.
    for peer in peers:
        peer.current = None
    assert not keepalives.paths(peers, now + 100.0)
    assert not list(keepalives.timers())
    peers[0].current = 1
    keepalives.start("fast", 500.0)
    assert list(keepalives.timers()) == [505.0]


def test_the_interval_is_the_profiles() -> None:
    network = Network(seed=7, options={"profile": {"keepalive": "7s", "dpd": "0s"}})
    network.start()
    spoke = network["s1"].gateway
    due = [time for time in spoke.peering.timers() if time > network.simulation.now]
    assert min(due) - network.simulation.now <= 7.0
    start = network.simulation.now
    # The model sends them nowhere, but asks for them when they are due; here, a clock of our own asks.
    counted = [len(spoke.keepalives_to_send(start + 7.0 * turn)) for turn in range(1, 5)]
    assert counted == [1] * 4
