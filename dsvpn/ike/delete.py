"""Deleting SAs (RFC 7296 section 1.4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsvpn.ike.child_sa import ChildSa
from dsvpn.ike.task import Payloads, Task
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, NotifyType, ProtocolId

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa


class DeleteChild(Task):
    """Delete a CHILD_SA, which the caller has put into DELETING."""

    exchange = ExchangeType.INFORMATIONAL
    survives_ike_rekey = True

    def __init__(self, child: ChildSa) -> None:
        self.child = child

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """D naming our inbound SPI."""
        if sa.association.context.children.get(self.child.inbound_spi, (None, None))[1] is not self.child:
            return None
        return [wire.Delete(ProtocolId.ESP, (self.child.inbound_spi.to_bytes(4, "big"),))]

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """Whether the answer names the peer's half or, both ends deleting at once, does not: the SA is gone."""
        sa.association.child_deleted(self.child, now)


class DeleteStillborn(Task):
    """Delete a CHILD_SA that the peer made but this end could not: the owner never heard of it."""

    exchange = ExchangeType.INFORMATIONAL
    survives_ike_rekey = True

    def __init__(self, inbound_spi: int) -> None:
        self.inbound_spi = inbound_spi
        self._released = False

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """D naming our inbound SPI."""
        return [wire.Delete(ProtocolId.ESP, (self.inbound_spi.to_bytes(4, "big"),))]

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """The SPI is free at both ends."""
        self.abandon(sa, now)

    def abandon(self, sa: IkeSa, now: float) -> None:
        """The SPI is free."""
        if not self._released:
            self._released = True
            sa.context.release_spi(self.inbound_spi)


class DeleteIke(Task):
    """Delete the IKE SA that this task runs on. `notify` says why, where the peer should know."""

    exchange = ExchangeType.INFORMATIONAL

    def __init__(self, notify: NotifyType | None = None) -> None:
        self.notify = notify

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """D for the IKE SA, and with it all its CHILD_SAs."""
        reason: list[wire.Payload] = [] if self.notify is None else [wire.Notify(self.notify)]
        return [*reason, wire.Delete(ProtocolId.IKE)]

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """The IKE SA is gone."""
        sa.association.remove_ike_sa(sa, now)
