"""A hub that is known by its DNS name: found, lost and found at another address."""

from __future__ import annotations

import pytest

from tests.gateway.model import address
from tests.gateway.network import HUB_NBMA, HUB_TUNNEL, Network

NAME = "hub.example.net"
FAST = {"dpd": "2s", "retransmission": {"timeout": "200ms", "tries": 4}}


def named(seed: int) -> Network:
    nhs = [{"protocol": HUB_TUNNEL, "nbma": NAME}]
    spokes = {name: {"nhrp": {"nhs": nhs}} for name in ("s1", "s2")}
    network = Network(seed, options={"profile": FAST}, overrides=spokes)
    for name in spokes:
        network[name].names[NAME] = (address(HUB_NBMA),)
    return network


def test_a_hub_is_found_by_its_name() -> None:
    network = named(1)
    network.start()
    assert network.path("s1", "hub") == ("s1", "hub")
    network.simulation.run_for(300.0)
    assert 4 <= len(network["s1"].lookups) <= 8, "one look-up a minute while all is well"
    shown = network["s1"].gateway.status(network.simulation.now)["summary"]["tunnels"]["dsvpn0"]["nhs"]
    assert (shown[0]["name"], shown[0]["nbma"], shown[0]["error"]) == (NAME, HUB_NBMA, "")


def test_a_name_that_is_unknown_at_first_is_asked_for_with_back_off() -> None:
    network = named(2)
    network["s1"].names.clear()
    for site in network.sites.values():
        site.start()
    network.simulation.run_for(120.0)
    asked = network["s1"].lookups
    assert 6 <= len(asked) <= 10
    assert asked[1] - asked[0] < 1.5
    shown = network["s1"].gateway.status(network.simulation.now)["summary"]["tunnels"]["dsvpn0"]["nhs"]
    assert shown[0]["error"] == "no such name"
    network["s1"].names[NAME] = (address(HUB_NBMA),)
    network.wait_registered(40.0)


def test_a_hub_that_moves_is_followed() -> None:
    network = named(3)
    network.start()
    network.stream("s1", "s2", 2.0)
    moved = address("192.0.2.99")
    network.underlay.renumber(network["hub"].host, moved)
    network["hub"].kill()
    network["hub"].start()
    for spoke in ("s1", "s2"):
        network[spoke].names[NAME] = (moved,)
    taken = network.simulation.run_until(
        lambda: network.registered(network["s1"]) and network.registered(network["s2"]),
        60,
        "both spokes at the new hub",
    )
    assert taken < 25
    assert network.path("s1", "hub") == ("s1", "hub")
    # The old path is gone with everything that belonged to it.
    peers = network["s1"].gateway.status(network.simulation.now)["peers"]["peers"]
    assert HUB_NBMA not in [peer["nbma"] for peer in peers]


def test_the_second_address_of_a_name_is_tried_when_the_first_is_dead() -> None:
    network = named(4)
    for spoke in ("s1", "s2"):
        network[spoke].names[NAME] = (address("192.0.2.77"), address(HUB_NBMA))
    for site in network.sites.values():
        site.start()
    network.wait_registered(90.0)
    # It stays where it is well, whatever the order of the next answer.
    network.simulation.run_for(200.0)
    assert network.registered(network["s1"])
    assert network.path("s1", "hub") == ("s1", "hub")


@pytest.mark.parametrize("answer", ["2001:db8::1"])
def test_an_address_of_the_other_family_is_no_answer(answer: str) -> None:
    network = named(5)
    network["s1"].names[NAME] = (address(answer),)
    for site in network.sites.values():
        site.start()
    network.simulation.run_for(5.0)
    shown = network["s1"].gateway.status(network.simulation.now)["summary"]["tunnels"]["dsvpn0"]["nhs"]
    assert shown[0]["error"] == f"{NAME} has no IPv4 address"
