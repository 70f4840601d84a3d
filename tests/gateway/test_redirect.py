"""A hub hands its spokes on to another one (RFC 5685), in simulated time."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from tests.gateway.model import Site, address, site_config
from tests.gateway.network import HUB_NBMA, HUB_TUNNEL, Network

SECOND = "192.0.2.2"
FOLLOWS = {"follow_redirects": [SECOND, HUB_NBMA]}
QUICK = {"dpd": "5s", "retransmission": {"timeout": "200ms", "tries": 4}}


def two_hubs(seed: int, first: dict[str, Any], second: dict[str, Any], spokes: dict[str, Any]) -> Network:
    """ "hub", and "hub2" at another NBMA address, which serves the same tunnel address."""
    profiles = {"hub": {"profile": QUICK | first}}
    network = Network(seed=seed, nated=(), options={"profile": QUICK | spokes}, overrides=profiles)
    other = Site(
        network.simulation,
        "hub2",
        site_config("hub2", HUB_TUNNEL, hub=None, profile=QUICK | second),
        ip_network("172.16.0.0/24"),
    )
    other.attach(network.underlay, address(SECOND))
    other.static = list(network["hub"].static)
    for site in (other, *network.sites.values()):
        site.start()
    network.sites["hub2"] = other
    return network


def registered_at(network: Network, hub: str) -> int:
    tunnel = network[hub].gateway.tunnels["dsvpn0"]
    return sum(mapping.peer is not None and mapping.peer.up for mapping in tunnel.mappings.values())


def paths(network: Network) -> set[str]:
    """The hubs' NBMA addresses to which the spokes' SAs lead."""
    now = network.simulation.now
    return {str(sa.path.remote.address) for name in ("s1", "s2") for sa in network[name].gateway.ike.snapshot(now)}


@pytest.mark.parametrize("when", ["ike_auth", "ike_sa_init"])
def test_spokes_go_where_they_are_sent_and_register_there(when: str) -> None:
    network = two_hubs(51, {"redirect_to": SECOND, "redirect_in": when}, {}, FOLLOWS)
    network.simulation.run_until(lambda: registered_at(network, "hub2") == 2, 20.0, "both spokes at the second hub")
    assert registered_at(network, "hub") == 0
    assert paths(network) == {SECOND}
    assert network.path("s1", "hub2") == ("s1", "hub2")
    shown = network["s1"].gateway.status(network.simulation.now)["peers"]["peers"]
    assert [(peer["nbma"], peer["redirected_to"]) for peer in shown] == [(HUB_NBMA, SECOND)]
    sent = network.stream("s1", "s2", 3.0)
    assert sorted(network.arrived("s1", "s2")) == sent
    assert network.path("s1", "s2") == ("s1", "s2")


def test_spokes_that_were_not_told_to_follow_stay() -> None:
    network = two_hubs(52, {"redirect_to": SECOND}, {}, {})
    network.simulation.run_until(lambda: registered_at(network, "hub") == 2, 20.0, "both spokes at the first hub")
    assert paths(network) == {HUB_NBMA}


def test_a_hub_is_emptied_without_a_gap() -> None:
    network = two_hubs(53, {}, {}, FOLLOWS)
    network.simulation.run_until(lambda: registered_at(network, "hub") == 2, 20.0, "both spokes at the first hub")
    hub = network["hub"]
    assert hub.gateway.redirect(address(SECOND), "s1", network.simulation.now) == 1
    assert hub.gateway.redirect(address(SECOND), None, network.simulation.now) == 2
    hub._flush()
    network.simulation.run_until(lambda: registered_at(network, "hub2") == 2, 20.0, "both spokes at the second hub")
    network.simulation.run_for(1.0)
    assert paths(network) == {SECOND}
    assert registered_at(network, "hub") == 0
    assert network.path("s1", "hub2") == ("s1", "hub2")


def test_when_the_second_hub_dies_the_first_is_called_again() -> None:
    network = two_hubs(54, {}, {}, FOLLOWS)
    network.simulation.run_until(lambda: registered_at(network, "hub") == 2, 20.0, "both spokes at the first hub")
    network["hub"].gateway.redirect(address(SECOND), None, network.simulation.now)
    network["hub"]._flush()
    network.simulation.run_until(lambda: registered_at(network, "hub2") == 2, 20.0, "both spokes at the second hub")
    network["hub2"].kill()
    network.simulation.run_until(lambda: registered_at(network, "hub") == 2, 60.0, "both spokes back")
    assert network.path("s1", "hub") == ("s1", "hub")


def test_a_second_hub_that_is_not_there_is_given_up() -> None:
    network = two_hubs(55, {}, {}, FOLLOWS)
    network.simulation.run_until(lambda: registered_at(network, "hub") == 2, 20.0, "both spokes at the first hub")
    network["hub2"].kill()
    network["hub"].gateway.redirect(address(SECOND), None, network.simulation.now)
    network["hub"]._flush()
    sent = network.stream("s1", "hub", 20.0, 0.2)
    assert set(sent) <= set(network.arrived("s1", "hub"))
    assert paths(network) == {HUB_NBMA}


def test_a_loop_of_hubs_is_left() -> None:
    """Each sends to a third that sends back; REDIRECTED_FROM only stops a loop of two."""
    third = "192.0.2.3"
    network = two_hubs(56, {"redirect_to": SECOND}, {"redirect_to": third}, {"follow_redirects": ["192.0.2.0/24"]})
    other = Site(
        network.simulation,
        "hub3",
        site_config("hub3", HUB_TUNNEL, hub=None, profile=QUICK | {"redirect_to": HUB_NBMA}),
        ip_network("172.16.0.0/24"),
    )
    other.attach(network.underlay, address(third))
    other.start()
    network.simulation.run_for(100.0)
    for name in ("s1", "s2"):
        counters = network[name].gateway.ike.counters()
        # Five are followed; each later call ends at the first redirect, and calls are made ever more rarely.
        assert 5 < counters["redirects_followed"] < 25
        assert not network[name].gateway.ike.snapshot(network.simulation.now)
