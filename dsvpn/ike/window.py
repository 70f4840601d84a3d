"""Message ids, retransmission and duplicates, with a window of one (RFC 7296 sections 2.1-2.3)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from dsvpn.ike.profile import RetransmissionSchedule

if TYPE_CHECKING:
    from dsvpn.ike.task import Task


@dataclass(slots=True)
class Outstanding:
    """Our request that has no answer yet. `sent` counts transmissions, `deadline` is when to send it again."""

    message_id: int
    task: Task
    datagrams: tuple[bytes, ...]
    sent: int
    deadline: float


class RequestWindow:
    """Our own requests: at most one is outstanding, ids count up from 0."""

    def __init__(self) -> None:
        self.next_id = 0
        self.outstanding: Outstanding | None = None

    def open(self, task: Task, datagrams: tuple[bytes, ...], schedule: RetransmissionSchedule, now: float) -> None:
        """The request with `next_id` has just been sent."""
        self.outstanding = Outstanding(self.next_id, task, datagrams, 1, now + schedule.wait(1))
        self.next_id += 1

    def retransmit(self, schedule: RetransmissionSchedule, now: float) -> tuple[bytes, ...] | None:
        """The datagrams to send again, bit by bit the same; None when the schedule is exhausted."""
        outstanding = self.outstanding
        if outstanding is None or outstanding.sent >= schedule.tries:
            return None
        outstanding.sent += 1
        outstanding.deadline = now + schedule.wait(outstanding.sent)
        return outstanding.datagrams

    def close(self) -> None:
        """The outstanding request is answered."""
        self.outstanding = None


class Freshness(Enum):
    """How a request stands to the window."""

    FRESH = "fresh"
    DUPLICATE = "duplicate"
    STALE = "stale"


class ResponseWindow:
    """The peer's requests: the id expected next, and the last answer for when it got lost."""

    def __init__(self) -> None:
        self.expected_id = 0
        self.response: tuple[bytes, ...] = ()
        self._digest = b""

    def classify(self, message_id: int, data: bytes) -> Freshness:
        """FRESH may be opened; DUPLICATE gets `response` again; STALE (old, or beyond the window) gets silence."""
        if message_id == self.expected_id:
            return Freshness.FRESH
        # Only the same octets count as the same request: anything else with its id is forged or broken.
        if message_id == self.expected_id - 1 and self.response and _digest(data) == self._digest:
            return Freshness.DUPLICATE
        return Freshness.STALE

    def answered(self, request: bytes, response: tuple[bytes, ...]) -> None:
        """The expected request was processed and has this answer."""
        self.expected_id += 1
        self.response = response
        self._digest = _digest(request)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
