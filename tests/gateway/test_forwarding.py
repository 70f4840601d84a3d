"""Routes of one tunnel: who wins, and in which order the data plane hears of it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from dsvpn.addresses import Address
from dsvpn.commands import Command, RemoveNextHop, RemoveRoute, SetNextHop, SetNextHopGroup, SetRoute
from dsvpn.gateway.forwarding import Forwarding, RouteSource, Target
from dsvpn.gateway.ids import IdPool

LAN = ip_network("172.16.2.0/24")
HUB = ip_address("10.0.0.1")
SPOKE = ip_address("10.0.0.12")


class Plane:
    """What a data plane would hold after the commands, as strict as the real one about their order."""

    def __init__(self) -> None:
        self.targets: dict[Address | None, Target] = {HUB: Target(1, False), SPOKE: Target(1, True)}
        self.next_hops: dict[int, SetNextHop] = {}
        self.groups: dict[int, tuple[int, ...]] = {}
        self.routes: dict[object, int] = {}
        self.forwarding = Forwarding(
            "t", IdPool(), lambda address, own: self.targets.get(address, Target(None, False)), self.do
        )

    def do(self, command: Command) -> None:
        match command:
            case SetNextHop(next_hop):
                self.next_hops[next_hop] = command
            case SetNextHopGroup(next_hop, members):
                assert self.next_hops.keys() >= set(members)
                self.groups[next_hop] = members
            case RemoveNextHop(next_hop):
                assert next_hop not in self.routes.values()
                assert not any(next_hop in members for members in self.groups.values())
                if self.groups.pop(next_hop, None) is None:
                    del self.next_hops[next_hop]
            case SetRoute(_, prefix, next_hop):
                assert next_hop in self.next_hops or next_hop in self.groups
                self.routes[prefix] = next_hop
            case RemoveRoute(_, prefix):
                del self.routes[prefix]
            case _:
                raise AssertionError(command)

    def leads(self, prefix: object) -> tuple[int | None, bool]:
        next_hop = self.next_hops[self.routes[prefix]]
        return next_hop.adjacency, next_hop.resolve


def test_shortcut_covers_the_kernel_route_and_uncovers_it_again() -> None:
    plane = Plane()
    plane.forwarding.set_route(RouteSource.KERNEL, LAN, HUB)
    assert plane.leads(LAN) == (1, False)
    plane.targets[SPOKE] = Target(2, False)
    plane.forwarding.set_route(RouteSource.SHORTCUT, LAN, SPOKE)
    assert plane.leads(LAN) == (2, False)
    plane.forwarding.remove_route(RouteSource.SHORTCUT, LAN)
    assert plane.leads(LAN) == (1, False)
    plane.forwarding.remove_route(RouteSource.KERNEL, LAN)
    assert not plane.routes
    assert not plane.next_hops


def test_a_peer_that_comes_up_repoints_all_its_routes_at_once() -> None:
    plane = Plane()
    prefixes = [ip_network(f"172.16.{index}.0/24") for index in range(100)]
    for prefix in prefixes:
        plane.forwarding.set_route(RouteSource.KERNEL, prefix, SPOKE)
    assert len(plane.next_hops) == 1
    assert {plane.leads(prefix) for prefix in prefixes} == {(1, True)}
    plane.targets[SPOKE] = Target(7, False)
    plane.forwarding.repoint(SPOKE)
    assert {plane.leads(prefix) for prefix in prefixes} == {(7, False)}


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.sampled_from(list(RouteSource)),
            st.integers(0, 3),
            st.sampled_from([None, HUB, SPOKE]),
        ),
        max_size=60,
    )
)
def test_the_highest_source_always_wins(changes: list[tuple[bool, RouteSource, int, Address | None]]) -> None:
    plane = Plane()
    model: dict[tuple[int, RouteSource], Address | None] = {}
    for add, source, index, next_hop in changes:
        prefix = ip_network(f"172.16.{index}.0/24")
        if add:
            plane.forwarding.set_route(source, prefix, next_hop)
            model[index, source] = next_hop
        else:
            plane.forwarding.remove_route(source, prefix)
            model.pop((index, source), None)
    for index in range(4):
        prefix = ip_network(f"172.16.{index}.0/24")
        sources = [source for number, source in model if number == index]
        assert (prefix in plane.routes) == bool(sources)
        if sources:
            found = plane.forwarding.find(plane.routes[prefix])
            assert found is not None
            assert found.address == model[index, max(sources)]
    assert len(plane.next_hops) == len(set(plane.routes.values()))


def test_a_multipath_route_has_a_group_whose_members_are_shared_and_repointed() -> None:
    plane = Plane()
    other = ip_network("172.16.3.0/24")
    plane.forwarding.set_route(RouteSource.KERNEL, LAN, (HUB, SPOKE))
    plane.forwarding.set_route(RouteSource.KERNEL, other, HUB)
    (members,) = plane.groups.values()
    assert plane.routes[other] in members
    assert [plane.next_hops[member].adjacency for member in members] == [1, 1]
    plane.targets[SPOKE] = Target(2, False)
    plane.forwarding.repoint(SPOKE)
    plane.forwarding.repoint_all()
    assert [plane.next_hops[member].adjacency for member in members] == [1, 2]

    # A shortcut covers the group and uncovers it; with its last route the group goes, and then its members.
    plane.forwarding.set_route(RouteSource.SHORTCUT, LAN, SPOKE)
    assert plane.leads(LAN) == (2, False)
    assert not plane.groups
    plane.forwarding.remove_route(RouteSource.SHORTCUT, LAN)
    assert len(plane.groups) == 1
    plane.forwarding.set_route(RouteSource.KERNEL, LAN, HUB)
    assert not plane.groups
    assert len(plane.next_hops) == 1
    plane.forwarding.remove_route(RouteSource.KERNEL, LAN)
    plane.forwarding.remove_route(RouteSource.KERNEL, other)
    assert not plane.next_hops
