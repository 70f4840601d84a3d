"""The interface that a spoke's tunnel sends from gets another address, goes down, and comes back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dsvpn.lab.run import wait_until
from tests.netns.network import DEADLINE
from tests.netns.star import Gateway, Star

pytestmark = [pytest.mark.root, pytest.mark.netns]

QUICK = 'dpd = "1s"\nretransmission = { timeout = "250ms", factor = 1.5, limit = "1s", tries = 4 }'


@pytest.fixture
def star() -> Iterator[Star]:
    with Star() as made:
        for name, number in (("hub", 1), ("s1", 11), ("s2", 12)):
            made.add(name, number)
        spokes = [made["s1"], made["s2"]]
        lans = ", ".join(f'{{ prefix = "{spoke.lan}", via = "{spoke.tunnel}" }}' for spoke in spokes)
        made.start("hub", nhrp="redirect = true", tunnel=f"routes = [{lans}]", profile=QUICK)
        for spoke in spokes:
            made.start(
                spoke.name,
                nhrp=f'shortcut = true\nnhs = [{{ protocol = "10.0.0.1", nbma = "{made["hub"].wan.ip}" }}]',
                tunnel='routes = [{ prefix = "172.16.0.0/12", via = "10.0.0.1" }]',
                profile=QUICK,
            )
        for spoke in spokes:
            made.wait_standing(spoke.name, "hub")
        yield made


def nbma_of(hub: Gateway, spoke: Gateway) -> str | None:
    """Where the hub holds a spoke to be."""
    mappings = hub.show("nhrp")["dsvpn0"]["mappings"]
    return next((entry["nbma"] for entry in mappings if entry["protocol"] == str(spoke.tunnel)), None)


def test_a_spoke_that_gets_another_address_comes_back_by_itself(star: Star) -> None:
    s1, s2 = star["s1"], star["s2"]
    star.wait_ping("s1", s2.lan_host)
    new = star.public(20)
    star.internet.ip("address", "add", f"{new.ip + 1}/30", "dev", "port11")
    s1.namespace.ip("address", "flush", "dev", "eth0")
    wait_until(lambda: s1.show("summary")["tunnels"]["dsvpn0"]["source"] is None, DEADLINE, "s1 to have no source")
    s1.namespace.ip("address", "add", str(new), "dev", "eth0")
    s1.namespace.ip("route", "add", "default", "via", str(new.ip + 1))
    wait_until(
        lambda: nbma_of(star["hub"], s1) == str(new.ip), DEADLINE, "the hub to have the new address", interval=0.2
    )
    star.wait_ping("s1", s2.lan_host)
    star.wait_ping("s2", s1.lan_host)


def test_a_spoke_whose_interface_was_down_comes_back_by_itself(star: Star) -> None:
    s1, s2 = star["s1"], star["s2"]
    star.wait_ping("s1", s2.lan_host)
    s1.namespace.ip("link", "set", "eth0", "down")
    wait_until(lambda: s1.show("summary")["tunnels"]["dsvpn0"]["source"] is None, DEADLINE, "s1 to have no source")
    assert star.ping("s1", s2.lan_host, 2, wait=0.3).received == 0
    s1.namespace.ip("link", "set", "eth0", "up")
    s1.namespace.ip("route", "add", "default", "via", str(s1.wan.ip + 1))
    star.wait_ping("s1", s2.lan_host)
    star.wait_ping("s2", s1.lan_host)


def test_a_spoke_whose_interface_is_made_anew_comes_back_by_itself(star: Star) -> None:
    """As PPPoE and LTE do it: the device goes, and another one of the same name comes."""
    s1, s2 = star["s1"], star["s2"]
    star.wait_ping("s1", s2.lan_host)
    s1.namespace.ip("link", "delete", "eth0")
    wait_until(lambda: s1.show("summary")["tunnels"]["dsvpn0"]["source"] is None, DEADLINE, "s1 to have no source")
    s1.namespace.cable("eth0", star.internet, "port20")
    new = star.public(20)
    star.internet.ip("address", "add", f"{new.ip + 1}/30", "dev", "port20")
    s1.namespace.ip("address", "add", str(new), "dev", "eth0")
    s1.namespace.ip("route", "add", "default", "via", str(new.ip + 1))
    wait_until(
        lambda: nbma_of(star["hub"], s1) == str(new.ip), DEADLINE, "the hub to have the new address", interval=0.2
    )
    star.wait_ping("s1", s2.lan_host)
    star.wait_ping("s2", s1.lan_host)
