"""Shortcuts: prefixes that go straight to the spoke that has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from dsvpn.addresses import Address, Prefix
from dsvpn.nhrp.events import Event, ShortcutAdded, ShortcutRemoved
from dsvpn.nhrp.limits import MAX_SHORTCUTS
from dsvpn.nhrp.timers import TimerTable

#: Shortcuts wider than this are not believed: one answer must not take over the whole network (FRR's limit too).
MIN_PREFIX_LENGTH = {4: 8, 6: 16}


@dataclass(slots=True)
class Shortcut:
    """`target` is the address whose resolution gave the shortcut, and is resolved again to renew it."""

    prefix: Prefix
    next_hop: Address
    target: Address
    holding_time: float
    expires: float
    used_at: float | None = None

    def renewal_due(self, now: float) -> bool:
        """In the last third of its life a shortcut is renewed if traffic uses it."""
        return now >= self.expires - self.holding_time / 3


class ShortcutTable:
    """The shortcuts of a tunnel, by prefix and by next hop."""

    def __init__(self, timers: TimerTable, emit: Callable[[Event], None]) -> None:
        self._timers = timers
        self._emit = emit
        self._shortcuts: dict[Prefix, Shortcut] = {}
        #: A dictionary of dictionaries for their order: hashes of addresses differ between processes.
        self._by_next_hop: dict[Address, dict[Prefix, None]] = {}
        #: How many shortcuts have a (version, prefix length): the lengths to try in a longest match.
        self._lengths: dict[tuple[int, int], int] = {}

    def get(self, prefix: Prefix) -> Shortcut | None:
        """The shortcut of exactly this prefix."""
        return self._shortcuts.get(prefix)

    def __iter__(self) -> Iterator[Shortcut]:
        return iter(list(self._shortcuts.values()))

    def __len__(self) -> int:
        return len(self._shortcuts)

    def via(self, next_hop: Address) -> list[Shortcut]:
        """The shortcuts that lead to a next hop."""
        return [self._shortcuts[prefix] for prefix in self._by_next_hop.get(next_hop, ())]

    def covering(self, address: Address) -> Shortcut | None:
        """The longest shortcut that covers an address."""
        lengths = sorted((length for version, length in self._lengths if version == address.version), reverse=True)
        for length in lengths:
            found = self._shortcuts.get(network(address, length))
            if found is not None:
                return found
        return None

    def within(self, prefix: Prefix) -> list[Shortcut]:
        """The shortcuts whose prefix lies in `prefix`."""
        found = []
        for shortcut in self._shortcuts.values():
            inner = shortcut.prefix
            same_version = inner.version == prefix.version
            if same_version and inner.prefixlen >= prefix.prefixlen and inner.network_address in prefix:
                found.append(shortcut)
        return found

    def add(self, prefix: Prefix, next_hop: Address, target: Address, holding_time: float, now: float) -> bool:
        """Make or renew a shortcut; False when the table is full."""
        present = self._shortcuts.get(prefix)
        if present is None and len(self._shortcuts) >= MAX_SHORTCUTS:
            return False
        expires = now + holding_time
        self._timers.set(("shortcut", prefix), expires, lambda later: self.remove(prefix, "expired"))
        if present is not None and present.next_hop == next_hop:
            present.holding_time, present.expires = holding_time, expires
            return True
        if present is not None:
            self._unindex(present)
        used_at = present.used_at if present is not None else None
        self._shortcuts[prefix] = Shortcut(prefix, next_hop, target, holding_time, expires, used_at)
        self._by_next_hop.setdefault(next_hop, {})[prefix] = None
        key = (prefix.version, prefix.prefixlen)
        self._lengths[key] = self._lengths.get(key, 0) + 1
        self._emit(ShortcutAdded(prefix, next_hop))
        return True

    def remove(self, prefix: Prefix, reason: str) -> None:
        """Forget a shortcut; one that is not there is fine."""
        shortcut = self._shortcuts.pop(prefix, None)
        if shortcut is None:
            return
        self._timers.cancel(("shortcut", prefix))
        self._unindex(shortcut)
        self._emit(ShortcutRemoved(prefix, reason))

    def remove_via(self, next_hop: Address, reason: str) -> None:
        """Forget all shortcuts to a next hop."""
        for shortcut in self.via(next_hop):
            self.remove(shortcut.prefix, reason)

    def _unindex(self, shortcut: Shortcut) -> None:
        prefixes = self._by_next_hop[shortcut.next_hop]
        del prefixes[shortcut.prefix]
        if not prefixes:
            del self._by_next_hop[shortcut.next_hop]
        key = (shortcut.prefix.version, shortcut.prefix.prefixlen)
        self._lengths[key] -= 1
        if not self._lengths[key]:
            del self._lengths[key]


def network(address: Address, length: int) -> Prefix:
    """The prefix of `length` bits around an address."""
    bits = address.max_prefixlen
    value = int(address) >> (bits - length) << (bits - length)
    return IPv4Network((value, length)) if address.version == 4 else IPv6Network((value, length))


def host_prefix(address: Address) -> Prefix:
    """The prefix that is just this address."""
    return network(address, address.max_prefixlen)
