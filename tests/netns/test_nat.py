"""Spokes behind NAT boxes of nftables: hole punching where ports are kept, the hub where they are not."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from ipaddress import IPv4Address
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


#: A call without an answer is given up after 1 s, so that a test sees the next one.
QUICK = 'retransmission = { timeout = "250ms", factor = 1.5, limit = "1s", tries = 3 }'


def start(star: Star, *, at: IPv4Address | None = None) -> None:
    """Hub and spokes, all at once. `at`: where the spokes find the hub."""
    hub = star["hub"]
    spokes = [gateway for gateway in star.gateways.values() if gateway is not hub]
    lans = ", ".join(f'{{ prefix = "{spoke.lan}", via = "{spoke.tunnel}" }}' for spoke in spokes)
    star.launch("hub", nhrp="redirect = true", tunnel=f"routes = [{lans}]", profile=QUICK)
    for spoke in spokes:
        star.launch(
            spoke.name,
            nhrp=f'shortcut = true\nnhs = [{{ protocol = "{hub.tunnel}", nbma = "{at or hub.wan.ip}" }}]',
            tunnel=f'routes = [{{ prefix = "172.16.0.0/12", via = "{hub.tunnel}" }}]',
            profile=QUICK,
        )
    for name in star.gateways:
        star.wait_listening(name)
    for spoke in spokes:
        star.wait_standing(spoke.name, "hub")


def pair(star: Star, source: str, target: str) -> dict[str, Any] | None:
    """What `source` shows about its path to `target`."""
    protocol = str(star[target].tunnel)
    for peer in star[source].show("peers")["peers"]:
        if any(mapping["protocol"] == protocol for mapping in peer["mappings"]):
            return dict(peer)
    return None


def is_direct(star: Star, one: str = "s1", other: str = "s2") -> bool:
    shown = [pair(star, one, other), pair(star, other, one)]
    return all(peer is not None and peer["path"] == "direct" for peer in shown)


def wait_direct(star: Star, one: str = "s1", other: str = "s2") -> None:
    """Wait until the pair is direct, which no packet between its LANs is lost for."""
    assert star.ping(one, star[other].lan_host, 50).lost == 0
    wait_until(lambda: is_direct(star, one, other), DEADLINE, "the direct path", interval=0.2)


def test_two_boxes_that_keep_ports_are_punched_through(star: Star) -> None:
    star.add("hub", 1)
    for number, spoke in ((2, "s1"), (3, "s2")):
        star.add_nat(f"nat{number}", number)
        star.add(spoke, 9 + number, nat=f"nat{number}", nat_number=number)
    start(star)
    wait_direct(star)
    assert pair(star, "s1", "s2")["encapsulation"] == "udp"  # type: ignore[index]
    star["hub"].kill()
    assert star.ping("s2", star["s1"].lan_host, 20).lost == 0


def translating(port: int) -> str:
    """A statement that shows IKE and ESP in UDP at one port, whomever they go to."""
    return f'udp sport 4500 masquerade to :{port}\n    oifname "outside" masquerade'


@pytest.mark.parametrize("other", ["masquerade", translating(40003)], ids=["one box", "both boxes"])
def test_boxes_that_change_ports_alike_for_all_are_punched_through(star: Star, other: str) -> None:
    star.add("hub", 1)
    star.add_nat("nat2", 2, translating(40002))
    star.add_nat("nat3", 3, other)
    star.add("s1", 11, nat="nat2", nat_number=2)
    star.add("s2", 12, nat="nat3", nat_number=3)
    start(star)
    wait_direct(star)
    shown = [pair(star, "s2", "s1"), pair(star, "s1", "s2")]
    assert [peer and peer["port"] for peer in shown] == [40002, 4500 if other == "masquerade" else 40003]
    star["hub"].kill()
    assert star.ping("s2", star["s1"].lan_host, 20).lost == 0


@pytest.mark.parametrize("other", ["masquerade", "masquerade fully-random"], ids=["one box", "both boxes"])
def test_boxes_that_change_every_port_leave_the_pair_on_the_hub(star: Star, other: str) -> None:
    star.add("hub", 1)
    star.add_nat("nat2", 2, other)
    star.add_nat("nat3", 3, "masquerade fully-random")
    star.add("s1", 11, nat="nat2", nat_number=2)
    star.add("s2", 12, nat="nat3", nat_number=3)
    start(star)
    assert star.ping("s1", star["s2"].lan_host, 50).lost == 0
    peer = pair(star, "s1", "s2")
    assert peer is not None
    assert peer["path"] == "hub"
    assert "both ends are behind NAT" in peer["why"]

    # It is tried again, later each time, and the pair is told apart from a hub that is away.
    waits: list[int] = []

    def tried_again() -> bool:
        shown = pair(star, "s1", "s2")
        found = shown is not None and re.search(r"next try in (\d+) s; .* does not answer", shown["why"])
        if found:
            waits.append(int(found[1]))
        return bool(waits) and waits[-1] >= 3

    wait_until(tried_again, DEADLINE, "a later try", interval=0.1)
    assert waits[0] < waits[-1]
    assert star.ping("s1", star["s2"].lan_host, 20).lost == 0


def test_two_spokes_behind_one_address_go_by_their_private_addresses(star: Star) -> None:
    star.add("hub", 1)
    star.add_nat("nat2", 2)
    for number, spoke in ((11, "s1"), (12, "s2")):
        star.add(spoke, number, nat="nat2", nat_number=2)
    start(star)
    wait_direct(star)
    assert pair(star, "s1", "s2")["nbma"] == str(star["s2"].wan.ip)  # type: ignore[index]
    star["hub"].kill()
    assert star.ping("s2", star["s1"].lan_host, 20).lost == 0


def test_a_box_that_changes_every_port_is_passed_where_the_other_box_lets_strangers_in(star: Star) -> None:
    star.add("hub", 1)
    star.add_nat("nat2", 2, "masquerade fully-random")
    star.add_nat("nat3", 3, forward=12)
    star.add("s1", 11, nat="nat2", nat_number=2)
    star.add("s2", 12, nat="nat3", nat_number=3)
    start(star)
    wait_direct(star)
    assert pair(star, "s2", "s1")["port"] not in (500, 4500)  # type: ignore[index]
    star["hub"].kill()
    assert star.ping("s2", star["s1"].lan_host, 20).lost == 0


def test_a_spoke_behind_a_box_that_changes_every_port_reaches_a_public_one(star: Star) -> None:
    star.add("hub", 1)
    star.add_nat("nat2", 2, "masquerade fully-random")
    star.add("s1", 11, nat="nat2", nat_number=2)
    star.add("s2", 3)
    start(star)
    wait_direct(star)
    star["hub"].kill()
    assert star.ping("s2", star["s1"].lan_host, 20).lost == 0


def test_a_hub_behind_a_static_nat_serves_public_spokes_and_spokes_behind_nat(star: Star) -> None:
    outside = star.add_nat("nat1", 1, forward=9)
    star.add("hub", 9, nat="nat1", nat_number=1)
    star.add_nat("nat2", 2)
    star.add_nat("nat3", 3, "masquerade fully-random")
    star.add("s1", 11, nat="nat2", nat_number=2)
    star.add("s2", 4)
    star.add("s3", 13, nat="nat3", nat_number=3)
    start(star, at=outside)
    hub = pair(star, "s2", "hub")
    assert hub is not None
    assert (hub["nbma"], hub["remote_nat"], hub["local_nat"]) == (str(outside), True, False)
    for spoke in ("s1", "s2", "s3"):
        # From the hub's side as well: it calls nobody, and still has to get through the box.
        assert star.ping("hub", star[spoke].lan_host, 5).lost == 0
    wait_direct(star, "s1", "s2")
    wait_direct(star, "s3", "s2")
    star["hub"].kill()
    assert star.ping("s2", star["s1"].lan_host, 20).lost == 0
    assert star.ping("s2", star["s3"].lan_host, 20).lost == 0


def test_many_spokes_behind_one_address_reach_the_hub_each_other_and_the_outside(star: Star) -> None:
    star.add("hub", 1)
    outside = star.add_nat("nat2", 2)
    inside = ["s1", "s2", "s3", "s4"]
    for number, spoke in enumerate(inside, 11):
        star.add(spoke, number, nat="nat2", nat_number=2)
    star.add("s5", 3)
    start(star)
    shown = [pair(star, "hub", spoke) for spoke in inside]
    assert {peer["nbma"] for peer in shown if peer is not None} == {str(outside)}
    # The box can leave the port to one of them alone.
    assert len({peer["port"] for peer in shown if peer is not None}) == len(inside)
    for spoke in inside:
        wait_direct(star, spoke, "s5")
    for one, other in itertools.combinations(inside, 2):
        wait_direct(star, one, other)
        assert pair(star, one, other)["nbma"] == str(star[other].wan.ip)  # type: ignore[index]
    star["hub"].kill()
    for one, other in itertools.combinations([*inside, "s5"], 2):
        assert star.ping(one, star[other].lan_host, 3).lost == 0, (one, other)
