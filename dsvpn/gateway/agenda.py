"""Things with a time at which something has to be done about them."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

#: The heap may hold this many outdated entries beyond one per live thing before it is built anew.
_SLACK = 64


class Agenda(Generic[T]):
    """When each of many things is due. Asking for the next one costs the same for one and for ten thousand."""

    def __init__(self) -> None:
        self._due: dict[T, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, T]] = []
        self._order = 0

    def __setitem__(self, thing: T, due: float) -> None:
        self._order += 1
        self._due[thing] = (due, self._order)
        heapq.heappush(self._heap, (due, self._order, thing))
        if len(self._heap) > 2 * len(self._due) + _SLACK:
            self._heap = [(at, order, entry) for entry, (at, order) in self._due.items()]
            heapq.heapify(self._heap)

    def setdefault(self, thing: T, due: float) -> None:
        """Set a time unless there is one."""
        if thing not in self._due:
            self[thing] = due

    def get(self, thing: T) -> float | None:
        """When a thing is due, None if it is not on the agenda."""
        found = self._due.get(thing)
        return found[0] if found is not None else None

    def pop(self, thing: T) -> float | None:
        """Take a thing off; when it was due, None if it was not on the agenda."""
        found = self._due.pop(thing, None)
        return found[0] if found is not None else None

    def next(self) -> float | None:
        """When the first thing is due."""
        while self._heap:
            due, order, thing = self._heap[0]
            if self._due.get(thing) == (due, order):
                return due
            heapq.heappop(self._heap)
        return None

    def due(self, now: float) -> list[T]:
        """What is due, in its order. It stays on the agenda until it is taken off or gets another time."""
        found: list[tuple[float, int, T]] = []
        while (first := self.next()) is not None and first <= now:
            found.append(heapq.heappop(self._heap))
        for entry in found:
            heapq.heappush(self._heap, entry)
        return [thing for _, _, thing in found]

    def take_due(self, now: float) -> Iterator[T]:
        """Take off what is due, one after the other. What is done about one may take others off: those are left out."""
        for thing in self.due(now):
            if self.pop(thing) is not None:
                yield thing

    def __contains__(self, thing: object) -> bool:
        return thing in self._due

    def __iter__(self) -> Iterator[T]:
        return iter(self._due)

    def __len__(self) -> int:
        return len(self._due)
