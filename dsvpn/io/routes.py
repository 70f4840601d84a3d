"""The mirror of the kernel's routes whose device is a tunnel.

Several routes may have one prefix (tables, metrics, gateways); the data plane's FIB takes one, the one that the kernel
prefers. The mirror turns the kernel's messages into the changes of that one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dsvpn.addresses import Address, Prefix
from dsvpn.commands import MAX_GROUP
from dsvpn.gateway.forwarding import Via
from dsvpn.io.rtnetlink import RT_TABLE_LOCAL, RT_TABLE_MAIN, RTN_UNICAST, KernelRoute

#: The protocol number of the routes that this gateway writes by itself, and so does not mirror. Not RTPROT_NHRP (191):
#: FRR's zebra takes that for its own and sweeps such routes when it starts.
OWN_PROTOCOL = 147


@dataclass(frozen=True, slots=True)
class RouteAdded:
    """A prefix goes into a tunnel, by `next_hop` (None: on-link; several: flows are distributed). Said again when its
    next hop changes."""

    tunnel: str
    prefix: Prefix
    next_hop: Via


@dataclass(frozen=True, slots=True)
class RouteRemoved:
    """A prefix goes into a tunnel no more."""

    tunnel: str
    prefix: Prefix


RouteChange = RouteAdded | RouteRemoved


class _Rank(NamedTuple):
    """The order in which the kernel prefers routes of one prefix: the table first, then the metric."""

    other_table: bool
    table: int
    metric: int
    tos: int


#: A route's rank and its gateways through the tunnel.
_Candidate = tuple[_Rank, tuple[Address | None, ...]]
#: With when it was last heard of, as `RouteMirror` counts.
_Candidates = dict[_Candidate, int]


def _rank(route: KernelRoute, table: int) -> _Rank:
    return _Rank(route.table != table, route.table, route.metric, route.tos)


def _ways(route: KernelRoute, device: int) -> list[tuple[Address | None, ...]]:
    """The gateways of a route through a device, as the candidates that they make.

    IPv4 routes are replaced and removed as a whole. IPv6 has one route for each gateway, and those of one metric are
    one multipath route.
    """
    gateways = tuple(hop.gateway for hop in route.hops_through(device))
    if route.prefix.version == 6:
        return [(gateway,) for gateway in gateways]
    return [gateways] if gateways else []


def _via(candidates: _Candidates) -> Via:
    """What the kernel would follow."""
    # Among IPv4 routes of one metric the first that came stays, so that a sibling moves no traffic.
    rank, gateways = min(candidates, key=lambda candidate: candidate[0])
    several = {address: None for address in gateways if address is not None}
    for other, (gateway, *_) in candidates:
        if other == rank and gateway is not None and gateway.version == 6:
            several[gateway] = None
    if len(several) < 2 or None in gateways:
        return gateways[0]
    # In one order whatever the order in which they came, so that flows stay where they are.
    return tuple(sorted(several, key=int)[:MAX_GROUP])


def is_mirrored(route: KernelRoute) -> bool:
    """Whether a route is one that the FIB follows, by whichever device.

    The local table holds the gateway's own addresses, which never go into a tunnel. Multicast and link-local prefixes
    have no next hop that NHRP could resolve.
    """
    return (
        route.kind == RTN_UNICAST
        and route.table != RT_TABLE_LOCAL
        and route.protocol != OWN_PROTOCOL
        and not route.prefix.is_multicast
        and not route.prefix.is_link_local
    )


class RouteMirror:
    """The mirrored routes of all tunnels of this gateway. Tunnels are known by name, their devices by index.

    A dump may be taken in by pieces, between which the kernel's messages go on. What a message says of a route counts
    more than what the dump says of it, whichever comes first: a message that is older than the dump's piece is
    followed by the newer ones. At the end, what neither the dump nor a message has named is gone.
    """

    def __init__(self) -> None:
        #: Counts what is heard of routes.
        self._heard = 0
        #: The tunnel that is being dumped, and what messages have taken from it since the dump began: routes, or (None)
        #: all those of a rank but for the ones that messages have named since.
        self._dumped: str | None = None
        self._taken: set[tuple[Prefix, _Rank, tuple[Address | None, ...] | None]] = set()
        self._tunnels: dict[int, str] = {}
        #: Where a packet's route is looked up first: the main table, or that of the tunnel's VRF.
        self._tables: dict[str, int] = {}
        self._routes: dict[str, dict[Prefix, _Candidates]] = {}
        self._best: dict[str, dict[Prefix, Via]] = {}

    def add_tunnel(self, name: str, device: int, table: int = RT_TABLE_MAIN) -> None:
        """Mirror the routes of a device from here on; those in `table` come first."""
        self._tables[name] = table
        self._tunnels[device] = name
        self._routes[name] = {}
        self._best[name] = {}

    def best(self, tunnel: str) -> dict[Prefix, Via]:
        """The mirrored prefixes of a tunnel with their next hops."""
        return dict(self._best[tunnel])

    def changed(self, route: KernelRoute, *, replaces: bool) -> list[RouteChange]:
        """Take in a new route. `replaces`: it took the place of those with its prefix, table, metric and TOS."""
        if not is_mirrored(route):
            return []
        changes: list[RouteChange] = []
        self._heard += 1
        for device, tunnel in self._tunnels.items():
            rank = _rank(route, self._tables[tunnel])
            candidates = self._routes[tunnel].get(route.prefix)
            ways = _ways(route, device)
            if replaces:
                present = candidates or {}
                for candidate in [candidate for candidate in present if candidate[0] == rank]:
                    del present[candidate]
                if tunnel == self._dumped:
                    self._taken.add((route.prefix, rank, None))
            if ways:
                self._routes[tunnel].setdefault(route.prefix, {}).update(((rank, way), self._heard) for way in ways)
            elif candidates is None:
                continue
            changes.extend(self._settle(tunnel, route.prefix))
        return changes

    def removed(self, route: KernelRoute) -> list[RouteChange]:
        """Take out a route."""
        changes: list[RouteChange] = []
        if not is_mirrored(route):
            return changes
        for device, tunnel in self._tunnels.items():
            ways = _ways(route, device)
            rank = _rank(route, self._tables[tunnel])
            if tunnel == self._dumped:
                self._taken.update((route.prefix, rank, way) for way in ways)
            candidates = self._routes[tunnel].get(route.prefix)
            if ways and candidates is not None:
                for way in ways:
                    candidates.pop((rank, way), None)
                changes.extend(self._settle(tunnel, route.prefix))
        return changes

    def resync(self, tunnel: str, routes: Iterable[KernelRoute]) -> list[RouteChange]:
        """Take a dump as the whole truth about a tunnel."""
        begun = self.begin_dump(tunnel)
        changes = self.take_dump(tunnel, routes)
        for piece in self.end_dump(tunnel, begun, len(self._routes[tunnel]) or 1):
            changes.extend(piece)
        return changes

    def begin_dump(self, tunnel: str) -> int:
        """A dump of a tunnel's routes begins, in place of one that has not ended. Gives when, for `end_dump`."""
        self._dumped = tunnel
        self._taken.clear()
        return self._heard

    def take_dump(self, tunnel: str, routes: Iterable[KernelRoute]) -> list[RouteChange]:
        """Take in a piece of the dump that has begun."""
        device = next(index for index, name in self._tunnels.items() if name == tunnel)
        table, present, taken = self._tables[tunnel], self._routes[tunnel], self._taken
        changes: list[RouteChange] = []
        for route in routes:
            if not is_mirrored(route):
                continue
            rank = _rank(route, table)
            for way in _ways(route, device):
                if taken and ((route.prefix, rank, way) in taken or (route.prefix, rank, None) in taken):
                    continue
                candidates = present.setdefault(route.prefix, {})
                self._heard += 1
                known = (rank, way) in candidates
                candidates[rank, way] = self._heard
                if not known:
                    changes.extend(self._settle(tunnel, route.prefix))
        return changes

    def end_dump(self, tunnel: str, begun: int, limit: int) -> Iterator[list[RouteChange]]:
        """Take out what has not been heard of since `begun`, and put the others in the kernel's order; `limit` prefixes
        are looked at for each piece of the changes."""
        present = self._routes[tunnel]
        prefixes = list(present)
        self._dumped = None
        self._taken.clear()
        for start in range(0, len(prefixes), limit):
            changes: list[RouteChange] = []
            for prefix in prefixes[start : start + limit]:
                candidates = present.get(prefix, {})
                heard = list(candidates.values())
                if heard and (min(heard) <= begun or heard != sorted(heard)):
                    left = ((one, when) for one, when in candidates.items() if when > begun)
                    present[prefix] = dict(sorted(left, key=lambda entry: entry[1]))
                    changes.extend(self._settle(tunnel, prefix))
            yield changes

    def _settle(self, tunnel: str, prefix: Prefix) -> list[RouteChange]:
        candidates = self._routes[tunnel].get(prefix)
        best = self._best[tunnel]
        if not candidates:
            self._routes[tunnel].pop(prefix, None)
            if prefix not in best:
                return []
            del best[prefix]
            return [RouteRemoved(tunnel, prefix)]
        next_hop = _via(candidates)
        if prefix in best and best[prefix] == next_hop:
            return []
        best[prefix] = next_hop
        return [RouteAdded(tunnel, prefix, next_hop)]
