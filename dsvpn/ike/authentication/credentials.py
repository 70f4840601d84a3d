"""What this gateway proves itself with: a certificate, the authorities between it and the peers' trust, and its key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dsvpn.errors import MisuseError
from dsvpn.ike.authentication.certificate import Certificate
from dsvpn.ike.authentication.signatures import PrivateKey, key_kind, sign
from dsvpn.ike.authentication.trust import MAX_INTERMEDIATES
from dsvpn.ike.identity import Identity, IdentityType
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import CertificateEncoding

#: The identity to use when nobody chose one: names come before addresses, and a distinguished name last.
_PREFERRED: Final = (
    IdentityType.FQDN,
    IdentityType.RFC822_ADDR,
    IdentityType.IPV4_ADDR,
    IdentityType.IPV6_ADDR,
    IdentityType.DER_ASN1_DN,
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate with its key. `chain` are intermediate authorities in order, the nearest first; `pss` chooses
    RSA-PSS before PKCS#1 v1.5 for an RSA key. MisuseError when the key is not the certificate's."""

    certificate: Certificate
    key: PrivateKey = field(repr=False)
    chain: tuple[Certificate, ...] = ()
    pss: bool = True

    def __post_init__(self) -> None:
        key_kind(self.key)
        if _encoded(self.key.public_key()) != _encoded(self.certificate.public_key):
            raise MisuseError(f"the private key is not that of the certificate {self.certificate.name}")
        if self.certificate.refusal:
            raise MisuseError(f"certificate {self.certificate.name} {self.certificate.refusal}")
        if not self.certificate.may_sign:
            raise MisuseError(f"certificate {self.certificate.name} is not for signatures (key usage)")
        if len(self.chain) > MAX_INTERMEDIATES:
            raise MisuseError(f"{len(self.chain)} intermediate certificates; {MAX_INTERMEDIATES} are the most")

    def payloads(self) -> list[wire.Payload]:
        """The CERT payloads: our own certificate first (RFC 7296 section 3.6)."""
        return [
            wire.Certificate(CertificateEncoding.X509_SIGNATURE, certificate.der)
            for certificate in (self.certificate, *self.chain)
        ]

    def sign(self, octets: bytes, peer_hashes: frozenset[int] | None) -> wire.Authentication:
        """The AUTH payload over `octets`. PeerError when the peer takes no signature of this key."""
        return wire.Authentication(*sign(self.key, octets, peer_hashes, self.pss))

    def choose_identity(self, name: str) -> Identity:
        """The identity of a gateway called `name` that has chosen none: that name if the certificate carries it, else
        what it carries."""
        try:
            wanted = Identity.parse(name)
        except MisuseError:
            wanted = None
        if wanted is not None and self.certificate.carries(wanted):
            return wanted
        return min(
            (identity for identity in self.certificate.identities if identity.kind in _PREFERRED),
            key=lambda identity: _PREFERRED.index(IdentityType(identity.kind)),
        )

    def check_identity(self, identity: Identity) -> None:
        """MisuseError for an identity that peers would not believe."""
        if not self.certificate.carries(identity):
            raise MisuseError(
                f"certificate {self.certificate.name} does not carry the identity {identity}; it carries "
                f"{describe(self.certificate.identities)}"
            )


def describe(identities: Sequence[Identity]) -> str:
    """Identities of a certificate for people, those that nobody would write left out."""
    listed = [str(identity) for identity in identities if identity.kind != IdentityType.KEY_ID]
    return ", ".join(listed[:8]) + (", …" if len(listed) > 8 else "")


def _encoded(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]
