"""Liveness: an empty INFORMATIONAL asks for a sign of life (RFC 7296 section 2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsvpn.ike import mobike
from dsvpn.ike.task import Payloads, Task
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa


class Liveness(Task):
    """The answer itself is the sign; without one the retransmission schedule decides."""

    exchange = ExchangeType.INFORMATIONAL

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """No payload, or the question how the peer sees us."""
        return mobike.probe(sa)

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """Nothing beyond what any authenticated message does, unless a NAT has another mapping."""
        mobike.take_probe(sa, payloads, now)
