"""SPIs that one end has lost: INVALID_SPI and INVALID_IKE_SPI (RFC 7296 sections 1.5, 2.21.4 and 3.10.1).

    ESP with an unknown SPI  -->   <--  HDR, SK {N(INVALID_SPI)}     to a peer with an IKE SA
                                   <--  HDR(0,0), N(INVALID_SPI)     to anybody else, at a limited rate
    HDR(unknown), SK {…}     -->   <--  HDR, N(INVALID_IKE_SPI), [N(QCD_TOKEN)]      likewise

What nothing protects is no more than a hint: it makes this end ask the peer for a sign of life, rarely. Only a token
that the peer has given before (dsvpn/ike/quick_crash.py) ends anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from dsvpn.addresses import Address, Endpoint, Path
from dsvpn.ike import quick_crash
from dsvpn.ike.child_sa import ChildState
from dsvpn.ike.nat import IKE_PORT
from dsvpn.ike.state import IkeState
from dsvpn.ike.task import Payloads, Task
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ZERO_SPI, ExchangeType, Flag, NotifyType

if TYPE_CHECKING:
    from dsvpn.ike.association import Association
    from dsvpn.ike.context import Context
    from dsvpn.ike.ike_sa import IkeSa

#: Unprotected notifications: seconds between two of a type to one address, and how many a second to all.
ADDRESS_INTERVAL: Final = 0.5
TOTAL_RATE: Final = 200.0
#: Addresses that are remembered for that.
_MAX_ADDRESSES: Final = 4096
#: Seconds between two reactions of one association: to what it hears in clear, and to ESP that it does not know.
HINT_INTERVAL: Final = 5.0
_SPI_LENGTH: Final = 4


class LostSpis:
    """Limits and counts of one engine."""

    def __init__(self) -> None:
        self.spi_sent = 0
        self.spi_received = 0
        self.ike_spi_sent = 0
        self.ike_spi_received = 0
        self.tokens_accepted = 0
        self.tokens_refused = 0
        self._tokens = TOTAL_RATE
        self._filled_at = 0.0
        self._told: dict[tuple[NotifyType, Address], float] = {}

    def may_tell(self, what: NotifyType, address: Address, now: float) -> bool:
        """Whether a stranger's address may get an unprotected notification of this type."""
        self._tokens = min(TOTAL_RATE, self._tokens + (now - self._filled_at) * TOTAL_RATE)
        self._filled_at = now
        told = self._told.get((what, address))
        if self._tokens < 1.0 or (told is not None and now < told + ADDRESS_INTERVAL):
            return False
        self._tokens -= 1.0
        if told is None and len(self._told) >= _MAX_ADDRESSES:
            # The total holds; whoever is forgotten gets another one sooner.
            del self._told[next(iter(self._told))]
        self._told[what, address] = now
        return True

    def counters(self) -> dict[str, int]:
        """For `dsvpn show counters`."""
        return {
            "crash_tokens_accepted": self.tokens_accepted,
            "crash_tokens_refused": self.tokens_refused,
            "invalid_ike_spi_received": self.ike_spi_received,
            "invalid_ike_spi_sent": self.ike_spi_sent,
            "invalid_spi_received": self.spi_received,
            "invalid_spi_sent": self.spi_sent,
        }


# -- ESP -----------------------------------------------------------------------------------------------------------


def report_unknown_spi(context: Context, spi: int, path: Path, now: float) -> Association | None:
    """ESP with an unknown SPI came by `path` (port 0 for protocol 50): tell its sender. Gives the association that
    tells."""
    if spi in context.children:
        return None
    known = context.by_address.get(path.remote.address)
    if not known:
        if context.lost_spis.may_tell(NotifyType.INVALID_SPI, path.remote.address, now):
            _send_invalid_spi(context, spi, path)
        return None
    by_port = [one for one in _established(context, path.remote.address) if _sends_from(one, path.remote)]
    association = max(by_port, key=lambda one: one.handle, default=None)
    if association is None or not _may_react(association, now):
        return None
    sa = association.current
    assert sa is not None
    outstanding = sa.requests.outstanding
    if outstanding is not None and outstanding.task.exchange != ExchangeType.INFORMATIONAL:
        # It may be the SA that is being made: the peer has it first.
        return None
    association.reacted_at = now
    context.lost_spis.spi_sent += 1
    sa.add_task(ReportInvalidSpi(spi), now)
    return association


class ReportInvalidSpi(Task):
    """INVALID_SPI under the protection of the IKE SA."""

    exchange = ExchangeType.INFORMATIONAL

    def __init__(self, spi: int) -> None:
        self.spi = spi

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """The SPI that this end does not have."""
        return [wire.Notify(NotifyType.INVALID_SPI, self.spi.to_bytes(_SPI_LENGTH, "big"))]

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """What the peer does about it, it does by itself."""


def respond(sa: IkeSa, payloads: Payloads, now: float) -> None:
    """The peer, authenticated, does not have a CHILD_SA that this end seals with: replace it."""
    notify = wire.find_notify(payloads, NotifyType.INVALID_SPI)
    association = sa.association
    if notify is None or len(notify.data) != _SPI_LENGTH or sa is not association.current:
        return
    sa.context.lost_spis.spi_received += 1
    child = association.find_child(int.from_bytes(notify.data, "big"))
    if child is None or child.state is not ChildState.INSTALLED or child.rekey is not None:
        return
    association.delete_child(child, now)
    if not any(one.state is ChildState.INSTALLED for one in association.children):
        sa.rekey_child(None, now)


def receive_hint(context: Context, message: wire.Message, path: Path, now: float) -> Association | None:
    """An unprotected INVALID_SPI, which anybody may have sent. Gives the association that asks for a sign of life."""
    header = message.header
    if header.exchange_type != ExchangeType.INFORMATIONAL or header.is_response:
        return None
    notify = wire.find_notify(message.payloads, NotifyType.INVALID_SPI)
    if notify is None or len(notify.data) != _SPI_LENGTH:
        return None
    context.lost_spis.spi_received += 1
    spi = int.from_bytes(notify.data, "big")
    for association in _established(context, path.remote.address):
        if association.find_child(spi) is not None and _may_react(association, now):
            _ask(association, now)
            return association
    return None


# -- IKE -----------------------------------------------------------------------------------------------------------


def answer_unknown_ike_sa(context: Context, message: wire.Message, path: Path, now: float) -> None:
    """A request under an IKE SA that this end does not have."""
    header = message.header
    spis = (header.initiator_spi, header.responder_spi)
    if header.is_response or ZERO_SPI in spis or not message.payloads:
        return
    if not isinstance(message.payloads[-1], wire.Encrypted | wire.EncryptedFragment):
        return
    # A token must never be shown for an IKE SA that lives, whichever of the SPIs is ours (RFC 6290 section 9.2).
    if any(spi in context.ike_sas for spi in spis):
        return
    if not context.lost_spis.may_tell(NotifyType.INVALID_IKE_SPI, path.remote.address, now):
        return
    flags = Flag.RESPONSE | (0 if header.from_initiator else Flag.INITIATOR)
    reply = wire.Header(*spis, header.exchange_type, flags, header.message_id)
    token = quick_crash.token_payloads(context.token_secret, *spis)
    context.lost_spis.ike_spi_sent += 1
    context.send(wire.Message(reply, (wire.Notify(NotifyType.INVALID_IKE_SPI), *token)).encode(), path)


def receive_unprotected(sa: IkeSa, message: wire.Message, now: float) -> None:
    """A message for `sa` that nothing protects: only INVALID_IKE_SPI means something, and only a token proves it."""
    if not message.header.is_response or sa.state not in (IkeState.ESTABLISHED, IkeState.REKEYED, IkeState.DELETING):
        return
    if wire.find_notify(message.payloads, NotifyType.INVALID_IKE_SPI) is None:
        return
    association, lost = sa.association, sa.context.lost_spis
    lost.ike_spi_received += 1
    proved = quick_crash.proves_loss(sa, message.payloads)
    if proved:
        lost.tokens_accepted += 1
        if sa is association.current and association.established:
            association.collapse("the peer proves that it has lost it: it has started anew", now)
        else:
            association.remove_ike_sa(sa, now)
        return
    if proved is False:
        lost.tokens_refused += 1
    if sa is association.current and _may_react(association, now):
        _ask(association, now)


# -- inside --------------------------------------------------------------------------------------------------------


def _send_invalid_spi(context: Context, spi: int, path: Path) -> None:
    # Zero SPIs, which this message alone may have (RFC 7296 section 1.5).
    header = wire.Header(ZERO_SPI, ZERO_SPI, ExchangeType.INFORMATIONAL, Flag.INITIATOR, 0)
    notify = wire.Notify(NotifyType.INVALID_SPI, spi.to_bytes(_SPI_LENGTH, "big"))
    way = Path(*(end if end.port else Endpoint(end.address, IKE_PORT) for end in path))
    context.lost_spis.spi_sent += 1
    context.send(wire.Message(header, (notify,)).encode(), way)


def _established(context: Context, address: Address) -> Iterator[Association]:
    for association in context.by_address.get(address, ()):
        current = association.current
        if association.established and current is not None and current.state is IkeState.ESTABLISHED:
            yield association


def _sends_from(association: Association, remote: Endpoint) -> bool:
    if remote.port == 0:
        return not association.udp_encapsulation
    return association.path.remote == remote


def _may_react(association: Association, now: float) -> bool:
    return now >= association.reacted_at + HINT_INTERVAL


def _ask(association: Association, now: float) -> None:
    association.reacted_at = now
    assert association.current is not None
    association.current.check_liveness(now)
