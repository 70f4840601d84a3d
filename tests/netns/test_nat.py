"""Spokes behind NAT boxes of nftables: hole punching where ports are kept, the hub where they are not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dsvpn.lab.run import wait_until
from tests.netns.network import DEADLINE
from tests.netns.star import Star

pytestmark = [pytest.mark.root, pytest.mark.netns]


@pytest.fixture
def star() -> Iterator[Star]:
    with Star() as made:
        yield made


def start(star: Star) -> None:
    hub = star["hub"]
    spokes = [star["s1"], star["s2"]]
    lans = ", ".join(f'{{ prefix = "{spoke.lan}", via = "{spoke.tunnel}" }}' for spoke in spokes)
    star.start("hub", nhrp="redirect = true", tunnel=f"routes = [{lans}]")
    for spoke in spokes:
        star.start(
            spoke.name,
            nhrp=f'shortcut = true\nnhs = [{{ protocol = "{hub.tunnel}", nbma = "{hub.wan.ip}" }}]',
            tunnel=f'routes = [{{ prefix = "172.16.0.0/12", via = "{hub.tunnel}" }}]',
        )
    for spoke in spokes:
        star.wait_standing(spoke.name, "hub")


def pair(star: Star, source: str, target: str) -> dict[str, Any] | None:
    """What `source` shows about its path to `target`."""
    protocol = str(star[target].tunnel)
    for peer in star[source].show("peers")["peers"]:
        if any(mapping["protocol"] == protocol for mapping in peer["mappings"]):
            return dict(peer)
    return None


def is_direct(star: Star) -> bool:
    shown = [pair(star, "s1", "s2"), pair(star, "s2", "s1")]
    return all(peer is not None and peer["path"] == "direct" for peer in shown)


def test_two_boxes_that_keep_ports_are_punched_through(star: Star) -> None:
    star.add("hub", 1)
    for number, spoke in ((2, "s1"), (3, "s2")):
        star.add_nat(f"nat{number}", number)
        star.add(spoke, 9 + number, nat=f"nat{number}", nat_number=number)
    start(star)
    pings = star.ping("s1", star["s2"].lan_host, 150)
    assert pings.lost == 0
    wait_until(lambda: is_direct(star), DEADLINE, "the direct path", interval=0.2)
    assert pair(star, "s1", "s2")["encapsulation"] == "udp"  # type: ignore[index]
    star["hub"].kill()
    assert star.ping("s2", star["s1"].lan_host, 20).lost == 0


def test_a_box_that_changes_ports_leaves_the_pair_on_the_hub(star: Star) -> None:
    star.add("hub", 1)
    star.add_nat("nat2", 2)
    star.add_nat("nat3", 3, "masquerade fully-random")
    star.add("s1", 11, nat="nat2", nat_number=2)
    star.add("s2", 12, nat="nat3", nat_number=3)
    start(star)
    assert star.ping("s1", star["s2"].lan_host, 200).lost == 0
    peer = pair(star, "s1", "s2")
    assert peer is not None
    assert peer["path"] == "hub"
    assert "both ends are behind NAT" in peer["why"]


def test_two_spokes_behind_one_address_go_by_their_private_addresses(star: Star) -> None:
    star.add("hub", 1)
    star.add_nat("nat2", 2)
    for number, spoke in ((11, "s1"), (12, "s2")):
        star.add(spoke, number, nat="nat2", nat_number=2)
    start(star)
    assert star.ping("s1", star["s2"].lan_host, 150).lost == 0
    wait_until(lambda: is_direct(star), DEADLINE, "the direct path", interval=0.2)
    assert pair(star, "s1", "s2")["nbma"] == str(star["s2"].wan.ip)  # type: ignore[index]
    star["hub"].kill()
    assert star.ping("s2", star["s1"].lan_host, 20).lost == 0
