"""What peers claimed without having it: counted, told once for each cause, and kept for `dsvpn show nhrp`."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from dsvpn.addresses import Address
from dsvpn.nhrp.events import ClaimDenied, DeniedAction, Event
from dsvpn.nhrp.limits import MAX_DENIALS
from dsvpn.nhrp.snapshot import DenialStatus


@dataclass(slots=True)
class Denial:
    """One identity that was denied one kind of thing; `protocol` and `reason` are of the last time."""

    protocol: Address
    reason: str
    count: int
    last: float


class Denials:
    """The denials of a tunnel by cause: who, and what was tried. A bounded number is remembered, the latest ones."""

    def __init__(self, counters: Counter[str], emit: Callable[[Event], None]) -> None:
        self._counters = counters
        self._emit = emit
        self._denials: OrderedDict[tuple[str, DeniedAction], Denial] = OrderedDict()

    def deny(self, identity: str, action: DeniedAction, protocol: Address, reason: str, now: float) -> None:
        """`identity` has tried to `action` for `protocol`."""
        self._counters[f"denied.{action}"] += 1
        known = self._denials.get((identity, action))
        if known is not None:
            known.protocol, known.reason, known.last = protocol, reason, now
            known.count += 1
            self._denials.move_to_end((identity, action))
            return
        self._denials[identity, action] = Denial(protocol, reason, 1, now)
        if len(self._denials) > MAX_DENIALS:
            self._denials.popitem(last=False)
        self._emit(ClaimDenied(identity, action, protocol, reason))

    def clear(self) -> None:
        """Forget them: the next one of each cause is told again."""
        self._denials.clear()

    def status(self, now: float) -> tuple[DenialStatus, ...]:
        """All of them for people, the latest first."""
        return tuple(
            DenialStatus(identity, action, denial.protocol, denial.reason, denial.count, now - denial.last)
            for (identity, action), denial in reversed(self._denials.items())
        )
