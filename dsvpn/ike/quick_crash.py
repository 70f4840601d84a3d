"""Quick crash detection: an end that lost an IKE SA proves it, and the other ends it at once (RFC 6290).

A token is a MAC over the SPIs under a secret that survives a restart. It is given away under the IKE SA's protection,
and shown in clear only by an end that has no such IKE SA:

    HDR, SK {…, N(QCD_TOKEN)}  -->  (IKE_AUTH; CREATE_CHILD_SA or INFORMATIONAL after a rekey)
                                    … restart …
    HDR, SK {…}  -->
                                    <--  HDR, N(INVALID_IKE_SPI), N(QCD_TOKEN)
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from dsvpn.ike.task import Payloads, Task
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, NotifyType, ProtocolId

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa

#: Octets that a token may have (RFC 6290 section 4.1).
TOKEN_LENGTHS: Final = range(16, 129)
#: Tokens of one message that are looked at: a peer may have had several secrets (RFC 6290 section 4.5).
_MAX_TOKENS: Final = 4


def make_token(secret: bytes, initiator_spi: bytes, responder_spi: bytes) -> bytes:
    """The token of an IKE SA (RFC 6290 section 5.1)."""
    return hmac.digest(secret, initiator_spi + responder_spi, hashlib.sha256)


def token_payloads(secret: bytes, initiator_spi: bytes, responder_spi: bytes) -> list[wire.Payload]:
    """QCD_TOKEN, nothing without a secret."""
    if not secret:
        return []
    token = make_token(secret, initiator_spi, responder_spi)
    return [wire.Notify(NotifyType.QUICK_CRASH_DETECTION, token, ProtocolId.IKE)]


def give_token(sa: IkeSa) -> list[wire.Payload]:
    """QCD_TOKEN of an IKE SA, for a message under its protection or that of the one before it."""
    return token_payloads(sa.context.token_secret, sa.initiator_spi, sa.responder_spi)


def take_token(sa: IkeSa, payloads: Payloads) -> None:
    """Remember the token that the peer has given, if it has."""
    given = wire.find_notify(payloads, NotifyType.QUICK_CRASH_DETECTION)
    if given is not None and len(given.data) in TOKEN_LENGTHS:
        sa.peer_token = given.data


def proves_loss(sa: IkeSa, payloads: Payloads) -> bool | None:
    """Whether an unprotected message shows the token that the peer gave for this IKE SA; None when it shows none."""
    shown = [p.data for p in payloads if isinstance(p, wire.Notify) and p.type == NotifyType.QUICK_CRASH_DETECTION]
    if not shown:
        return None
    return bool(sa.peer_token) and any(hmac.compare_digest(token, sa.peer_token) for token in shown[:_MAX_TOKENS])


class GiveToken(Task):
    """Give the token of a rekeyed IKE SA (RFC 6290 section 4.3)."""

    exchange = ExchangeType.INFORMATIONAL

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """QCD_TOKEN."""
        return give_token(sa) or None

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """The peer has it."""
