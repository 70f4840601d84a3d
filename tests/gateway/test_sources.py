"""Inner sources: who may send from where, across whole networks."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from dsvpn.commands import SetSources
from dsvpn.gateway.sources import CONVICTION, GRACE
from tests.gateway.model import Packet, Site, address
from tests.gateway.network import Network


def dropped(network: Network) -> dict[str, int]:
    """Packets that each site dropped for their sources."""
    return {name: site.lost["wrong_source"] for name, site in network.sites.items() if "wrong_source" in site.lost}


def denials(network: Network, name: str) -> list[tuple[str, str, str]]:
    snapshot = network[name].gateway.tunnels["dsvpn0"].nhrp.snapshot(network.simulation.now)
    return [
        (denial.identity, str(denial.protocol), denial.reason) for denial in snapshot.denials if denial.action == "send"
    ]


def told(site: Site) -> dict[str, SetSources]:
    """What the data plane of a site was told, by the identity of the peer."""
    return {
        str(peer.identity): site.sources[adjacency]
        for peer in site.gateway.peers
        for adjacency in peer.adjacencies.values()
        if adjacency in site.sources
    }


@pytest.mark.parametrize("seed", range(3))
def test_a_spoke_cannot_send_from_the_addresses_of_another_by_the_hub(seed: int) -> None:
    network = Network(seed, spokes=3)
    network.start()
    forged = [network.lan("s3"), address("10.0.0.13"), address("203.0.113.77")]
    for number, source in enumerate(forged * 5):
        network["s2"].send(Packet(source, network.lan("hub"), 1000 + number))
        network.simulation.run_for(0.01)
    assert network.path("s2", "hub") == ("s2", "hub")
    assert not [packet for packet in network["hub"].received if packet.number >= 1000]
    assert dropped(network) == {"hub": 15}
    ((identity, _, reason),) = denials(network, "hub")
    assert identity == "s2"
    assert reason in ("it is behind s3", "no peer has it")


@pytest.mark.parametrize("tunnel", [4, 6])
@pytest.mark.parametrize("seed", range(4))
def test_no_honest_packet_is_dropped_while_paths_move(seed: int, tunnel: int) -> None:
    network = Network(seed, spokes=4, nated=(1,) if tunnel == 4 else (), tunnel=tunnel)
    network.start()
    for one, other in (("s1", "s2"), ("s2", "s3"), ("s3", "s1"), ("s4", "hub")):
        sent = network.stream(one, other, 4.0)
        assert len(network.arrived(one, other).keys() & set(sent)) == len(sent)
    assert dropped(network) == {}
    assert network.path("s2", "s3") == ("s2", "s3")


def test_a_hub_may_send_from_anywhere_and_its_clients_from_what_is_routed_to_them() -> None:
    network = Network(1, spokes=2, nated=())
    network.start()
    assert {identity: sources.check for identity, sources in told(network["hub"]).items()} == {"s1": "own", "s2": "own"}
    assert {identity: sources.check for identity, sources in told(network["s1"]).items()} == {"hub": "any"}
    network.stream("s1", "s2", 2.0)
    assert told(network["s1"])["s2"].check == "open"


def direct(seed: int) -> Network:
    """Three spokes that all have direct paths to each other."""
    network = Network(seed, spokes=3, nated=())
    network.start()
    for one, other in (("s1", "s2"), ("s1", "s3"), ("s2", "s3")):
        network.stream(one, other, 2.0)
    assert network.path("s2", "s1") == ("s2", "s1")
    return network


@pytest.mark.parametrize("seed", range(3))
def test_a_direct_path_is_no_way_to_send_from_anothers_addresses(seed: int) -> None:
    network = direct(seed)
    network.simulation.run_for(GRACE)
    for number in range(200):
        network["s2"].send(Packet(network.lan("s3"), network.lan("s1"), 5000 + number))
        network.simulation.run_for(0.02)
    passed = [packet for packet in network["s1"].received if packet.number >= 5000]
    # What comes before the control plane has looked.
    assert len(passed) <= 2
    assert dropped(network)["s1"] == 200 - len(passed)
    assert denials(network, "s1") == [("s2", str(network.lan("s3")), "it is behind s3")]
    assert told(network["s1"])["s2"].check == "own"
    # What is routed to it is its own as before; and it is not for ever.
    assert network.path("s2", "s1") == ("s2", "s1")
    network.stream("s2", "s1", CONVICTION, interval=2.0)
    assert told(network["s1"])["s2"].check == "open"


def test_a_source_that_nobody_has_asked_for_is_asked_for() -> None:
    network = Network(2, spokes=3, nated=())
    network.start()
    network.stream("s1", "s2", 2.0)
    for number in range(1500):
        network["s2"].send(Packet(network.lan("s3"), network.lan("s1"), 5000 + number))
        network.simulation.run_for(0.01)
    passed = [packet.number for packet in network["s1"].received if packet.number >= 5000]
    # One way alone, and yet s1 finds out whose that is.
    assert dropped(network)["s1"] > 0
    assert max(passed) < 5000 + (GRACE + 2.0) / 0.01
    assert network.path("s1", "s3") == ("s1", "s3")


def test_two_paths_to_one_gateway_are_both_its_own() -> None:
    """What the kernel routes to a peer is that peer's although a direct path leads past it."""
    network = direct(5)
    hub = network["hub"]
    tunnel = hub.gateway.tunnels["dsvpn0"]
    (adjacency,) = [one for one, sources in hub.sources.items() if told(hub)["s2"] == sources]
    hub.gateway.peering.sources.overtaken(tunnel, ip_network("172.16.2.0/24"), network.simulation.now)
    network.simulation.run_for(0.1)
    hub.gateway.handle_source("dsvpn0", adjacency, address("172.16.2.9"), False, network.simulation.now)
    assert denials(network, "hub") == []


@pytest.mark.parametrize("options", [{"ipsec": False}, {"overrides": "off"}])
def test_nothing_is_checked_without_ipsec_or_when_it_is_off(options: dict[str, Any]) -> None:
    network = Network(3, spokes=2, nated=(), options={"ipsec": options.get("ipsec", True)})
    if "overrides" in options:
        for site in network.sites.values():
            site.config["tunnel"]["dsvpn0"]["source_check"] = "off"
    network.start()
    network["s2"].send(Packet(network.lan("s1"), network.lan("hub"), 1000))
    network.simulation.run_for(1.0)
    assert [packet.number for packet in network["hub"].received] == [1000]
    assert all(not site.sources for site in network.sites.values())


def test_rules_bound_a_spoke_to_its_prefixes_on_a_spoke_too() -> None:
    network = Network(4, spokes=3, nated=())
    rules = {"hub": "10.0.0.1", "s2": ["10.0.0.12", "172.16.2.0/24"], "s3": ["10.0.0.13"]}
    network["s1"].config["tunnel"]["dsvpn0"]["authorize"] = rules
    network.start()
    sent = network.stream("s1", "s2", 2.0)
    assert len(network.arrived("s1", "s2").keys() & set(sent)) == len(sent)
    assert told(network["s1"])["s2"] == SetSources(
        told(network["s1"])["s2"].adjacency, "own", (ip_network("10.0.0.12/32"), ip_network("172.16.2.0/24"))
    )
    network["s2"].send(Packet(network.lan("s3"), network.lan("s1"), 7000))
    network.simulation.run_for(1.0)
    assert dropped(network) == {"s1": 1}
