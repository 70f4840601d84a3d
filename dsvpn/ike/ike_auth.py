"""IKE_AUTH as initiator (RFC 7296 section 1.2): both ends prove who they are, and the first CHILD_SA comes with it.

HDR, SK {IDi, [N(INITIAL_CONTACT)], [IDr], AUTH, N(USE_TRANSPORT_MODE), SAi2, TSi, TSr}  -->
                                <--  HDR, SK {IDr, AUTH, N(USE_TRANSPORT_MODE), SAr2, TSi, TSr}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsvpn.errors import PeerError
from dsvpn.ike.auth import shared_key_mic, signed_octets, verify_shared_key_mic
from dsvpn.ike.child_exchange import Negotiated, accept_answer, offer_child
from dsvpn.ike.identity import Identity
from dsvpn.ike.profile import IkeProfile
from dsvpn.ike.state import IkeState
from dsvpn.ike.suites import EspSuite
from dsvpn.ike.task import Payloads, Task, first_error
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import AuthMethod, ExchangeType, NotifyType

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa


class IkeAuth(Task):
    """Authenticate by pre-shared key and make the first CHILD_SA."""

    exchange = ExchangeType.IKE_AUTH

    def __init__(self, profile: IkeProfile) -> None:
        self.profile = profile
        # Without groups, suites that differ only in those are one.
        by_cipher = {suite.cipher: suite for suite in reversed(profile.esp)}
        self.suites: tuple[EspSuite, ...] = tuple(suite for suite in profile.esp if suite in by_cipher.values())
        self.inbound_spi: int | None = None

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """Our identity and its proof, and the offer of the CHILD_SA."""
        context, profile = sa.context, self.profile
        self.inbound_spi = context.allocate_spi()
        if self.inbound_spi is None:
            sa.association.collapse("no inbound SPI left", now)
            return None
        assert sa.suite is not None
        identity = wire.IdentificationInitiator(profile.local_identity.kind, profile.local_identity.data)
        octets = signed_octets(sa.suite.prf, sa.init_request, sa.nonce_r, sa.sk_pi, identity.encode())
        payloads: list[wire.Payload] = [identity]
        if self._is_first_contact(sa):
            payloads.append(wire.Notify(NotifyType.INITIAL_CONTACT))
        if profile.remote_identity is not None:
            remote = profile.remote_identity
            payloads.append(wire.IdentificationResponder(remote.kind, remote.data))
        mic = shared_key_mic(sa.suite.prf, profile.psk, octets)
        payloads.append(wire.Authentication(AuthMethod.SHARED_KEY_MIC, mic))
        return payloads + offer_child(sa, self.suites, self.inbound_spi, with_groups=False)

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
            self._authenticate(sa, identity, proof)
        except PeerError as problem:
            self._release(sa)
            sa.say_goodbye(problem.reason, now, NotifyType.AUTHENTICATION_FAILED)
            return
        try:
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
        initial_contact = wire.find_notify(payloads, NotifyType.INITIAL_CONTACT) is not None
        sa.establish(now)
        association.establish(initial_contact, child.remote_claimed, now)
        _install(sa, child, now)

    def abandon(self, sa: IkeSa, now: float) -> None:
        """The SPI was never used."""
        self._release(sa)

    def _authenticate(
        self, sa: IkeSa, identity: wire.IdentificationResponder | None, proof: wire.Authentication | None
    ) -> None:
        if identity is None or proof is None:
            raise PeerError("peer's IKE_AUTH answer lacks identity or proof")
        remote = Identity(identity.id_type, identity.data)
        expected = self.profile.remote_identity
        if expected is not None and not expected.matches(remote):
            raise PeerError(f"peer is {remote}, not {expected}")
        if proof.method != AuthMethod.SHARED_KEY_MIC:
            method = wire.name_of(AuthMethod, proof.method)
            raise PeerError(f"peer {remote} proves itself by {method}, not by shared key")
        assert sa.suite is not None
        octets = signed_octets(sa.suite.prf, sa.init_response, sa.nonce_i, sa.sk_pr, identity.encode())
        if not verify_shared_key_mic(sa.suite.prf, self.profile.psk, octets, proof.data):
            raise PeerError(f"peer {remote} has another pre-shared key")
        sa.association.local_identity = self.profile.local_identity
        sa.association.remote_identity = remote

    def _is_first_contact(self, sa: IkeSa) -> bool:
        """No other IKE SA with this peer, be it only beginning: both ends that start at once must not take the
        other's for a leftover (RFC 7296 section 2.4)."""
        address = sa.association.path.remote.address
        return not any(
            other.association is not sa.association
            and other.state in (IkeState.CONNECTING, IkeState.HALF_OPEN, IkeState.ESTABLISHED)
            and other.association.path.remote.address == address
            for other in sa.context.ike_sas.values()
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
        return "peer refuses us: AUTHENTICATION_FAILED (another pre-shared key, or identities that do not match)"
    return f"peer refuses us: {error.name}"
