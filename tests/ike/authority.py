"""Certificates for tests: authorities, gateways and revocation lists with every property that a test may want wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from dsvpn.ike.authentication.certificate import Certificate, parse
from dsvpn.ike.authentication.credentials import Credentials
from dsvpn.ike.authentication.revocation import Crl, parse_crl
from dsvpn.ike.authentication.trust import TrustStore
from dsvpn.ike.profile import IkeProfile
from tests.ike.harness import WALL, make_profile

NOW = datetime.fromtimestamp(WALL, UTC)
DAY = timedelta(days=1)

KEYS: dict[str, Any] = {
    "ecdsa256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ecdsa384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ecdsa521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "rsa": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ed448": ed448.Ed448PrivateKey.generate,
    "mldsa44": mldsa.MLDSA44PrivateKey.generate,
    "mldsa65": mldsa.MLDSA65PrivateKey.generate,
    "mldsa87": mldsa.MLDSA87PrivateKey.generate,
}


@cache
def make_key(kind: str, owner: str) -> Any:
    """A key of this kind; the same for the same owner, because RSA keys take long to make."""
    return KEYS[kind]()


def general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.RFC822Name(text) if "@" in text else x509.DNSName(text)


def name(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test"), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def _hash(key: Any) -> Any:
    return hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) else None


@dataclass(frozen=True)
class Holder:
    """A certificate with its key: a gateway's or an authority's."""

    certificate: Certificate
    key: Any

    def issue(
        self,
        common: str,
        sans: Sequence[str] = (),
        *,
        kind: str = "ecdsa256",
        ca: bool | None = False,
        path_length: int | None = None,
        start: datetime = NOW - DAY,
        end: datetime = NOW + DAY,
        usage: dict[str, bool] | None = None,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
        issuer: x509.Name | None = None,
    ) -> Holder:
        """A certificate that this authority signs."""
        key = make_key(kind, common)
        builder = x509.CertificateBuilder().subject_name(name(common)).public_key(key.public_key())
        builder = builder.issuer_name(issuer or self.certificate.x509.subject).serial_number(
            x509.random_serial_number()
        )
        builder = builder.not_valid_before(start).not_valid_after(end)
        if ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca, path_length), critical=True)
        if usage is not None:
            bits = dict.fromkeys(
                (
                    "digital_signature",
                    "content_commitment",
                    "key_encipherment",
                    "data_encipherment",
                    "key_agreement",
                    "key_cert_sign",
                    "crl_sign",
                    "encipher_only",
                    "decipher_only",
                ),
                False,
            )
            builder = builder.add_extension(x509.KeyUsage(**(bits | usage)), critical=True)
        if sans:
            names = x509.SubjectAlternativeName([general_name(san) for san in sans])
            builder = builder.add_extension(names, critical=False)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        signed = builder.sign(self.key, _hash(self.key))
        return Holder(parse(signed.public_bytes(Encoding.DER)), key)

    def authority(self, common: str, **options: Any) -> Holder:
        """An intermediate authority."""
        return self.issue(common, ca=True, **options)

    def crl(
        self, *revoked: Holder, issued: datetime = NOW - DAY, due: datetime | None = NOW + DAY, by: Any = None
    ) -> Crl:
        """A list of this authority, signed with its key or another's."""
        return parse_crl(self.crl_octets(*revoked, issued=issued, due=due, by=by), "a list")

    def crl_octets(
        self, *revoked: Holder, issued: datetime = NOW - DAY, due: datetime | None = NOW + DAY, by: Any = None
    ) -> bytes:
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.x509.subject)
        builder = builder.last_update(issued).next_update(due or NOW + DAY)
        for holder in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(holder.certificate.serial).revocation_date(issued)
            builder = builder.add_revoked_certificate(entry.build())
        key = by or self.key
        return builder.sign(key, _hash(key)).public_bytes(Encoding.DER)

    def credentials(self, *chain: Holder, pss: bool = True) -> Credentials:
        return Credentials(self.certificate, self.key, tuple(holder.certificate for holder in chain), pss)


@cache
def root(common: str = "Root", kind: str = "ecdsa256") -> Holder:
    """An authority that signed itself."""
    key = make_key(kind, common)
    builder = (
        x509.CertificateBuilder().subject_name(name(common)).issuer_name(name(common)).public_key(key.public_key())
    )
    builder = builder.serial_number(1).not_valid_before(NOW - 100 * DAY).not_valid_after(NOW + 100 * DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    signed = builder.sign(key, _hash(key))
    return Holder(parse(signed.public_bytes(Encoding.DER)), key)


def trust(*authorities: Holder, crls: Sequence[Crl] = (), require_crl: bool = False) -> TrustStore:
    chosen = authorities or (root(),)
    return TrustStore([holder.certificate for holder in chosen], crls, require_crl=require_crl)


def certified(
    local: str, holder: Holder, remote: str | None = None, *, chain: Sequence[Holder] = (), **options: Any
) -> IkeProfile:
    """A profile that proves itself by certificate alone."""
    options.setdefault("trust", trust())
    options.setdefault("credentials", holder.credentials(*chain))
    return make_profile(local, remote, psk=b"", **options)
