"""What a peer's NHRP packets may say, before they are believed or passed on: nothing in the name of another.

An NHS that a gateway registers with is trusted with what it passes on, so it is the NHS that has to look at what its
clients say.
"""

from __future__ import annotations

from collections.abc import Collection

from dsvpn.addresses import Prefix
from dsvpn.nhrp.context import NhrpContext, nat_nbma
from dsvpn.nhrp.events import DeniedAction
from dsvpn.nhrp.limits import MAX_CIES
from dsvpn.wire.nhrp import NhrpMessage
from dsvpn.wire.nhrp_cie import UNIQUE_PREFIX_LENGTH, CieCode


def request_is_own(
    context: NhrpContext, message: NhrpMessage, peer: int, now: float, action: DeniedAction = "resolve"
) -> bool:
    """Whether the source of a request is one of the peer that it came from."""
    source = message.source_protocol
    if source is None or context.authorization.speaks_for(peer, source, now):
        return True
    context.deny(peer, action, source, "it does not have that address", now)
    return False


def limit_answer(context: NhrpContext, message: NhrpMessage, peer: int, onward: int | None, now: float) -> bool:
    """As NHS, take out of a Resolution Reply of a client what is not its own; False when nothing is left of it.

    `onward` is where requests for the destination are passed on to.
    """
    authorization = context.authorization
    destination = message.destination_protocol
    if destination is None or authorization.trusts(peer):
        return True
    kept = []
    for cie in message.cies[:MAX_CIES]:
        if cie.code != CieCode.SUCCESS:
            kept.append(cie)
            continue
        responder = cie.protocol if cie.protocol is not None else destination
        if not authorization.speaks_for(peer, responder, now):
            context.deny(peer, "answer", responder, "it does not have that address", now)
            continue
        unique = cie.prefix_length in (0, UNIQUE_PREFIX_LENGTH)
        length = destination.max_prefixlen if unique else cie.prefix_length
        allowed = authorization.answerable(peer, destination, length, onward)
        if allowed is None:
            context.deny(peer, "answer", destination, "it is not the way there", now)
            continue
        if not unique and allowed.prefixlen != cie.prefix_length:
            context.count("narrowed.answer")
            cie.prefix_length = allowed.prefixlen
        kept.append(cie)
    message.cies = kept
    return bool(kept)


def answer_is_own(context: NhrpContext, message: NhrpMessage, peer: int, now: float) -> bool:
    """Whether a Resolution Reply for this gateway came from an NHS, or from the very gateway that it names.

    A responder may answer through the direct path, but then for itself alone.
    """
    if context.authorization.trusts(peer):
        return True
    at = context.peers.nbma(peer)
    for cie in message.cies[:MAX_CIES]:
        responder = cie.protocol if cie.protocol is not None else message.destination_protocol
        if cie.code != CieCode.SUCCESS or responder is None:
            continue
        if (nat_nbma(message.extensions, responder) or cie.nbma) != at:
            context.deny(peer, "answer", responder, f"it is at {at} and answers for {cie.nbma}", now)
            return False
    return True


def limit_purge(context: NhrpContext, message: NhrpMessage, peer: int, told: Collection[Prefix], now: float) -> bool:
    """As NHS, take out of a client's Purge Request what it never had; False when nothing is left of it.

    `told` are the prefixes that the destination was told by that client through here: those are its to take back even
    when they are routed elsewhere by then.
    """
    authorization = context.authorization
    source = message.source_protocol
    if source is None or authorization.trusts(peer):
        return True
    if not authorization.speaks_for(peer, source, now):
        context.deny(peer, "purge", source, "it does not have that address", now)
        return False
    kept = []
    for cie in message.cies[:MAX_CIES]:
        protocol = cie.protocol
        if protocol is None:
            continue
        if authorization.speaks_for(peer, protocol, now) or any(protocol in prefix for prefix in told):
            kept.append(cie)
        else:
            context.deny(peer, "purge", protocol, "it is not the way there", now)
    message.cies = kept
    return bool(kept)
