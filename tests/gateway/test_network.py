"""Whole gateways, NHRP and IKEv2 and all, as a network in simulated time."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import pytest

from dsvpn.addresses import Address
from tests.gateway.model import address
from tests.gateway.network import NAT_PUBLIC, Network
from tests.simulation import Conditions, Datagram, Underlay
from tests.simulation.underlay import Node


@dataclass
class LosesAnswers:
    """A carrier that loses the first `left` IKE_AUTH answers to one address."""

    underlay: Underlay
    to: Address
    left: int

    def send(self, datagram: Datagram) -> None:
        data = datagram.payload
        if self.left and datagram.destination.address == self.to and isinstance(data, bytes) and len(data) > 28:
            exchange, flags = data[18], data[19]
            if exchange == 35 and flags & 0x20:
                self.left -= 1
                return
        self.underlay.send(datagram)

    def attach(self, address: Address, node: Node) -> None:
        self.underlay.attach(address, node)

    def detach(self, address: Address) -> None:
        self.underlay.detach(address)


FAST = {"dpd": "2s", "retransmission": {"timeout": "200ms", "tries": 4}}


def direct(network: Network, one: str, other: str) -> bool:
    return network.path(one, other) == (one, other) and network.path(other, one) == (other, one)


@pytest.mark.parametrize(
    ("nated", "ipsec"),
    # Plain GRE has no ports: a spoke behind NAT cannot be reached by it, unless it is the only one there.
    [((), True), ((1,), True), ((), False)],
    ids=["public", "s1 behind NAT", "public, plain GRE"],
)
def test_shortcut_forms_and_nothing_is_lost(nated: tuple[int, ...], ipsec: bool) -> None:
    network = Network(seed=1, nated=nated, options={"ipsec": ipsec})
    network.start()
    start = network.simulation.now
    sent = network.stream("s1", "s2", 2.0)
    arrived = network.arrived("s1", "s2")
    assert sorted(arrived) == sent
    assert arrived[sent[0]].trace == ("s1", "hub", "s2")
    assert direct(network, "s1", "s2")
    forwarded = network["hub"].forwarded
    network.stream("s1", "s2", 1.0)
    assert network["hub"].forwarded == forwarded
    assert network.simulation.now - start < 10
    assert network["s1"].kernel_shortcuts
    assert network["s2"].kernel_shortcuts


def test_first_packet_to_direct_path_within_a_second() -> None:
    network = Network(seed=2)
    network.start()
    start = network.simulation.now
    for _ in range(50):
        network["s1"].send(network.packet("s1", "s2"))
        network["s2"].send(network.packet("s2", "s1"))
        network.simulation.run_for(0.02)
    network.simulation.run_until_time(start + 1.0)
    assert direct(network, "s1", "s2")


@pytest.mark.parametrize("nated", [(), (1,)], ids=["public", "s1 behind NAT"])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_nothing_is_lost_while_the_caller_waits_for_the_answer(nated: tuple[int, ...], lost: int) -> None:
    """The end that is called has its SA first. What it sealed before the caller has the answer would be lost, the more
    so when the answer itself is lost and has to be asked for again."""
    network = Network(seed=20, nated=nated)
    network.start()
    losing = LosesAnswers(network.underlay, address(NAT_PUBLIC if nated else "192.0.2.11"), lost)
    network["s2"].host.via = losing
    sent = network.stream("s1", "s2", 4.0, 0.005)
    assert losing.left == 0
    assert sorted(network.arrived("s1", "s2")) == sent
    assert direct(network, "s1", "s2")


def test_two_spokes_behind_one_nat_address() -> None:
    network = Network(seed=3, spokes=3, nated=(1, 3))
    network.start()
    for pair in (("s1", "s2"), ("s3", "s2")):
        sent = network.stream(*pair, 3.0)
        assert set(sent) <= set(network.arrived(*pair))
        assert direct(network, *pair)
    assert direct(network, "s1", "s2")


def test_wrong_psk_lets_nothing_in() -> None:
    network = Network(seed=5, overrides={"s2": {"psk": "wrong"}})
    for site in network.sites.values():
        site.start()
    network.simulation.run_until(lambda: network.registered(network["s1"]), 30, "s1 registered")
    network.simulation.run_for(10.0)
    assert not network.registered(network["s2"])
    assert network.path("s2", "hub") is None
    assert not network["hub"].received
    peers: dict[str, Any] = network["s2"].gateway.status(network.simulation.now)["peers"]
    assert "authentication" in peers["peers"][0]["last_error"].lower()
    refused = network["hub"].gateway.status(network.simulation.now)["peers"]["refused"]
    assert refused
    assert refused[0]["remote"] == "192.0.2.12"


def test_dead_hub_returns() -> None:
    network = Network(seed=6, options={"profile": FAST})
    network.start()
    network["hub"].kill()
    network.simulation.run_for(120.0)
    assert not network["s1"].gateway.status(network.simulation.now)["summary"]["tunnels"]["dsvpn0"]["peers_up"]
    network["hub"].start()
    network.wait_registered(60)
    assert network.path("s1", "hub") == ("s1", "hub")


def test_hub_restarts_at_once() -> None:
    network = Network(seed=7, options={"profile": FAST})
    network.start()
    network["hub"].kill()
    network["hub"].start()
    network.simulation.run_for(1.0)
    network.wait_registered(60)
    assert network.path("s2", "hub") == ("s2", "hub")


@pytest.mark.parametrize("spoke", ["s1", "s2"])
def test_killed_spoke_returns(spoke: str) -> None:
    network = Network(seed=8, options={"profile": FAST})
    network.start()
    network.stream("s1", "s2", 2.0)
    assert direct(network, "s1", "s2")
    network[spoke].kill()
    network.simulation.run_for(3.0)
    network[spoke].start()
    network.simulation.run_until(lambda: network.path(spoke, "hub") == (spoke, "hub"), 30, "spoke to hub")
    network.simulation.run_until(
        lambda: network.path("s1", "s2") is not None and network.path("s2", "s1") is not None, 60, "traffic both ways"
    )
    network.stream("s1", "s2", 5.0)
    assert direct(network, "s1", "s2")


def test_sigterm_tells_everybody() -> None:
    network = Network(seed=9)
    network.start()
    network.stream("s1", "s2", 2.0)
    network["s2"].stop()
    assert not network["s2"].inbound
    network.simulation.run_for(2.0)
    hub = network["hub"].gateway.status(network.simulation.now)
    assert [peer["identity"] for peer in hub["peers"]["peers"] if peer["state"] == "up"] == ["s1"]
    assert not network["s1"].kernel_shortcuts


def test_idle_shortcut_expires_and_traffic_goes_by_the_hub_again() -> None:
    network = Network(seed=10, options={"nhrp": {"holding_time": "30s"}})
    network.start()
    network.stream("s1", "s2", 2.0)
    assert direct(network, "s1", "s2")
    network.simulation.run_for(120.0)
    for name in ("s1", "s2"):
        assert not network[name].kernel_shortcuts
        states = network[name].gateway.status(network.simulation.now)["peers"]["peers"]
        assert [peer["identity"] for peer in states if peer["state"] == "up"] == ["hub"]
    packet = network.packet("s1", "s2")
    network["s1"].send(packet)
    network.simulation.run_for(1.0)
    assert network.arrived("s2")[packet.number].trace == ("s1", "hub", "s2")


def test_busy_shortcut_stays() -> None:
    network = Network(seed=11, options={"nhrp": {"holding_time": "30s"}})
    network.start()
    network.stream("s1", "s2", 2.0)
    before = set(network.arrived("s1", "s2"))
    forwarded = network["hub"].forwarded
    sent = network.stream("s1", "s2", 120.0, 0.5)
    assert set(sent) <= set(network.arrived("s1", "s2")) - before
    assert network["hub"].forwarded == forwarded


def test_rekeys_lose_nothing() -> None:
    network = Network(seed=12, options={"profile": {"child_lifetime": "15s", "ike_lifetime": "40s"}})
    network.start()
    sent = network.stream("s1", "s2", 120.0, 0.1)
    assert sorted(network.arrived("s1", "s2")) == sent
    assert direct(network, "s1", "s2")
    for site in network.sites.values():
        assert len(site.inbound) <= 6


def test_non_shortcut_mode_resolves_the_next_hop() -> None:
    network = Network(seed=13, options={"nhrp": {"shortcut": False}})
    network["s1"].static.append(("dsvpn0", ip_network("172.16.2.0/24"), address("10.0.0.12")))
    network["s2"].static.append(("dsvpn0", ip_network("172.16.1.0/24"), address("10.0.0.11")))
    network["hub"].config["tunnel"]["dsvpn0"]["nhrp"]["redirect"] = False
    network.start()
    sent = network.stream("s1", "s2", 2.0)
    assert sorted(network.arrived("s1", "s2")) == sent
    assert direct(network, "s1", "s2")


@pytest.mark.parametrize("seed", range(20))
def test_lossy_underlay(seed: int) -> None:
    """Loss, reordering and duplication delay things; in the end everyone is registered and the path is direct."""
    conditions = Conditions(delay=0.02, jitter=0.02, loss=0.15, duplicate=0.1, reorder=0.1)
    network = Network(seed=1000 + seed, conditions=conditions)
    for site in network.sites.values():
        site.start()
    network.wait_registered(120)
    tunnel = network["s1"].gateway.tunnels["dsvpn0"]

    def shortcut() -> bool:
        network["s1"].send(network.packet("s1", "s2"))
        network.simulation.run_for(0.25)
        return any(tunnel.shortcut_active(prefix) for prefix in tunnel.shortcuts)

    network.simulation.run_until(shortcut, 120, "shortcut")
    for spi in network["s1"].inbound:
        assert spi in network["s1"].spis


def test_a_smaller_underlay_mtu_reaches_the_adjacencies() -> None:
    network = Network(seed=14, nated=())
    network.start()
    spoke = network["s1"]
    assert {adjacency.mtu for adjacency in spoke.adjacencies.values()} == {1438}
    spoke.underlay_mtu_changed(1400)
    assert {adjacency.mtu for adjacency in spoke.adjacencies.values()} == {1338}
    assert network.path("s1", "hub") == ("s1", "hub")
