"""IKE_FOLLOWUP_KE as responder: additional key exchanges behind CREATE_CHILD_SA (RFC 9370 section 2.2.4).

    HDR, SK {KEi(n), N(ADDITIONAL_KEY_EXCHANGE, link)}  -->
                        <--  HDR, SK {KEr(n), [N(ADDITIONAL_KEY_EXCHANGE, link)]}

The new SA exists when the last of them is answered. Until then it is a `Followup` of the IKE SA that carries it:
nothing seals with it, and what it replaces stays in use. The link that the responder gives, in its answer to
CREATE_CHILD_SA and in each answer but the last, is what the next request names it by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dsvpn.errors import PeerError
from dsvpn.ike.key_exchange import answer_key_exchange
from dsvpn.ike.suites import Additional
from dsvpn.ike.task import Payloads
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa

#: Seconds that the peer has for its next request, longer than any peer retransmits.
FOLLOWUP_LIFETIME: Final = 60.0
_LINK_LENGTH: Final = 8


class Followup:
    """An SA that the peer asked for and whose additional key exchanges are not all done. `secrets` is SK(1) | SK(2) |
    ... so far."""

    def __init__(self, sa: IkeSa, additional: tuple[Additional, ...], now: float) -> None:
        self.link = sa.context.random(_LINK_LENGTH)
        self.additional = additional
        self.secrets = b""
        self.expires_at = now + FOLLOWUP_LIFETIME

    @property
    def payload(self) -> wire.Notify:
        """What the peer's next request has to bring back."""
        return wire.Notify(NotifyType.ADDITIONAL_KEY_EXCHANGE, self.link)

    def check(self, sa: IkeSa) -> None:
        """Whether the SA may still be made. PeerError with what to answer otherwise."""
        raise NotImplementedError

    def complete(self, sa: IkeSa, now: float) -> list[wire.Payload]:
        """The last key exchange is done: make the SA. Gives what the answer says besides."""
        raise NotImplementedError

    def drop(self, sa: IkeSa) -> None:
        """Nothing comes of it: give back what it holds."""


def respond_followup(sa: IkeSa, payloads: Payloads, now: float) -> list[wire.Payload]:
    """Answer the peer's next additional key exchange."""
    link = wire.find_notify(payloads, NotifyType.ADDITIONAL_KEY_EXCHANGE)
    public = wire.find(payloads, wire.KeyExchange)
    if link is None or public is None:
        raise PeerError("IKE_FOLLOWUP_KE lacks link or KE", NotifyType.INVALID_SYNTAX)
    followup = sa.followup
    if followup is None or link.data != followup.link:
        raise PeerError("no key exchange has this link", NotifyType.STATE_NOT_FOUND)
    group = followup.additional[0][1]
    try:
        followup.check(sa)
        if public.group != group.key_exchange_id:
            raise PeerError(f"additional key exchange is not the {group.name} of the proposal")
        value, secret = answer_key_exchange(group, public.data, sa.context.random, sa.context.kems)
    except PeerError as error:
        sa.drop_followup()
        raise PeerError(error.reason, error.code or NotifyType.INVALID_SYNTAX) from None
    followup.secrets += secret
    followup.additional = followup.additional[1:]
    followup.expires_at = now + FOLLOWUP_LIFETIME
    answer: list[wire.Payload] = [wire.KeyExchange(group.key_exchange_id, value)]
    if followup.additional:
        return [*answer, followup.payload]
    sa.followup = None
    return answer + followup.complete(sa, now)


def take_link(payloads: Payloads) -> wire.Notify:
    """As initiator: the link to bring back in the next request. PeerError when the answer has none."""
    link = wire.find_notify(payloads, NotifyType.ADDITIONAL_KEY_EXCHANGE)
    if link is None:
        raise PeerError("peer's answer has no link for the additional key exchange")
    return wire.Notify(NotifyType.ADDITIONAL_KEY_EXCHANGE, link.data)


def take_public_value(payloads: Payloads, key_exchange_id: int) -> bytes:
    """As initiator: the peer's public value. PeerError when it is missing or of another method."""
    public = wire.find(payloads, wire.KeyExchange)
    if public is None or public.group != key_exchange_id:
        raise PeerError("peer's additional key exchange is not the one of its proposal")
    return public.data
