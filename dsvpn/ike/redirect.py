"""Redirect: a gateway hands an initiator on to another one (RFC 5685).

    HDR, SA, KE, Ni, N(REDIRECT_SUPPORTED)  -->
                                    <--  HDR, N(REDIRECT, new gateway, Ni)          in IKE_SA_INIT, not authenticated
                               or   <--  HDR, SK {IDr, AUTH, N(REDIRECT, new gateway)}      in IKE_AUTH
                               or   <--  HDR, SK {N(REDIRECT, new gateway)}    later, in INFORMATIONAL
    HDR, SA, KE, Ni, N(REDIRECTED_FROM, old gateway)  -->  the new gateway

The initiator follows only where its profile allows it; the new gateway has to prove itself by the same profile. How
often in a row is for the owner to limit (`dsvpn/gateway/redirects.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from dsvpn.addresses import Address
from dsvpn.errors import PeerError
from dsvpn.ike.events import IkeRedirected
from dsvpn.ike.state import FAREWELL
from dsvpn.ike.task import Payloads, Task
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, NotifyType

if TYPE_CHECKING:
    from dsvpn.ike.context import Context
    from dsvpn.ike.ike_sa import IkeSa
    from dsvpn.ike.profile import IkeProfile


class GatewayIdentityType(IntEnum):
    """How REDIRECT and REDIRECTED_FROM name a gateway (RFC 5685 sections 9.2 and 9.3)."""

    IPV4 = 1
    IPV6 = 2
    FQDN = 3


@dataclass(slots=True)
class RedirectCounts:
    """What one engine did."""

    sent: int = 0
    followed: int = 0
    refused: int = 0

    def counters(self) -> dict[str, int]:
        """For `dsvpn show counters`."""
        return {
            "redirects_followed": self.followed,
            "redirects_refused": self.refused,
            "redirects_sent": self.sent,
        }


def encode_gateway(address: Address, nonce: bytes = b"") -> bytes:
    """Notification data: type, length, address, and in IKE_SA_INIT the initiator's nonce."""
    kind = GatewayIdentityType.IPV4 if address.version == 4 else GatewayIdentityType.IPV6
    return bytes((kind, len(address.packed))) + address.packed + nonce


def decode_gateway(data: bytes) -> tuple[Address, bytes]:
    """The address and the nonce behind it. PeerError for what is none; names are not looked up."""
    if len(data) < 2 or len(data) < 2 + data[1]:
        raise PeerError("peer's redirect is truncated", NotifyType.INVALID_SYNTAX)
    kind, identity, nonce = data[0], data[2 : 2 + data[1]], data[2 + data[1] :]
    if kind == GatewayIdentityType.IPV4 and len(identity) == 4:
        return IPv4Address(identity), nonce
    if kind == GatewayIdentityType.IPV6 and len(identity) == 16:
        return IPv6Address(identity), nonce
    if kind == GatewayIdentityType.FQDN:
        raise PeerError("peer redirects to a name; only addresses are followed")
    raise PeerError(f"peer redirects to a gateway of type {kind}", NotifyType.INVALID_SYNTAX)


# -- the initiator -------------------------------------------------------------------------------------------------


def announce(profile: IkeProfile, redirected_from: Address | None) -> list[wire.Payload]:
    """REDIRECT_SUPPORTED, and REDIRECTED_FROM when another gateway has sent us here."""
    if not profile.follow_redirects:
        return []
    payloads: list[wire.Payload] = [wire.Notify(NotifyType.REDIRECT_SUPPORTED)]
    if redirected_from is not None:
        payloads.append(wire.Notify(NotifyType.REDIRECTED_FROM, encode_gateway(redirected_from)))
    return payloads


def find(payloads: Payloads) -> wire.Notify | None:
    """The peer's REDIRECT."""
    return wire.find_notify(payloads, NotifyType.REDIRECT)


def follow(sa: IkeSa, notify: wire.Notify, nonce: bytes | None, *, established: bool) -> str:
    """Tell the owner where to go. Gives why the IKE SA ends; PeerError when the redirect is not to be followed.

    `nonce` is what must come back in IKE_SA_INIT (RFC 5685 section 3), None elsewhere.
    """
    association, counts = sa.association, sa.context.redirects
    try:
        target, returned = decode_gateway(notify.data)
        if nonce is not None and returned != nonce:
            raise PeerError("peer's redirect lacks our nonce")
        profile = association.profile
        assert profile is not None
        if not association.initiator:
            raise PeerError("only who has called can be redirected")
        if target == association.path.remote.address or target.is_multicast or target.is_unspecified:
            raise PeerError(f"peer redirects to {target}, which leads nowhere")
        if not any(target in prefix for prefix in profile.follow_redirects):
            raise PeerError(f"peer redirects to {target}, which follow_redirects does not allow")
    except PeerError:
        counts.refused += 1
        raise
    counts.followed += 1
    sender = association.path.remote.address
    sa.context.emit(IkeRedirected(association.handle, profile.name, sender, target, established))
    return f"peer redirects to {target}"


# -- the gateway ---------------------------------------------------------------------------------------------------


def note_support(sa: IkeSa, payloads: Payloads) -> None:
    """What the initiator's IKE_SA_INIT says of redirects."""
    supported, origin = _support(payloads)
    sa.association.redirectable = supported
    sa.association.redirected_from = origin


def refuse_init(context: Context, payloads: Payloads, nonce: bytes) -> None:
    """PeerError with REDIRECT when every profile hands callers on before it knows them."""
    targets = {profile.redirect_to if profile.redirect_early else None for profile in context.profiles.values()}
    supported, origin = _support(payloads)
    (target, *others) = targets or {None}
    # Back to where it came from would be a loop of two (RFC 5685 section 7).
    if target is not None and not others and supported and target != origin:
        context.redirects.sent += 1
        raise PeerError(f"caller is redirected to {target}", NotifyType.REDIRECT, encode_gateway(target, nonce))


def redirect_authenticated(sa: IkeSa, profile: IkeProfile, now: float) -> list[wire.Payload]:
    """REDIRECT for a caller that has just proved itself, who then deletes the IKE SA; nothing for one that stays."""
    association, target = sa.association, profile.redirect_to
    if target is None or not association.redirectable or target == association.redirected_from:
        return []
    sa.context.redirects.sent += 1
    sa.establish(now)
    sa.drop_at = now + FAREWELL
    return [wire.Notify(NotifyType.REDIRECT, encode_gateway(target))]


class Redirect(Task):
    """Hand an established initiator on (RFC 5685 section 5)."""

    exchange = ExchangeType.INFORMATIONAL
    survives_ike_rekey = True

    def __init__(self, target: Address) -> None:
        self.target = target

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """REDIRECT without nonce."""
        sa.context.redirects.sent += 1
        return [wire.Notify(NotifyType.REDIRECT, encode_gateway(self.target))]

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """The peer goes when it is there."""


def respond(sa: IkeSa, payloads: Payloads) -> None:
    """The gateway of an established IKE SA hands us on. What is not to be followed changes nothing."""
    notify = find(payloads)
    if notify is not None and sa is sa.association.current:
        try:
            follow(sa, notify, None, established=True)
        except PeerError as problem:
            if problem.code is not None:
                raise


def _support(payloads: Payloads) -> tuple[bool, Address | None]:
    origin: Address | None = None
    came = wire.find_notify(payloads, NotifyType.REDIRECTED_FROM)
    if came is not None:
        try:
            origin = decode_gateway(came.data)[0]
        except PeerError:
            origin = None
    return came is not None or wire.find_notify(payloads, NotifyType.REDIRECT_SUPPORTED) is not None, origin
