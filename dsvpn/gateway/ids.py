"""Small integers for the data plane's tables."""

from __future__ import annotations

import heapq


class IdPool:
    """Ids from 0 upwards; one that is given back is used again before a new one is made, so tables stay dense."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._next = 0

    def take(self) -> int:
        """An id that is not in use."""
        if self._free:
            return heapq.heappop(self._free)
        taken = self._next
        self._next += 1
        return taken

    def give(self, taken: int) -> None:
        """Give an id back."""
        heapq.heappush(self._free, taken)
