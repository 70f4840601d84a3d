"""The forwarding of one tunnel: which next hop each prefix has, and which adjacency each next hop follows.

Three parties know routes for a tunnel: the kernel (mirrored by netlink), NHRP mappings (a host route each) and
shortcuts. The FIB gets the one of the highest rank; taking it away uncovers the next, so that nothing is
blackholed while a shortcut forms or dies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from dsvpn.addresses import Address, Prefix
from dsvpn.commands import Command, RemoveNextHop, RemoveRoute, SetNextHop, SetNextHopGroup, SetRoute
from dsvpn.gateway.ids import IdPool
from dsvpn.nhrp.shortcut import network


class RouteSource(IntEnum):
    """Who says so; the higher value wins."""

    KERNEL = 0
    MAPPING = 1
    SHORTCUT = 2


class Target(NamedTuple):
    """What a next hop follows: an adjacency or nothing, and whether its use asks for a resolution."""

    adjacency: int | None
    resolve: bool


#: Where a route leads: a next hop's address, None for destinations that are their own next hop, or several addresses
#: of equal worth, among which flows are distributed.
Via = Address | tuple[Address, ...] | None
#: The same, and whether it is for the packets to that address itself.
_Key = tuple[Via, bool]
#: A group's own target: its members have targets of their own.
_NOWHERE = Target(None, resolve=False)


@dataclass(slots=True)
class NextHop:
    """A next hop of the FIB. `address` None stands for destinations that are their own next hop (on-link).

    `own`: for packets to that very gateway, which no other can stand in for. `members`: of a group. `routes`: the
    routes and groups that use it.
    """

    next_hop: int
    address: Via
    own: bool
    target: Target
    members: tuple[NextHop, ...] = ()
    routes: int = 0


@dataclass(slots=True)
class _Entry:
    #: The next hop by source.
    candidates: dict[RouteSource, _Key] = field(default_factory=dict)
    installed: NextHop | None = None


class Forwarding:
    """The routes and next hops of one tunnel, as commands to the data plane.

    `target(address, own)` says where a next hop leads at the moment; call `repoint` when the answer has changed.
    """

    def __init__(
        self,
        tunnel: str,
        next_hop_ids: IdPool,
        target: Callable[[Address | None, bool], Target],
        emit: Callable[[Command], None],
    ) -> None:
        self._tunnel = tunnel
        self._ids = next_hop_ids
        self._target = target
        self._emit = emit
        self._entries: dict[Prefix, _Entry] = {}
        self._by_address: dict[_Key, NextHop] = {}
        self._by_id: dict[int, NextHop] = {}

    def set_route(self, source: RouteSource, prefix: Prefix, next_hop: Via, *, own: bool = False) -> None:
        """`source` says that `prefix` is behind `next_hop` (None: each destination is its own next hop). `own`: it is
        the next hop's own address."""
        entry = self._entries.setdefault(prefix, _Entry())
        entry.candidates[source] = next_hop, own
        self._install(prefix, entry)

    def remove_route(self, source: RouteSource, prefix: Prefix) -> None:
        """`source` has no route for `prefix` any more. Nothing happens if it had none."""
        entry = self._entries.get(prefix)
        if entry is None or source not in entry.candidates:
            return
        del entry.candidates[source]
        self._install(prefix, entry)

    def repoint(self, address: Address | None) -> None:
        """Look again where the next hop `address` leads."""
        for own in (False, True):
            next_hop = self._by_address.get((address, own))
            if next_hop is not None:
                self._point(next_hop)

    def repoint_all(self) -> None:
        """Look again where every next hop leads."""
        for next_hop in self._by_address.values():
            self._point(next_hop)

    def find(self, next_hop: int) -> NextHop | None:
        """The next hop with this id."""
        return self._by_id.get(next_hop)

    def covering(self, address: Address) -> tuple[Prefix, NextHop] | None:
        """The longest installed route for an address."""
        for length in range(address.max_prefixlen, -1, -1):
            prefix = network(address, length)
            entry = self._entries.get(prefix)
            if entry is not None and entry.installed is not None:
                return prefix, entry.installed
        return None

    def routes(self) -> Iterator[tuple[Prefix, RouteSource, NextHop]]:
        """The installed routes."""
        for prefix, entry in self._entries.items():
            if entry.installed is not None:
                yield prefix, max(entry.candidates), entry.installed

    def _install(self, prefix: Prefix, entry: _Entry) -> None:
        before = entry.installed
        if not entry.candidates:
            del self._entries[prefix]
            entry.installed = None
            if before is not None:
                self._emit(RemoveRoute(self._tunnel, prefix))
                self._release(before)
            return
        key = entry.candidates[max(entry.candidates)]
        if before is not None and (before.address, before.own) == key:
            return
        after = self._acquire(key)
        entry.installed = after
        self._emit(SetRoute(self._tunnel, prefix, after.next_hop))
        if before is not None:
            self._release(before)

    def _acquire(self, key: _Key) -> NextHop:
        next_hop = self._by_address.get(key)
        if next_hop is None:
            address, own = key
            if isinstance(address, tuple):
                members = tuple(self._acquire((member, False)) for member in address)
                next_hop = NextHop(self._ids.take(), address, own, _NOWHERE, members)
                self._emit(SetNextHopGroup(next_hop.next_hop, tuple(member.next_hop for member in members)))
            else:
                next_hop = NextHop(self._ids.take(), address, own, self._target(address, own))
                self._emit(SetNextHop(next_hop.next_hop, *next_hop.target))
            self._by_address[key] = next_hop
            self._by_id[next_hop.next_hop] = next_hop
        next_hop.routes += 1
        return next_hop

    def _release(self, next_hop: NextHop) -> None:
        next_hop.routes -= 1
        if next_hop.routes == 0:
            del self._by_address[next_hop.address, next_hop.own]
            del self._by_id[next_hop.next_hop]
            self._emit(RemoveNextHop(next_hop.next_hop))
            self._ids.give(next_hop.next_hop)
            for member in next_hop.members:
                self._release(member)

    def _point(self, next_hop: NextHop) -> None:
        if isinstance(next_hop.address, tuple):
            return
        target = self._target(next_hop.address, next_hop.own)
        if target != next_hop.target:
            next_hop.target = target
            self._emit(SetNextHop(next_hop.next_hop, *target))
