"""Making and checking the proof of identity in IKE_AUTH, for whichever end and by whichever method.

    initiator: IDi, [CERT, …] [CERTREQ] [IDr] AUTH        responder: IDr, [CERT, …] AUTH

A profile with certificate and pre-shared key proves itself by certificate, takes either, and answers a peer in kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING

from dsvpn.addresses import Prefix
from dsvpn.errors import PeerError
from dsvpn.ike.auth import shared_key_mic, signed_octets, verify_shared_key_mic
from dsvpn.ike.authentication import signatures
from dsvpn.ike.authentication.credentials import describe
from dsvpn.ike.authentication.name_constraints import check_identity
from dsvpn.ike.authentication.trust import CertificatePath, TrustStore, delegated_to
from dsvpn.ike.identity import Identity, IdentityType, best_match
from dsvpn.ike.profile import IkeProfile
from dsvpn.ike.task import Payloads
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import AuthMethod, CertificateEncoding, NotifyType, name_of

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa

Identification = wire.IdentificationInitiator | wire.IdentificationResponder

#: Hash algorithms of a peer that are looked at.
_MAX_HASHES = 32


@dataclass(frozen=True, slots=True)
class Proved:
    """How a peer proved itself: for people, and the certificates that carry it (empty with a pre-shared key)."""

    method: str
    path: CertificatePath = ()

    @property
    def addresses(self) -> tuple[Prefix, ...]:
        """The addresses that the peer's certificate carries as subject alternative names."""
        if not self.path:
            return ()
        kinds = (IdentityType.IPV4_ADDR, IdentityType.IPV6_ADDR)
        return tuple(ip_network(name.data) for name in self.path[0].identities if name.kind in kinds)

    @property
    def delegated(self) -> tuple[Prefix, ...] | None:
        """The prefixes that the peer's certificate holds by RFC 3779, None if it does not say."""
        blocks = delegated_to(self.path) if self.path else None
        return None if blocks is None else blocks.prefixes()


def octets_to_sign(sa: IkeSa, by_initiator: bool, identity: Identification) -> bytes:
    """What one end of `sa` proves with the keys as they are (RFC 7296 section 2.15, RFC 9242 section 3.3.2)."""
    assert sa.suite is not None
    if by_initiator:
        message, nonce, key = sa.init_request, sa.nonce_r, sa.sk_pi
    else:
        message, nonce, key = sa.init_response, sa.nonce_i, sa.sk_pr
    return signed_octets(sa.suite.prf, message, nonce, key, identity.encode(), sa.int_auth_octets)


def announce(profiles: list[IkeProfile], with_request: bool) -> list[wire.Payload]:
    """What IKE_SA_INIT says for certificates: the hashes that we check (RFC 7427 section 4), and from a responder, who
    has no later place for it, the authorities that we trust. Nothing where no profile has certificates."""
    trusting = [profile.trust for profile in profiles if profile.trust is not None]
    if not trusting:
        return []
    numbers = b"".join(number.to_bytes(2, "big") for number in signatures.SUPPORTED_HASHES)
    payloads: list[wire.Payload] = [wire.Notify(NotifyType.SIGNATURE_HASH_ALGORITHMS, numbers)]
    if with_request:
        payloads += request(trusting)
    return payloads


def request(trusting: list[TrustStore]) -> list[wire.Payload]:
    """The CERTREQ payload that names every authority once."""
    hashes: dict[bytes, None] = {}
    for trust in trusting:
        hashes |= dict.fromkeys(trust.requested[at : at + 20] for at in range(0, len(trust.requested), 20))
    return [wire.CertificateRequest(CertificateEncoding.X509_SIGNATURE, b"".join(hashes))]


def note_hashes(sa: IkeSa, payloads: Payloads) -> None:
    """Remember the hash algorithms that the peer's IKE_SA_INIT names."""
    notify = wire.find_notify(payloads, NotifyType.SIGNATURE_HASH_ALGORITHMS)
    if notify is not None:
        data = notify.data[: 2 * _MAX_HASHES]
        sa.peer_hashes = frozenset(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data) - 1, 2))


def choose_psk(profile: IkeProfile, identity: Identity | None) -> bytes | None:
    """The pre-shared key for a peer; `identity` None is one that is not known yet."""
    if identity is not None:
        found = best_match(dict(profile.psks), identity)
        if found is not None:
            return found
    return profile.psk or None


class Prover:
    """Our own proof under `profile` towards `peer` (None: not known yet). `like` is the method that the peer has used,
    which a profile that has both methods answers with. PeerError when there is nothing to prove with."""

    def __init__(self, profile: IkeProfile, peer: Identity | None, like: int | None = None) -> None:
        self.credentials = profile.credentials
        self.psk = b""
        if self.credentials is None or like == AuthMethod.SHARED_KEY_MIC:
            psk = choose_psk(profile, peer)
            if psk is not None:
                self.credentials, self.psk = None, psk
            elif self.credentials is None:
                whom = peer or "a peer that is not known yet: set psk, or remote_identity to one name"
                raise PeerError(f"no pre-shared key is for {whom}")

    def certificates(self) -> list[wire.Payload]:
        """The CERT payloads, which stand behind our identity."""
        return [] if self.credentials is None else self.credentials.payloads()

    def prove(self, sa: IkeSa, identity: Identification) -> wire.Authentication:
        """The AUTH payload with the keys as they are."""
        octets = octets_to_sign(sa, sa.is_initiator, identity)
        if self.credentials is not None:
            return self.credentials.sign(octets, sa.peer_hashes)
        assert sa.suite is not None
        return wire.Authentication(AuthMethod.SHARED_KEY_MIC, shared_key_mic(sa.suite.prf, self.psk, octets))


def check(
    sa: IkeSa, profile: IkeProfile, identity: Identification, proof: wire.Authentication, payloads: Payloads
) -> Proved:
    """Whether the peer is whom its ID payload says, by `proof` and its CERT payloads. PeerError if it is not."""
    remote = Identity(identity.id_type, identity.data)
    octets = octets_to_sign(sa, not sa.is_initiator, identity)
    if proof.method == AuthMethod.SHARED_KEY_MIC:
        return _check_shared_key(sa, profile, remote, proof.data, octets)
    if profile.trust is None:
        method = name_of(AuthMethod, proof.method)
        raise PeerError(f"peer {remote} proves itself by {method}, not by shared key")
    path = profile.trust.validate(_certificates(payloads), sa.context.time_of_day())
    leaf = path[0]
    scheme = signatures.verify(leaf.public_key, proof.method, proof.data, octets)
    # The key is the certificate's; whether the certificate is the identity's is another question.
    if not leaf.carries(remote):
        raise PeerError(f"peer says it is {remote}, but its certificate is of {describe(leaf.identities)}")
    check_identity(path, remote)
    return Proved(scheme, path)


def _check_shared_key(sa: IkeSa, profile: IkeProfile, remote: Identity, mic: bytes, octets: bytes) -> Proved:
    psk = choose_psk(profile, remote)
    if psk is None:
        if profile.trust is not None:
            raise PeerError(f"peer {remote} proves itself by shared key, not by certificate")
        raise PeerError(f"no pre-shared key is for {remote}")
    assert sa.suite is not None
    if not verify_shared_key_mic(sa.suite.prf, psk, octets, mic):
        raise PeerError(
            f"peer {remote} has another pre-shared key" if sa.is_initiator else "peer has another pre-shared key"
        )
    return Proved("pre-shared key")


def withdrawn(proved: Proved | None, profile: IkeProfile) -> str:
    """Why what a peer has proved earlier does not hold under `profile`; empty when it does."""
    if proved is None or not proved.path:
        return ""
    if profile.trust is None or not profile.trust.trusts(proved.path):
        return f"the authority of certificate {proved.path[0].name} is not trusted any more"
    return profile.trust.revoked(proved.path)


def _certificates(payloads: Payloads) -> list[bytes]:
    found = wire.find_all(payloads, wire.Certificate)
    if found and found[0].encoding in (CertificateEncoding.HASH_AND_URL_X509, CertificateEncoding.HASH_AND_URL_BUNDLE):
        # Fetching what a stranger names would make this gateway his tool; HTTP_CERT_LOOKUP_SUPPORTED is never sent.
        raise PeerError("peer sends hash and URL of its certificate, which this gateway has not offered to fetch")
    return [payload.data for payload in found if payload.encoding == CertificateEncoding.X509_SIGNATURE]
