"""A task: one concern of an IKE SA that takes a request of ours and the answer to it.

`build` gives the payloads of the request, or None when there is nothing to do any more. `process` takes the answer,
authenticated and decoded, or the error when it did not decode. `abandon` says that no answer will come, so that a task
can give back what it holds. Message ids, sealing and retransmission belong to the IKE SA, not to tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa

Payloads = Sequence[wire.Payload]


class Task:
    """Base of all tasks."""

    exchange: ExchangeType
    #: A task that waits when the IKE SA is rekeyed goes on under the new one.
    survives_ike_rekey = False

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """The payloads of the request."""
        raise NotImplementedError

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """The answer has come."""
        raise NotImplementedError

    def abandon(self, sa: IkeSa, now: float) -> None:
        """No answer will come, or nobody waits for it."""


class Forgotten(Task):
    """Takes the place of an outstanding task that nobody waits for: its request still needs its answer, because the
    window holds one request (RFC 7296 section 2.3)."""

    def __init__(self, exchange: ExchangeType) -> None:
        self.exchange = exchange

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """Nothing to do."""
        return None

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """Nobody waits for it."""


def first_error(payloads: Payloads) -> wire.Notify | None:
    """The first notification of an error, or None."""
    for payload in payloads:
        if isinstance(payload, wire.Notify) and payload.is_error:
            return payload
    return None
