"""Simulated time: an event heap and a seeded source of chance."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable


class DeadlineExceeded(AssertionError):
    """A condition did not come true in simulated time."""


class Timer:
    """A callback that is due at `deadline` (simulated seconds) unless it is cancelled."""

    __slots__ = ("callback", "cancelled", "deadline")

    def __init__(self, deadline: float, callback: Callable[[], None]) -> None:
        self.deadline = deadline
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Simulation:
    """The clock of a test. `now` starts at an odd value, so that code which takes 0 for "unset" shows."""

    START = 1000.25
    #: Two events at one instant are fine; this many mean a loop that never lets time pass.
    MAX_EVENTS_PER_INSTANT = 100_000

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = self.START
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def octets(self, length: int) -> bytes:
        """Random octets for a protocol engine: different in each seed, the same in each run."""
        return self.random.randbytes(length)

    def schedule(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call back `delay` seconds from the present."""
        return self.schedule_at(self.now + max(delay, 0.0), callback)

    def schedule_at(self, deadline: float, callback: Callable[[], None]) -> Timer:
        """Call back at `deadline`, at once if it is past."""
        timer = Timer(max(deadline, self.now), callback)
        heapq.heappush(self._heap, (timer.deadline, next(self._order), timer))
        return timer

    def step(self, limit: float) -> bool:
        """Run the next event that is due at or before `limit`; False when there is none."""
        while self._heap and self._heap[0][0] <= limit:
            deadline, _, timer = heapq.heappop(self._heap)
            if timer.cancelled:
                continue
            self.now = deadline
            timer.callback()
            return True
        return False

    def run_for(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.run_until_time(self.now + seconds)

    def run_until_time(self, limit: float) -> None:
        """Let time pass until `limit`."""
        instant, count = self.now, 0
        while self.step(limit):
            instant, count = (self.now, count + 1) if self.now == instant else (self.now, 0)
            if count > self.MAX_EVENTS_PER_INSTANT:
                raise DeadlineExceeded(f"seed {self.seed}: time stands still at {self.now}")
        self.now = limit

    def run_until(self, condition: Callable[[], bool], timeout: float, what: str = "condition") -> float:
        """Let time pass until `condition()` holds and give the seconds that took.

        Raises DeadlineExceeded, with the seed, after `timeout` simulated seconds.
        """
        start = self.now
        limit = start + timeout
        while not condition():
            if not self.step(limit):
                self.now = limit
                raise DeadlineExceeded(f"seed {self.seed}: {what} not reached within {timeout} s of simulated time")
        return self.now - start
