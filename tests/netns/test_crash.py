"""A gateway that is killed: its LAN's packets must not leave in clear."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from dsvpn.lab.run import wait_until
from tests.netns.network import DEADLINE
from tests.netns.star import Gateway, Star

pytestmark = [pytest.mark.root, pytest.mark.netns]


@pytest.fixture
def star() -> Iterator[Star]:
    with Star() as made:
        yield made


def own_routes(gateway: Gateway) -> list[tuple[str, str]]:
    """Prefix and device or kind of every route with our protocol number."""
    return sorted(
        (route["dst"], route.get("dev", "") if route.get("type", "unicast") == "unicast" else route["type"])
        for route in json.loads(gateway.namespace.ip("-d", "-j", "route", "show", "proto", "147"))
    )


def left_in_clear(gateway: Gateway) -> int:
    """Packets to the tunnel's prefixes that have left by the underlay's device."""
    listed = json.loads(gateway.namespace.command(["nft", "-j", "list", "counter", "ip", "watch", "clear"]))
    return next(int(entry["counter"]["packets"]) for entry in listed["nftables"] if "counter" in entry)


def test_after_a_kill_nothing_leaves_in_clear_and_the_next_start_cleans_up(star: Star) -> None:
    hub, s1 = star.add("hub", 1), star.add("s1", 11)
    s1.namespace.command(
        ["nft", "-f", "-"],
        stdin="""
table ip watch {
  counter clear { }
  chain out {
    type filter hook postrouting priority 0;
    oifname "eth0" ip daddr { 172.16.0.0/12, 10.0.0.0/24, 172.30.0.0/16 } counter name "clear"
  }
}
""",
    )
    star.start("hub", nhrp="redirect = true", tunnel=f'routes = [{{ prefix = "{s1.lan}", via = "{s1.tunnel}" }}]')
    nhrp = f'shortcut = true\nnhs = [{{ protocol = "10.0.0.1", nbma = "{hub.wan.ip}" }}]'
    routes = 'routes = [{ prefix = "172.16.0.0/12", via = "10.0.0.1" }]'
    star.start("s1", nhrp=nhrp, tunnel=routes)
    star.wait_standing("s1", "hub")
    star.wait_ping("s1", hub.lan_host)
    guards = [("10.0.0.0/24", "unreachable"), ("172.16.0.0/12", "unreachable")]
    assert own_routes(s1) == guards
    assert left_in_clear(s1) == 0

    s1.kill()
    wait_until(lambda: "dsvpn0" not in s1.namespace.ip("link", "show"), DEADLINE, "the device to go")
    assert own_routes(s1) == guards
    assert star.ping("s1", hub.lan_host, 5, wait=0.3).received == 0
    assert left_in_clear(s1) == 0

    # Another configuration of the same gateway: what the old one left is gone, and the tunnel works.
    star.start("s1", nhrp=nhrp, tunnel='routes = [{ prefix = "172.16.0.0/16", via = "10.0.0.1" }]')
    star.wait_standing("s1", "hub")
    assert own_routes(s1) == [("10.0.0.0/24", "unreachable"), ("172.16.0.0/16", "unreachable")]
    star.wait_ping("s1", hub.lan_host)
    assert star.stop("s1") == 0
    assert own_routes(s1) == []

    # Without guards the very same packets leave in clear: the test would see it.
    star.start("s1", nhrp=nhrp, tunnel=f"{routes}\nguard = false")
    assert own_routes(s1) == []
    star.wait_standing("s1", "hub")
    star.wait_ping("s1", hub.lan_host)
    s1.kill()
    wait_until(lambda: "dsvpn0" not in s1.namespace.ip("link", "show"), DEADLINE, "the device to go")
    star.ping("s1", hub.lan_host, 3, wait=0.3)
    assert left_in_clear(s1) == 3
