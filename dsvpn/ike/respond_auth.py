"""IKE_AUTH as responder: which profile, is it true, and the first CHILD_SA (RFC 7296 sections 1.2, 2.15, 2.21.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsvpn.addresses import Path
from dsvpn.errors import PeerError
from dsvpn.ike import childless, mobike, quick_crash, redirect
from dsvpn.ike.authentication import proof as proofs
from dsvpn.ike.child_exchange import answer_offer
from dsvpn.ike.identity import Identity
from dsvpn.ike.mode import mode_payloads
from dsvpn.ike.ppk import choose_ppk, mixed_keys, plain_keys, proof_data, take_keys
from dsvpn.ike.profile import IkeProfile
from dsvpn.ike.state import IkeState
from dsvpn.ike.task import Payloads
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa


def respond_auth(sa: IkeSa, payloads: Payloads, path: Path, now: float) -> list[wire.Payload]:
    """The payloads of the answer; whoever is refused leaves an IKE SA that only repeats the refusal."""
    association, context = sa.association, sa.context
    # The move to port 4500 shows here first, and what the peer proves below holds for this path.
    association.path = path
    identity = wire.find(payloads, wire.IdentificationInitiator)
    remote = None if identity is None else Identity(identity.id_type, identity.data)
    profile_name = ""
    try:
        if identity is None or remote is None:
            raise PeerError("IKE_AUTH without identity", NotifyType.INVALID_SYNTAX)
        candidates = _candidates(sa, remote, payloads)
        profile_name = candidates[0].name
        profile, proved = _authenticate(sa, candidates, identity, payloads)
        answer = _prove(sa, profile, remote, payloads)
    except PeerError as error:
        context.refuse(profile_name, path, "nobody" if remote is None else str(remote), error.reason, now)
        sa.state = IkeState.DEAD
        return [wire.Notify(error.code if error.code is not None else NotifyType.AUTHENTICATION_FAILED)]

    context.half_open.discard(sa)
    association.profile = profile
    association.local_identity, association.remote_identity = profile.local_identity, remote
    association.proved = proved
    if sa.ppk is not None:
        answer.append(wire.Notify(NotifyType.PPK_IDENTITY))
    elsewhere = redirect.redirect_authenticated(sa, profile, now)
    if elsewhere:
        return answer + elsewhere
    sa.establish(now)
    initial_contact = wire.find_notify(payloads, NotifyType.INITIAL_CONTACT) is not None
    mobike.take_announcement(association, payloads)
    if association.mobike is not None:
        answer += mobike.announce(profile)
    quick_crash.take_token(sa, payloads)
    answer += quick_crash.give_token(sa)
    if childless.is_asked(profile, payloads):
        association.establish(initial_contact, None, now)
        return [*answer, *association.reauthentication.lifetime_payloads(now)]
    try:
        offer = wire.find(payloads, wire.SecurityAssociation)
        if offer is None:
            raise PeerError("peer wants no CHILD_SA", NotifyType.INVALID_SYNTAX)
        child = answer_offer(sa, offer, payloads, (sa.nonce_i, sa.nonce_r), with_groups=False)
    except PeerError as error:
        # The peer is who it says, so the IKE SA stands (RFC 7296 section 1.2), but it carries nothing here.
        context.refuse(profile.name, path, str(remote), error.reason, now)
        sa.start_delete(now)
        assert error.code is not None
        return [*answer, wire.Notify(error.code, error.data)]
    association.establish(initial_contact, child.remote_claimed, now)
    group = association.per_resource
    info = group.answer() if group.is_asked(payloads) else []
    association.install_child(
        child.suite,
        child.esn,
        (child.inbound_spi, child.outbound_spi),
        (child.inbound_keymat, child.outbound_keymat),
        replaces=None,
        outbound_ready=True,
        now=now,
    )
    assert child.sa is not None
    assert child.selectors is not None
    return [
        *answer,
        *association.reauthentication.lifetime_payloads(now),
        *info,
        *mode_payloads(profile),
        child.sa,
        wire.TrafficSelectorsInitiator((child.selectors[0],)),
        wire.TrafficSelectorsResponder((child.selectors[1],)),
    ]


def _candidates(sa: IkeSa, remote: Identity, payloads: Payloads) -> list[IkeProfile]:
    """The profiles that the peer may mean, by suite and identities."""
    wanted = wire.find(payloads, wire.IdentificationResponder)
    local = None if wanted is None else Identity(wanted.id_type, wanted.data)
    fitting = [
        profile
        for profile in sa.context.profiles.values()
        if sa.suite in profile.ike and (local is None or profile.local_identity.matches(local))
    ]
    if not fitting:
        raise PeerError(f"peer wants to speak to {local}, which is not us" if local else "no profile has this suite")
    # A profile that names the peer stands before one for anybody, whose key more people know: with it, one of them
    # could take the name.
    named = [p for p in fitting if p.remote_identity is not None and p.remote_identity.matches(remote)]
    candidates = named or [p for p in fitting if p.remote_identity is None]
    if not candidates:
        raise PeerError("no profile is for this identity")
    return candidates


def _authenticate(
    sa: IkeSa, candidates: list[IkeProfile], identity: wire.IdentificationInitiator, payloads: Payloads
) -> tuple[IkeProfile, proofs.Proved]:
    """The profile under which the peer has proved itself, and how."""
    proof = wire.find(payloads, wire.Authentication)
    if proof is None:
        raise PeerError("peer wants EAP, which is not spoken here; configure a pre-shared key or a certificate there")
    reasons: list[str] = []
    before = plain_keys(sa)
    for profile in candidates:
        try:
            ppk = choose_ppk(sa, profile, payloads)
            if ppk is not None:
                take_keys(sa, mixed_keys(sa, ppk))
            fitting = wire.Authentication(proof.method, proof_data(sa, ppk, payloads, proof.data))
            proved = proofs.check(sa, profile, identity, fitting, payloads)
        except PeerError as error:
            take_keys(sa, before)
            reasons.append(error.reason)
            continue
        sa.ppk = None if ppk is None else ppk.identity
        return profile, proved
    raise PeerError(reasons[-1])


def _prove(sa: IkeSa, profile: IkeProfile, remote: Identity, payloads: Payloads) -> list[wire.Payload]:
    """Our identity and its proof."""
    proof = wire.find(payloads, wire.Authentication)
    prover = proofs.Prover(profile, remote, None if proof is None else proof.method)
    ours = wire.IdentificationResponder(profile.local_identity.kind, profile.local_identity.data)
    return [ours, *prover.certificates(), prover.prove(sa, ours)]
