"""The mapping cache: protocol address -> NBMA address, with what it came from and how long it holds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from dsvpn.addresses import Address
from dsvpn.nhrp.events import Event, MappingAdded, MappingKind, MappingRemoved
from dsvpn.nhrp.limits import MAX_LEARNED_MAPPINGS, MAX_REGISTRATIONS, MAX_REGISTRATIONS_PER_PEER
from dsvpn.nhrp.timers import TimerTable

#: A mapping is replaced only by one of the same or a stronger kind.
_STRENGTH: dict[MappingKind, int] = {"nhs": 4, "static": 4, "registered": 3, "resolved": 2, "observed": 1}


@dataclass(slots=True)
class Mapping:
    """One mapping. `peer` is the adjacency that it was registered through; `expires` is None for configured ones."""

    protocol: Address
    nbma: Address
    private_nbma: Address
    kind: MappingKind
    peer: int | None = None
    expires: float | None = None
    unique: bool = False
    #: The public UDP port of a station behind NAT, as an NHS told it.
    port: int | None = None

    def permanent(self) -> bool:
        """Whether it is configured, and so never expires."""
        return self.expires is None


class MappingCache:
    """All mappings of a tunnel. Tells the owner of each change and forgets what has expired."""

    def __init__(
        self,
        timers: TimerTable,
        emit: Callable[[Event], None],
        removed: Callable[[Mapping, str, float], None],
    ) -> None:
        """`removed(mapping, reason, now)` runs before the owner is told that a mapping is gone."""
        self._timers = timers
        self._emit = emit
        self._removed = removed
        self._mappings: dict[Address, Mapping] = {}
        #: Owner -> its protocol addresses (a dictionary for its order: hashes of addresses differ between processes).
        self._registrations: dict[Hashable, dict[Address, None]] = {}
        #: NBMA address -> the protocol addresses that were resolved or observed to be there.
        self._at: dict[Address, dict[Address, None]] = {}
        self._registered = 0
        self._learned = 0

    def get(self, protocol: Address) -> Mapping | None:
        """The mapping of a protocol address."""
        return self._mappings.get(protocol)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(list(self._mappings.values()))

    def __len__(self) -> int:
        return len(self._mappings)

    def put(self, mapping: Mapping) -> bool:
        """Store a mapping; False when a stronger one is there or the table is full."""
        present = self._mappings.get(mapping.protocol)
        if present is not None and _STRENGTH[present.kind] > _STRENGTH[mapping.kind]:
            return False
        if (present is None or present.kind != mapping.kind or present.peer != mapping.peer) and self._full(mapping):
            return False
        if present is not None:
            self._unindex(present)
        self._mappings[mapping.protocol] = mapping
        self._index(mapping)
        if mapping.expires is not None:
            protocol = mapping.protocol
            self._timers.set(("mapping", protocol), mapping.expires, lambda now: self.remove(protocol, "expired", now))
        if present is None or _identity(present) != _identity(mapping):
            self._emit(_added(mapping))
        return True

    def observe(
        self, protocol: Address, nbma: Address, private_nbma: Address, expires: float, port: int | None = None
    ) -> bool:
        """Learn the binding of a requester (S bit). It never weakens what is known already."""
        present = self._mappings.get(protocol)
        if present is None or present.kind == "observed":
            return self.put(Mapping(protocol, nbma, private_nbma, "observed", None, expires, port=port))
        if present.kind != "resolved":
            return False
        if present.nbma == nbma:
            expires = max(expires, present.expires or expires)
            port = port or present.port
        return self.put(Mapping(protocol, nbma, private_nbma, "resolved", None, expires, port=port))

    def remove(self, protocol: Address, reason: str, now: float) -> None:
        """Forget a mapping; one that is not there is fine."""
        mapping = self._mappings.pop(protocol, None)
        if mapping is None:
            return
        self._timers.cancel(("mapping", protocol))
        self._unindex(mapping)
        self._removed(mapping, reason, now)
        self._emit(MappingRemoved(protocol, reason))

    def bind(self, nbma: Address, peer: int) -> None:
        """Registrations that came without an adjacency from `nbma` belong to `peer`."""
        for protocol in list(self._registrations.pop(("nbma", nbma), ())):
            mapping = self._mappings[protocol]
            mapping.peer = peer
            self._registrations.setdefault(peer, {})[protocol] = None

    def move(self, peer: int, nbma: Address) -> None:
        """A peer has another NBMA address: so have the addresses that it registered."""
        for protocol in self._registrations.get(peer, ()):
            mapping = self._mappings[protocol]
            mapping.nbma = nbma
            self._emit(_added(mapping))

    def registered_by(self, peer: int) -> list[Address]:
        """The protocol addresses that a peer has registered."""
        return list(self._registrations.get(peer, ()))

    def learned_at(self, nbma: Address) -> list[Address]:
        """The protocol addresses that were resolved or observed to be at an NBMA address."""
        return list(self._at.get(nbma, ()))

    def _full(self, mapping: Mapping) -> bool:
        if mapping.kind == "registered":
            owned = len(self._registrations.get(_owner(mapping), ()))
            return self._registered >= MAX_REGISTRATIONS or owned >= MAX_REGISTRATIONS_PER_PEER
        if mapping.kind in ("resolved", "observed"):
            return mapping.protocol not in self._mappings and self._learned >= MAX_LEARNED_MAPPINGS
        return False

    def _index(self, mapping: Mapping) -> None:
        if mapping.kind == "registered":
            self._registered += 1
            self._registrations.setdefault(_owner(mapping), {})[mapping.protocol] = None
        elif not mapping.permanent():
            self._learned += 1
            self._at.setdefault(mapping.nbma, {})[mapping.protocol] = None

    def _unindex(self, mapping: Mapping) -> None:
        if mapping.kind == "registered":
            self._registered -= 1
            owned = self._registrations[_owner(mapping)]
            del owned[mapping.protocol]
            if not owned:
                del self._registrations[_owner(mapping)]
        elif not mapping.permanent():
            self._learned -= 1
            there = self._at[mapping.nbma]
            del there[mapping.protocol]
            if not there:
                del self._at[mapping.nbma]


def _owner(mapping: Mapping) -> Hashable:
    return mapping.peer if mapping.peer is not None else ("nbma", mapping.nbma)


def _identity(mapping: Mapping) -> tuple[Address, Address, str, int | None, int | None]:
    return mapping.nbma, mapping.private_nbma, mapping.kind, mapping.peer, mapping.port


def _added(mapping: Mapping) -> MappingAdded:
    return MappingAdded(mapping.protocol, mapping.nbma, mapping.private_nbma, mapping.kind, mapping.peer, mapping.port)
