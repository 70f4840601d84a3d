"""One table of deadlines for everything in an engine that happens by itself."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable

TimerCallback = Callable[[float], None]

#: The heap may hold this many outdated entries beyond one per live timer before it is built anew.
_SLACK = 64


class TimerTable:
    """Deadlines by key. Setting a key again moves its deadline."""

    def __init__(self) -> None:
        self._timers: dict[Hashable, tuple[float, int, TimerCallback]] = {}
        self._heap: list[tuple[float, int, Hashable]] = []
        self._order = 0

    def set(self, key: Hashable, deadline: float, callback: TimerCallback) -> None:
        """Call `callback(now)` once, at `deadline`."""
        present = self._timers.get(key)
        if present is not None and present[0] <= deadline:
            # A deadline that moves away, as each refresh of a registration moves one, costs nothing: its place in the
            # heap is put right when it gets to the top.
            self._timers[key] = (deadline, present[1], callback)
            return
        self._order += 1
        self._timers[key] = (deadline, self._order, callback)
        heapq.heappush(self._heap, (deadline, self._order, key))
        if len(self._heap) > 2 * len(self._timers) + _SLACK:
            self._heap = [(due, order, name) for name, (due, order, _) in self._timers.items()]
            heapq.heapify(self._heap)

    def cancel(self, key: Hashable) -> None:
        """Forget a key; one that is not set is fine."""
        self._timers.pop(key, None)

    def deadline(self, key: Hashable) -> float | None:
        """When `key` is due, None when it is not set."""
        entry = self._timers.get(key)
        return entry[0] if entry else None

    def next_deadline(self) -> float | None:
        """The earliest deadline."""
        while self._heap:
            deadline, order, key = self._heap[0]
            entry = self._timers.get(key)
            if entry is None or entry[1] != order:
                heapq.heappop(self._heap)
            elif entry[0] > deadline:
                heapq.heapreplace(self._heap, (entry[0], order, key))
            else:
                return deadline
        return None

    def run_due(self, now: float) -> None:
        """Call back all that is due. What a callback sets is run in the next round, so that time always passes."""
        due: list[tuple[Hashable, int]] = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            _, order, key = heapq.heappop(self._heap)
            due.append((key, order))
        for key, order in due:
            entry = self._timers.get(key)
            # An earlier callback of this round may have cancelled or moved it.
            if entry is not None and entry[1] == order:
                del self._timers[key]
                entry[2](now)

    def __len__(self) -> int:
        return len(self._timers)
