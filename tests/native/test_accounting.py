"""Every packet that entered and did not leave has a counter with the reason in its name: sums over a hostile mix."""

from __future__ import annotations

import random
import socket
import struct
from pathlib import Path

import pytest

from tests.native.flows import inside
from tests.native.network import Pair, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.netns,
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun: load the kernel module 'tun'"),
]

DRIVERS = pytest.mark.parametrize("workers", [1, 8, 0], ids=["workers", "four-pairs", "drain"])
MTU = 1418
SEED = 1303
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_IP_MTU_DISCOVER = 10
_IP_PMTUDISC_DONT, _IP_PMTUDISC_PROBE = 0, 3

#: Reasons before anything is sealed: each counts packets that were read from a TUN.
BEFORE_SEALING = (
    "drop_no_tunnel",
    "drop_no_route",
    "drop_no_adjacency",
    "drop_no_sa",
    "drop_no_multicast",
    "drop_sequence_exhausted",
    "drop_too_big",
    "drop_malformed_inner",
    "drop_malformed_virtio",
)
#: Reasons between sealing and the underlay: each counts datagrams.
SENDING = ("drop_send_refused", "drop_send_busy", "drop_send_too_big")
#: What becomes of a received datagram that is no packet for a TUN.
RECEIVED = (
    "keepalives_received",
    "dummies_received",
    "punt_ike",
    "punt_nhrp",
    "drop_malformed_datagram",
    "drop_unknown_spi",
    "drop_replayed",
    "drop_unauthentic",
    "drop_malformed_esp",
    "drop_wrong_next_header",
    "drop_tunnel_header",
    "drop_malformed_gre",
    "drop_wrong_key",
    "drop_unknown_peer",
    "drop_unprotected",
    "drop_punt_overflow",
    "drop_no_adjacency",
    "drop_malformed_inner",
    "drop_wrong_source",
)


def total(counters: dict[str, int], names: tuple[str, ...]) -> int:
    return sum(counters[name] for name in names)


def device(network: Pair, side: int, name: str) -> dict[str, int]:
    """The kernel's counters of a device."""
    for line in network.execute(side, "cat", "/proc/net/dev").splitlines():
        found, _, fields = line.partition(":")
        if found.strip() == name:
            values = [int(field) for field in fields.split()]
            return {"rx": values[1], "rx_dropped": values[3], "tx": values[9], "tx_dropped": values[11]}
    raise AssertionError(f"no device {name}")


def sockets(network: Pair, side: int, *, count: int = 1) -> list[socket.socket]:
    """UDP sockets in a namespace with room for whatever a test sends at once, without DF."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 64 << 20)
        return made

    return [inside(network.names[side], make) for _ in range(count)]


def raw(network: Pair, protocol: int) -> socket.socket:
    """A socket in side 0's namespace that sends packets of an IP protocol."""
    return inside(network.names[0], lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol))


def settled(network: Pair) -> None:
    """Nothing is on its way any more: the counters of both sides stay as they are."""
    before: list[dict[str, int]] = []

    def at_rest() -> bool:
        nonlocal before
        now = [network.counters(side) for side in (0, 1)] + [device(network, side, "tunnel0") for side in (0, 1)]
        same, before = now == before, now
        return same

    wait_for("counters come to rest", at_rest)


@DRIVERS
def test_every_packet_from_the_tun_is_accounted_for(network: Pair, workers: int) -> None:
    network.forward(workers=workers, mtu=MTU)
    node = network.nodes[0]
    # Larger than the adjacency's MTU, so that packets are cut or refused there.
    network.ip(0, "link", "set", "tunnel0", "mtu", "1500")
    for prefix in ("10.10.0.0/16", "10.11.0.0/16", "10.12.0.0/16", "10.13.0.0/16", "224.0.0.0/4"):
        network.ip(0, "route", "add", prefix, "dev", "tunnel0", "src", "10.9.0.1")
    node("set_next_hop", 4, None, False)
    node("set_route", 0, "10.11.0.0/16", 4)
    node("set_adjacency", 8, 0, "udp", "192.0.2.1", "192.0.2.77", 4500, MTU)
    node("set_next_hop", 5, 8, False)
    node("set_route", 0, "10.12.0.0/16", 5)
    # A peer that the underlay has no way to.
    node("set_adjacency", 9, 0, "udp", "192.0.2.1", "198.51.100.1", 4500, MTU)
    node("set_outbound_sa", 4711, "aes128gcm16", bytes(20), [9], True)
    node("set_next_hop", 6, 9, False)
    node("set_route", 0, "10.13.0.0/16", 6)
    node("commit")
    picked = random.Random(SEED)
    (plain, fragile) = sockets(network, 0, count=2)
    sent = 0
    with plain, fragile:
        plain.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
        # DF, and no thought of what the kernel has learned about the path.
        fragile.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        for number in range(3000):
            subnet = picked.choice([9, 9, 9, 10, 11, 12, 13])
            target = "224.0.0.77" if picked.randrange(12) == 0 else f"10.{subnet}.0.2"
            size = picked.choice([1, 100, 1000, 1390, 1391, 1472])
            (plain if picked.randrange(2) else fragile).sendto(bytes(size), (target, 9))
            sent += 1
            if number == 1500:
                settled(network)
                network.ip(0, "link", "set", "under", "mtu", "1300")
            elif number == 2000:
                settled(network)
                network.ip(0, "link", "set", "under", "mtu", "1500")
            elif number % 100 == 99:
                settled(network)
    settled(network)
    counters, kernel = network.counters(0), device(network, 0, "tunnel0")
    dropped = node("kernel_drops")
    assert kernel["tx"] >= sent, f"seed {SEED}"
    assert counters["tun_rx_packets"] == kernel["tx"]
    assert dropped["drop_tun_queue"] == kernel["tx_dropped"] == 0
    # A packet of 1500 octets or less is two fragments at this MTU.
    entered = counters["tun_rx_packets"] + counters["fragmented"]
    assert counters["underlay_tx_packets"] == entered - total(counters, BEFORE_SEALING)
    left = counters["underlay_tx_packets"] - total(counters, SENDING)
    # Nothing is lost on a veth: what left has arrived.
    assert network.counters(1)["underlay_rx_packets"] == left
    assert network.nodes[1]("kernel_drops")["drop_socket_queue"] == 0
    wanted = {"drop_no_route", "drop_no_adjacency", "drop_no_sa", "drop_no_multicast", "drop_too_big"}
    assert wanted | {"drop_send_refused", "drop_send_too_big"} <= {name for name in counters if counters[name]}
    assert counters["fragmented"]
    assert counters["too_big_sent"]


@DRIVERS
def test_packets_that_a_full_device_drops_are_counted(network: Pair, workers: int) -> None:
    network.forward(workers=workers, mtu=MTU)
    node = network.nodes[0]
    settled(network)
    before = device(network, 0, "tunnel0")
    (sender,) = sockets(network, 0)
    node.pause()
    try:
        with sender:
            for _ in range(6000):
                sender.sendto(b"", ("10.9.0.2", 9))
    finally:
        node.resume()
    settled(network)
    kernel = device(network, 0, "tunnel0")
    dropped = node("kernel_drops")["drop_tun_queue"]
    assert dropped == kernel["tx_dropped"] > 0
    assert kernel["tx"] - before["tx"] + dropped == 6000
    assert node("counters")["tun_rx_packets"] == kernel["tx"]


def esp_frames(network: Pair, count: int) -> list[bytes]:
    """Datagrams of ESP that side 0 sends to side 1, caught by a socket there that takes all of IPv4 UDP."""

    def opened() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        made.settimeout(10)
        return made

    found: list[bytes] = []
    with inside(network.names[1], opened) as capture:
        (sender,) = sockets(network, 0)
        with sender:
            while len(found) < count:
                sender.sendto(b"caught" * 20, ("10.9.0.2", 9))
                packet = capture.recv(65536)
                if packet[22:24] == struct.pack(">H", 4500):
                    found.append(packet[28:])
    return found


@DRIVERS
def test_every_datagram_from_the_underlay_is_accounted_for(network: Pair, workers: int) -> None:
    network.forward(workers=workers, mtu=MTU, underlay={"ipv6": False})
    node = network.nodes[1]
    caught = esp_frames(network, 40)
    settled(network)
    before = network.counters(1)
    delivered_before = node("adjacency_counters", 7)["packets_in"]
    device_before = device(network, 1, "tunnel0")
    picked = random.Random(SEED)
    hostile, genuine = sockets(network, 0, count=2)
    raws = {protocol: raw(network, protocol) for protocol in (47, 50)}

    def forged() -> bytes:
        octets = bytearray(picked.choice(caught))
        # A number that the window has not seen, and an ICV that does not fit.
        octets[4:8] = struct.pack(">I", picked.randrange(10_000, 20_000))
        return bytes(octets)

    kinds = [
        lambda: b"\xff",
        lambda: b"abc",
        lambda: bytes(4) + bytes(28),
        lambda: bytes(4),
        lambda: picked.randbytes(picked.randrange(4, 200)),
        lambda: picked.choice(caught),
        lambda: picked.choice(caught)[: picked.randrange(4, 60)],
        forged,
    ]
    sent = 0
    for number in range(2000):
        if picked.randrange(3) == 0:
            # Distinct sizes are not merged, so that the device counts what was delivered one by one.
            genuine.sendto(bytes(1 + number % 1300), ("10.9.0.2", 9))
        elif picked.randrange(3) == 0:
            protocol = picked.choice([47, 50])
            octets = picked.choice([picked.choice(kinds)(), bytes.fromhex("20000800 0000002a") + bytes(30)])
            raws[protocol].sendto(octets, ("192.0.2.2", 0))
            sent += 1
        else:
            hostile.sendto(picked.choice(kinds)(), ("192.0.2.2", picked.choice([4500, 4500, 4500, 500])))
            sent += 1
        if number == 1000:
            settled(network)
            network.ip(1, "link", "set", "tunnel0", "down")
        elif number == 1200:
            settled(network)
            network.ip(1, "link", "set", "tunnel0", "up")
        elif number % 100 == 99:
            settled(network)
    for one in (hostile, genuine, *raws.values()):
        one.close()
    settled(network)
    after = network.counters(1)
    counters = {name: after[name] - before[name] for name in after}
    left = network.counters(0)["underlay_tx_packets"] - before["underlay_rx_packets"]
    assert counters["underlay_rx_packets"] == sent + left, f"seed {SEED}"
    assert node("kernel_drops")["drop_socket_queue"] == 0
    delivered = node("adjacency_counters", 7)["packets_in"] - delivered_before
    assert counters["underlay_rx_packets"] == delivered + total(counters, RECEIVED), f"seed {SEED}: {counters}"
    kernel = device(network, 1, "tunnel0")
    assert counters["drop_tun_write"] > 0
    assert delivered - counters["drop_tun_write"] == kernel["rx"] - device_before["rx"]
    wanted = {"drop_unknown_spi", "drop_replayed", "drop_unauthentic", "drop_malformed_esp", "drop_malformed_datagram"}
    wanted |= {"drop_unprotected", "drop_malformed_gre", "keepalives_received", "punt_ike"}
    assert wanted <= {name for name in counters if counters[name]}


def test_datagrams_that_a_full_socket_drops_are_counted(network: Pair) -> None:
    network.forward(mtu=MTU, underlay={"ipv6": False})
    node = network.nodes[1]
    settled(network)
    before = node("counters")["underlay_rx_packets"]
    (sender,) = sockets(network, 0)
    node.pause()
    count = 0
    try:
        with sender:
            while network_drops(network) == 0 and count < 200_000:
                for _ in range(2000):
                    sender.sendto(b"\xff" * 200, ("192.0.2.2", 4500))
                count += 2000
    finally:
        node.resume()
    settled(network)
    dropped = node("kernel_drops")["drop_socket_queue"]
    assert dropped > 0
    assert node("counters")["underlay_rx_packets"] - before + dropped == count


def network_drops(network: Pair) -> int:
    """Drops of UDP sockets in side 1's namespace, as the kernel tells everybody."""
    names, values = (
        line.split() for line in network.execute(1, "cat", "/proc/net/snmp").splitlines() if line.startswith("Udp:")
    )
    return int(dict(zip(names[1:], values[1:], strict=True))["RcvbufErrors"])
