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


class Kernel:
    """Routes of a few prefixes that change at random, the messages about it, and a dump that is read by pieces."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.routes: dict[Prefix, list[KernelRoute]] = {}
        self.queue: list[tuple[str, KernelRoute]] = []

    def change(self) -> None:
        number, version = self.dice.randrange(6), self.dice.choice("46")
        prefix = ip_network(f"10.{number}.0.0/16" if version == "4" else f"fd0{number}::/16")
        via = f"{'10.0.0.' if version == '4' else 'fd::'}{self.dice.randrange(3) + 1}"
        one = route(via, prefix=prefix, metric=self.dice.randrange(2))
        present = self.routes.setdefault(prefix, [])
        if one in present:
            present.remove(one)
            self.queue.append(("del", one))
        elif self.dice.random() < 0.3:
            present[:] = [other for other in present if other.metric != one.metric]
            present.append(one)
            self.queue.append(("replace", one))
        else:
            present.append(one)
            self.queue.append(("new", one))

    def deliver(self, table: RouteMirror, limit: int) -> None:
        for kind, one in self.queue[:limit]:
            if kind == "del":
                table.removed(one)
            else:
                table.changed(one, replaces=kind == "replace")
        del self.queue[:limit]

    def all(self) -> list[KernelRoute]:
        return [one for routes in self.routes.values() for one in routes]


def test_messages_and_a_dump_by_pieces_give_the_kernels_state_whichever_comes_first() -> None:
    for seed in range(300):
        dice = random.Random(seed)
        kernel, table, begun = Kernel(dice), mirror(), None
        for _ in range(20):
            kernel.change()
        kernel.deliver(table, len(kernel.queue))
        for _ in range(dice.randrange(20)):
            kernel.change()
        kernel.queue.clear()  # lost
        for _ in range(2):
            first = table.begin_dump("dsvpn0")
            begun = first if begun is None else begun
            # The kernel makes pieces a little ahead of their being read.
            ahead: list[list[KernelRoute]] = []
            for prefix in sorted(kernel.routes, key=str):
                for _ in range(dice.randrange(3)):
                    kernel.change()
                ahead.append(list(kernel.routes.get(prefix, [])))
                kernel.deliver(table, dice.randrange(4))
                if len(ahead) > 2:
                    table.take_dump("dsvpn0", ahead.pop(0))
            for piece in ahead:
                table.take_dump("dsvpn0", piece)
        for _ in table.end_dump("dsvpn0", begun or 0, 2):
            kernel.change()
            kernel.deliver(table, dice.randrange(3))
        kernel.deliver(table, len(kernel.queue))
        fresh = mirror()
        fresh.resync("dsvpn0", kernel.all())
        # Routes of one metric have no order between them in a state, so the prefixes with one route each are compared
        # by their gateways, and the others by having one that the kernel has.
        assert table.best("dsvpn0").keys() == fresh.best("dsvpn0").keys(), f"seed {seed}"
        for prefix, via in table.best("dsvpn0").items():
            best = min(one.metric for one in kernel.routes[prefix])
            gateways = {one.hops[0].gateway for one in kernel.routes[prefix] if one.metric == best}
            if prefix.version == 6:
                assert set(via if isinstance(via, tuple) else (via,)) == gateways, f"seed {seed}: {prefix}"
            else:
                assert via in gateways, f"seed {seed}: {prefix}"


def test_an_end_of_a_dump_puts_siblings_in_the_kernels_order_and_moves_no_traffic_before() -> None:
    table = mirror()
    first, second = route("10.0.0.12"), route("10.0.0.13")
    table.resync("dsvpn0", [first, second])
    begun = table.begin_dump("dsvpn0")
    assert table.take_dump("dsvpn0", [second, first]) == []
    assert list(table.end_dump("dsvpn0", begun, 1)) == [[RouteAdded("dsvpn0", PREFIX, ip_address("10.0.0.13"))]]


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
