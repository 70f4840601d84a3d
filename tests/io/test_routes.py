"""The route mirror: which of several routes the FIB takes."""

from __future__ import annotations

import random
from ipaddress import ip_address, ip_network

from dsvpn.addresses import Address, Prefix
from dsvpn.io.routes import OWN_PROTOCOL, RouteAdded, RouteMirror, RouteRemoved
from dsvpn.io.rtnetlink import RT_TABLE_LOCAL, RT_TABLE_MAIN, RTN_UNICAST, KernelRoute, RouteHop

DEVICE = 7
OTHER = 3
PREFIX = ip_network("10.2.0.0/16")


def route(
    via: str | None,
    *,
    prefix: Prefix = PREFIX,
    device: int = DEVICE,
    metric: int = 0,
    table: int = RT_TABLE_MAIN,
    protocol: int = 4,
) -> KernelRoute:
    hop = RouteHop(device, None if via is None else ip_address(via))
    return KernelRoute(prefix, RTN_UNICAST, table, protocol, metric, 0, (hop,))


def mirror() -> RouteMirror:
    made = RouteMirror()
    made.add_tunnel("dsvpn0", DEVICE)
    return made


def test_what_is_not_for_the_fib_is_left_out() -> None:
    table = mirror()
    assert table.changed(route("192.0.2.1", device=OTHER), replaces=False) == []
    assert table.changed(route("10.0.0.12", protocol=OWN_PROTOCOL), replaces=False) == []
    assert table.changed(route("10.0.0.12", table=RT_TABLE_LOCAL), replaces=False) == []
    assert table.changed(route(None, prefix=ip_network("224.0.0.0/4")), replaces=False) == []
    assert table.changed(route(None, prefix=ip_network("fe80::/64")), replaces=False) == []
    assert table.best("dsvpn0") == {}


def test_the_main_table_beats_others_whatever_the_metric() -> None:
    table = mirror()
    table.changed(route("10.0.0.12", table=100, metric=0), replaces=False)
    changes = table.changed(route("10.0.0.13", metric=500), replaces=False)
    assert changes == [RouteAdded("dsvpn0", PREFIX, ip_address("10.0.0.13"))]
    assert table.removed(route("10.0.0.13", metric=500)) == [RouteAdded("dsvpn0", PREFIX, ip_address("10.0.0.12"))]
    assert table.removed(route("10.0.0.12", table=100)) == [RouteRemoved("dsvpn0", PREFIX)]
    assert table.removed(route("10.0.0.12", table=100)) == []


def test_siblings_of_one_metric_do_not_move_the_traffic() -> None:
    table = mirror()
    table.changed(route("10.0.0.12"), replaces=False)
    assert table.changed(route("10.0.0.13"), replaces=False) == []
    assert table.removed(route("10.0.0.12")) == [RouteAdded("dsvpn0", PREFIX, ip_address("10.0.0.13"))]


def test_a_route_replaced_by_one_through_another_device_goes() -> None:
    table = mirror()
    table.changed(route("10.0.0.12"), replaces=False)
    assert table.changed(route("192.0.2.1", device=OTHER), replaces=True) == [RouteRemoved("dsvpn0", PREFIX)]
    assert table.changed(route("192.0.2.1", device=OTHER, metric=9), replaces=True) == []


def test_a_dump_after_lost_messages_gives_the_state_that_the_messages_would_have_given() -> None:
    for seed in range(50):
        dice = random.Random(seed)
        followed, dumped = mirror(), mirror()
        present: dict[tuple[Prefix, int, Address | None], KernelRoute] = {}
        for _ in range(60):
            prefix = ip_network(f"10.{dice.randrange(4)}.0.0/16")
            one = route(f"10.0.0.{dice.randrange(3) + 1}", prefix=prefix, metric=dice.randrange(3))
            key = (prefix, one.metric, one.hops[0].gateway)
            if key in present:
                del present[key]
                followed.removed(one)
            else:
                present[key] = one
                followed.changed(one, replaces=False)
        changes = dumped.resync("dsvpn0", present.values())
        replayed = {change.prefix: change.next_hop for change in changes if isinstance(change, RouteAdded)}
        assert replayed == dumped.best("dsvpn0") == followed.best("dsvpn0"), f"seed {seed}"
        assert dumped.resync("dsvpn0", present.values()) == [], f"seed {seed}"
        assert {change.prefix for change in dumped.resync("dsvpn0", [])} == set(replayed), f"seed {seed}"


def test_a_multipath_route_gives_all_its_gateways() -> None:
    table = mirror()
    hops = tuple(RouteHop(DEVICE, ip_address(f"10.0.0.{number}")) for number in (13, 12))
    multipath = KernelRoute(PREFIX, RTN_UNICAST, RT_TABLE_MAIN, 4, 0, 0, (*hops, RouteHop(OTHER, None)))
    both = (ip_address("10.0.0.12"), ip_address("10.0.0.13"))
    assert table.changed(multipath, replaces=False) == [RouteAdded("dsvpn0", PREFIX, both)]
    assert table.changed(route("10.0.0.14", metric=5), replaces=False) == []
    assert table.removed(multipath) == [RouteAdded("dsvpn0", PREFIX, ip_address("10.0.0.14"))]


def test_ipv6_routes_of_one_metric_are_one_multipath_route() -> None:
    table = mirror()
    prefix = ip_network("fd02::/32")
    one, other, worse = (
        route(f"fd00::{number}", prefix=prefix, metric=metric) for number, metric in ((1, 9), (2, 9), (3, 99))
    )
    first, second = ip_address("fd00::1"), ip_address("fd00::2")
    assert table.changed(one, replaces=False) == [RouteAdded("dsvpn0", prefix, first)]
    assert table.changed(worse, replaces=False) == []
    assert table.changed(other, replaces=False) == [RouteAdded("dsvpn0", prefix, (first, second))]
    assert table.removed(one) == [RouteAdded("dsvpn0", prefix, second)]
    assert table.resync("dsvpn0", [other, one]) == [RouteAdded("dsvpn0", prefix, (first, second))]
