"""IKE_AUTH as initiator (RFC 7296 section 1.2): both ends prove who they are, and the first CHILD_SA comes with it.

HDR, SK {IDi, [CERT, …] [N(INITIAL_CONTACT)], [CERTREQ], [IDr], AUTH, N(USE_TRANSPORT_MODE), SAi2, TSi, TSr}  -->
                                <--  HDR, SK {IDr, [CERT, …] AUTH, N(USE_TRANSPORT_MODE), SAr2, TSi, TSr}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsvpn.errors import PeerError
from dsvpn.ike import mobike, quick_crash, redirect
from dsvpn.ike.authentication import proof as proofs
from dsvpn.ike.child_exchange import Negotiated, accept_answer, offer_child
from dsvpn.ike.identity import Identity
from dsvpn.ike.ppk import Ppk, PpkKeys, answers_with_ppk, mixed_keys, plain_keys, take_keys
from dsvpn.ike.profile import IkeProfile
from dsvpn.ike.state import IkeState
from dsvpn.ike.suites import EspSuite
from dsvpn.ike.task import Payloads, Task, first_error
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, NotifyType

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa


class IkeAuth(Task):
    """Authenticate and make the first CHILD_SA, unless `childless`."""

    exchange = ExchangeType.IKE_AUTH

    def __init__(self, profile: IkeProfile, childless: bool = False) -> None:
        self.profile = profile
        self.childless = childless
        # Without groups, suites that differ only in those are one.
        by_transform = {suite.transform: suite for suite in reversed(profile.esp)}
        self.suites: tuple[EspSuite, ...] = tuple(suite for suite in profile.esp if suite in by_transform.values())
        self.inbound_spi: int | None = None
        #: The PPK that is offered, and the keys without it, for a responder that does not have it.
        self.ppk: Ppk | None = None
        self.prover: proofs.Prover | None = None
        self.keys_without_ppk: PpkKeys | None = None

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """Our identity and its proof, and the offer of the CHILD_SA."""
        context, profile = sa.context, self.profile
        remote = None if profile.remote_identity is None else profile.remote_identity.exact
        identity = wire.IdentificationInitiator(profile.local_identity.kind, profile.local_identity.data)
        try:
            self.prover = proofs.Prover(profile, remote)
            ppk_payloads = self._offer_ppk(sa, identity)
            proof = self.prover.prove(sa, identity)
        except PeerError as problem:
            sa.association.collapse(problem.reason, now)
            return None
        if not self.childless:
            self.inbound_spi = context.allocate_spi()
            if self.inbound_spi is None:
                sa.association.collapse("no inbound SPI left", now)
                return None
        payloads: list[wire.Payload] = [identity, *self.prover.certificates()]
        if self._is_first_contact(sa):
            payloads.append(wire.Notify(NotifyType.INITIAL_CONTACT))
        if profile.trust is not None:
            payloads += proofs.request([profile.trust])
        if remote is not None:
            payloads.append(wire.IdentificationResponder(remote.kind, remote.data))
        payloads.append(proof)
        if self.inbound_spi is not None:
            payloads += sa.association.per_resource.offer()
            payloads += offer_child(sa, self.suites, self.inbound_spi, with_groups=False)
        return payloads + mobike.announce(profile) + quick_crash.give_token(sa) + ppk_payloads

    def _offer_ppk(self, sa: IkeSa, identity: wire.IdentificationInitiator) -> list[wire.Payload]:
        """PPK_IDENTITY and NO_PPK_AUTH; the keys change (RFC 8784 section 3)."""
        if not sa.use_ppk:
            return []
        assert self.prover is not None
        self.ppk = ppk = self.profile.ppks[0]
        self.keys_without_ppk = plain_keys(sa)
        payloads: list[wire.Payload] = [ppk.payload]
        if not ppk.required:
            payloads.append(wire.Notify(NotifyType.NO_PPK_AUTH, self.prover.prove(sa, identity).data))
        take_keys(sa, mixed_keys(sa, ppk))
        return payloads

    def _settle_ppk(self, sa: IkeSa, payloads: Payloads) -> None:
        """Whether the peer has the PPK too. PeerError when it must."""
        if self.ppk is None or self.keys_without_ppk is None:
            return
        if answers_with_ppk(payloads):
            sa.ppk = self.ppk.identity
        elif self.ppk.required:
            raise PeerError("peer does not have the PPK, which is required")
        else:
            take_keys(sa, self.keys_without_ppk)

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """The peer's proof and the CHILD_SA."""
        association = sa.association
        error = first_error(payloads)
        identity = wire.find(payloads, wire.IdentificationResponder)
        proof = wire.find(payloads, wire.Authentication)
        if error is not None and proof is None:
            # The peer keeps no IKE SA after this (RFC 7296 section 2.21.2).
            self._release(sa)
            association.collapse(_explain(error), now)
            return
        try:
            self._authenticate(sa, payloads, identity, proof)
        except PeerError as problem:
            self._release(sa)
            sa.say_goodbye(problem.reason, now, NotifyType.AUTHENTICATION_FAILED)
            return
        initial_contact = wire.find_notify(payloads, NotifyType.INITIAL_CONTACT) is not None
        mobike.take_announcement(association, payloads)
        elsewhere = redirect.find(payloads)
        if elsewhere is None:
            quick_crash.take_token(sa, payloads)
        if self.childless and error is None and elsewhere is None:
            sa.establish(now)
            association.establish(initial_contact, None, now)
            association.reauthentication.note_lifetime(payloads, now)
            sa.rekey_child(None, now)
            return
        try:
            if elsewhere is not None:
                raise PeerError(redirect.follow(sa, elsewhere, None, established=False))
            if error is not None:
                raise PeerError(f"peer refuses the CHILD_SA: {error.name}")
            assert self.inbound_spi is not None
            nonces = (sa.nonce_i, sa.nonce_r)
            child = accept_answer(sa, payloads, self.suites, self.inbound_spi, nonces, with_groups=False)
        except PeerError as problem:
            # An IKE SA without CHILD_SA carries nothing here: let both ends see the reason instead.
            self._release(sa)
            sa.say_goodbye(problem.reason, now)
            return
        self.inbound_spi = None
        sa.establish(now)
        association.per_resource.take_answer(payloads)
        association.establish(initial_contact, child.remote_claimed, now)
        association.reauthentication.note_lifetime(payloads, now)
        _install(sa, child, now)

    def abandon(self, sa: IkeSa, now: float) -> None:
        """The SPI was never used."""
        self._release(sa)

    def _authenticate(
        self,
        sa: IkeSa,
        payloads: Payloads,
        identity: wire.IdentificationResponder | None,
        proof: wire.Authentication | None,
    ) -> None:
        if identity is None or proof is None:
            raise PeerError("peer's IKE_AUTH answer lacks identity or proof")
        remote = Identity(identity.id_type, identity.data)
        sa.association.reauthentication.check(remote)
        expected = self.profile.remote_identity
        if expected is not None and not expected.matches(remote):
            raise PeerError(f"peer is {remote}, not {expected}")
        self._settle_ppk(sa, payloads)
        proved = proofs.check(sa, self.profile, identity, proof, payloads)
        sa.association.proved = proved
        sa.association.local_identity = self.profile.local_identity
        sa.association.remote_identity = remote

    def _is_first_contact(self, sa: IkeSa) -> bool:
        """No other IKE SA with this peer, be it only beginning: both ends that start at once must not take the
        other's for a leftover (RFC 7296 section 2.4)."""
        others = sa.context.by_address.get(sa.association.path.remote.address, ())
        return not any(
            one.state in (IkeState.CONNECTING, IkeState.HALF_OPEN, IkeState.ESTABLISHED)
            for other in others
            if other is not sa.association
            for one in other.ike_sas
        )

    def _release(self, sa: IkeSa) -> None:
        if self.inbound_spi is not None:
            sa.context.release_spi(self.inbound_spi)
            self.inbound_spi = None


def _install(sa: IkeSa, child: Negotiated, now: float) -> None:
    sa.association.install_child(
        child.suite,
        child.esn,
        (child.inbound_spi, child.outbound_spi),
        # The initiator of the exchange seals with the first half.
        (child.inbound_keymat, child.outbound_keymat),
        replaces=None,
        outbound_ready=True,
        now=now,
    )


def _explain(error: wire.Notify) -> str:
    if error.type == NotifyType.AUTHENTICATION_FAILED:
        causes = "another pre-shared key, a certificate it does not take, or identities that do not match"
        return f"peer refuses us: AUTHENTICATION_FAILED ({causes})"
    return f"peer refuses us: {error.name}"
