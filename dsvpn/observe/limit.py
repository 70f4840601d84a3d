"""A rate limit for log lines: what strangers can cause must not fill a disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Admitted:
    """A line may be written. `suppressed` lines of its kind were not since the last one that was."""

    suppressed: int

    @property
    def fields(self) -> dict[str, int]:
        """`suppressed` as a log field, nothing if there were none."""
        return {"suppressed": self.suppressed} if self.suppressed else {}


class RateLimit:
    """A token bucket: `burst` at once, `rate` a second in the long run."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._tokens = float(burst)
        self._last: float | None = None
        self._suppressed = 0

    def admit(self, now: float) -> Admitted | None:
        """Whether one more may pass at `now` (monotonic seconds); None if not."""
        if self._last is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
        self._last = now
        if self._tokens < 1:
            self._suppressed += 1
            return None
        self._tokens -= 1
        admitted = Admitted(self._suppressed)
        self._suppressed = 0
        return admitted
