"""IKE_SA_INIT as responder (RFC 7296 sections 1.2, 2.6, 2.7).

    HDR, SAi1, KEi, Ni, N(NAT_DETECTION_*)  -->
                                    <--  HDR, SAr1, KEr, Nr, N(NAT_DETECTION_*)
                               or   <--  HDR, N(INVALID_KE_PAYLOAD) or N(NO_PROPOSAL_CHOSEN)

A refusal leaves no state behind.
"""

from __future__ import annotations

from dsvpn.addresses import Path
from dsvpn.errors import PeerError
from dsvpn.ike import childless, fragmentation, mobike, nat, redirect
from dsvpn.ike.association import Association
from dsvpn.ike.authentication import proof as proofs
from dsvpn.ike.context import Context
from dsvpn.ike.ike_sa import IkeSa
from dsvpn.ike.key_exchange import answer_key_exchange
from dsvpn.ike.keymat import derive_ike_keys
from dsvpn.ike.proposals import choose_ike
from dsvpn.ike.state import HALF_OPEN_LIFETIME, IkeState
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, Flag, NotifyType


def respond_init(context: Context, message: wire.Message, data: bytes, path: Path, now: float) -> Association | None:
    """Answer an IKE_SA_INIT request; gives the half-open association, if one came of it."""
    header = message.header
    earlier = context.half_open.find(path.remote, data)
    if earlier is not None:
        if earlier.state is IkeState.HALF_OPEN:
            context.send(earlier.init_response, path)
        return None
    try:
        return _accept(context, message, data, path, now)
    except PeerError as error:
        if error.code is not None:
            reply = wire.Header(header.initiator_spi, wire.ZERO_SPI, ExchangeType.IKE_SA_INIT, Flag.RESPONSE, 0)
            context.send(wire.Message(reply, (wire.Notify(error.code, error.data),)).encode(), path)
        return None


def _accept(context: Context, message: wire.Message, data: bytes, path: Path, now: float) -> Association:
    header, payloads = message.header, message.payloads
    critical = wire.unsupported_critical(payloads)
    if critical is not None:
        kind = bytes((critical.payload_type,))
        raise PeerError("critical payload", NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD, kind)
    offer = wire.find(payloads, wire.SecurityAssociation)
    public = wire.find(payloads, wire.KeyExchange)
    nonce = wire.find(payloads, wire.Nonce)
    if offer is None or public is None or nonce is None or header.initiator_spi == wire.ZERO_SPI:
        raise PeerError("IKE_SA_INIT lacks SA, KE, nonce or SPI", NotifyType.INVALID_SYNTAX)
    mobike.check_prohibition(payloads, path)
    redirect.refuse_init(context, payloads, nonce.data)
    # Which profile it is, IKE_AUTH tells: the suite is the best that any of them has in common with the peer.
    intermediate = wire.find_notify(payloads, NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED) is not None
    # IKE_INTERMEDIATE carries additional key exchanges, if both ends have it (RFC 9370 section 2.2.1).
    choice = choose_ike(context.suites if intermediate else context.plain_suites, offer, b"")
    if choice is None:
        raise PeerError("no suite in common", NotifyType.NO_PROPOSAL_CHOSEN)
    group = choice.suite.group
    if public.group != group.key_exchange_id:
        wanted = group.key_exchange_id.to_bytes(2, "big")
        raise PeerError("key exchange of another group", NotifyType.INVALID_KE_PAYLOAD, wanted)
    public_value, secret = answer_key_exchange(group, public.data, context.random, context.kems)

    association = Association(context, None, path, now)
    sa = IkeSa(association, False, header.initiator_spi, context.new_ike_spi(), now)
    sa.nonce_i, sa.nonce_r = nonce.data, context.new_nonce()
    sa.drop_at = now + HALF_OPEN_LIFETIME
    redirect.note_support(sa, payloads)
    sa.responses.expected_id = 1
    findings = nat.detect(payloads, sa.initiator_spi, wire.ZERO_SPI, path)
    association.local_nat, association.remote_nat = findings.local_nat, findings.remote_nat
    forced = any(profile.force_udp_encapsulation for profile in context.profiles.values())
    association.udp_encapsulation = findings.supported and (findings.local_nat or findings.remote_nat or forced)
    answer: list[wire.Payload] = [
        wire.SecurityAssociation((choice.answer,)),
        wire.KeyExchange(group.key_exchange_id, public_value),
        wire.Nonce(sa.nonce_r),
    ]
    if wire.find_notify(payloads, NotifyType.USE_PPK) is not None:
        sa.use_ppk = any(profile.ppks for profile in context.profiles.values())
    if sa.use_ppk:
        answer.append(wire.Notify(NotifyType.USE_PPK))
    if choice.suite.additional:
        answer.append(wire.Notify(NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED))
    association.fragmentation = fragmentation.is_supported(payloads)
    if association.fragmentation:
        answer.append(fragmentation.supported())
    answer += childless.supported(context.profiles.values())
    proofs.note_hashes(sa, payloads)
    answer += proofs.announce(list(context.profiles.values()), with_request=True)
    if findings.supported:
        answer += nat.detection_payloads(sa.initiator_spi, sa.responder_spi, path, forced, context.random)
    sa.init_request = data
    reply = wire.Header(sa.initiator_spi, sa.responder_spi, ExchangeType.IKE_SA_INIT, Flag.RESPONSE, 0)
    sa.init_response = wire.Message(reply, tuple(answer)).encode()
    sa.set_keys(
        choice.suite,
        derive_ike_keys(choice.suite, secret, sa.nonce_i, sa.nonce_r, sa.initiator_spi, sa.responder_spi),
    )
    sa.expect_additional(choice.suite)
    association.add_ike_sa(sa)
    association.current = sa
    context.half_open.add(sa, path.remote, data, now)
    context.send(sa.init_response, path)
    return association
