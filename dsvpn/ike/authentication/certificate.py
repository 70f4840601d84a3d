"""Certificates as IPsec uses them (RFC 4945 section 5.1): taken apart once, with every defect caught."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeVar, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import NameConstraints
from cryptography.x509.oid import ExtendedKeyUsageOID

from dsvpn.errors import MisuseError, PeerError
from dsvpn.ike.authentication import address_blocks, name_constraints
from dsvpn.ike.authentication.address_blocks import AddressBlocks
from dsvpn.ike.authentication.signatures import PublicKey, key_kind
from dsvpn.ike.identity import Identity, IdentityType

#: Longest certificate that is parsed, octets: one with ML-DSA-87 has some 8000.
MAX_CERTIFICATE: Final = 16384
#: Subject alternative names that are looked at.
_MAX_NAMES: Final = 64

#: Extensions that are understood and may therefore be critical. Certificate policies bind nobody who requires none.
_KNOWN: Final = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectAlternativeName,
    x509.CertificatePolicies,
    x509.CRLDistributionPoints,
    x509.SubjectKeyIdentifier,
    x509.AuthorityKeyIdentifier,
)
#: RFC 4945 section 5.1.3.12 lets through ipsecIKE and any; the older IPsec usages and the TLS usages are what many
#: authorities give to gateways.
_USAGES: Final = frozenset(
    {
        ExtendedKeyUsageOID.IPSEC_IKE,
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
        x509.ObjectIdentifier("1.3.6.1.5.5.7.3.5"),
        x509.ObjectIdentifier("1.3.6.1.5.5.7.3.6"),
        x509.ObjectIdentifier("1.3.6.1.5.5.7.3.7"),
    }
)
#: None is for algorithms that hash the message themselves.
_HASHES: Final = ("sha256", "sha384", "sha512", None)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """What one X.509 certificate says. `refusal` names a property for which it is never taken, whoever signed it."""

    x509: x509.Certificate = field(repr=False)
    der: bytes = field(repr=False)
    subject: bytes = field(repr=False)
    issuer: bytes = field(repr=False)
    name: str
    issuer_name: str
    serial: int
    public_key: PublicKey = field(repr=False)
    kind: str
    not_before: datetime
    not_after: datetime
    is_ca: bool
    path_length: int | None
    may_sign: bool
    may_sign_certificates: bool
    may_sign_crls: bool
    usable: bool
    identities: tuple[Identity, ...]
    refusal: str
    #: What an authority may vouch for; None for everything.
    constraints: NameConstraints | None = None
    blocks: AddressBlocks | None = None

    @property
    def key_hash(self) -> bytes:
        """SHA-1 over the subject public key info, as CERTREQ names an authority (RFC 7296 section 3.7)."""
        info = self.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha1(info, usedforsecurity=False).digest()

    def carries(self, identity: Identity) -> bool:
        """Whether the certificate is one of `identity`: a subject alternative name of the same type, the subject's
        distinguished name, or for KEY_ID the subject key identifier (RFC 4945 section 3.1). A common name is no FQDN,
        and a wildcard in a certificate matches nothing."""
        return any(identity.matches(own) for own in self.identities)

    def check_validity(self, now: datetime) -> None:
        """PeerError outside its period of validity."""
        if now < self.not_before:
            raise PeerError(f"certificate {self.name} is not valid before {self.not_before:%Y-%m-%d %H:%M} UTC")
        if now > self.not_after:
            raise PeerError(f"certificate {self.name} expired on {self.not_after:%Y-%m-%d %H:%M} UTC")

    def is_signed_by(self, issuer: Certificate) -> bool:
        """Whether `issuer` signed it, by name and signature."""
        if self.issuer != issuer.subject:
            return False
        try:
            self.x509.verify_directly_issued_by(issuer.x509)
        except Exception:  # whatever a certificate makes the library raise: it is not signed
            return False
        return True


def parse(der: bytes) -> Certificate:
    """A certificate taken apart. PeerError for anything that is not an X.509 certificate of version 3."""
    if len(der) > MAX_CERTIFICATE:
        raise PeerError(f"certificate of {len(der)} octets; {MAX_CERTIFICATE} are the most")
    try:
        return _parse(x509.load_der_x509_certificate(der), der)
    except PeerError:
        raise
    except MisuseError as error:
        raise PeerError(f"certificate has an unusable key: {error}") from None
    except Exception as error:
        # The library decodes lazily and raises many kinds of errors; none may leave the engine.
        raise PeerError(f"certificate does not decode: {type(error).__name__}") from None


def _parse(certificate: x509.Certificate, der: bytes) -> Certificate:
    if certificate.version is not x509.Version.v3:
        raise PeerError("certificate is not of X.509 version 3")
    if not ends_in_whole_octets(der, certificate.signature):
        raise PeerError("certificate does not decode: its signature is not of whole octets")
    key = certificate.public_key()
    kind = key_kind(key)
    extensions = certificate.extensions
    constraints = _find(extensions, x509.BasicConstraints)
    usage = _find(extensions, x509.KeyUsage)
    purposes = _find(extensions, x509.ExtendedKeyUsage)
    subject = certificate.subject.public_bytes()
    blocks, refusal = _blocks(extensions)
    return Certificate(
        certificate,
        der,
        subject,
        certificate.issuer.public_bytes(),
        str(Identity(IdentityType.DER_ASN1_DN, subject)) or "without a name",
        str(Identity(IdentityType.DER_ASN1_DN, certificate.issuer.public_bytes())),
        certificate.serial_number,
        cast(PublicKey, key),
        kind,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        is_ca=constraints is not None and constraints.ca,
        path_length=None if constraints is None else constraints.path_length,
        # RFC 4945 section 5.1.3.2: without the extension everything is allowed.
        may_sign=usage is None or usage.digital_signature or usage.content_commitment,
        may_sign_certificates=usage is None or usage.key_cert_sign,
        may_sign_crls=usage is None or usage.crl_sign,
        usable=purposes is None or any(purpose in _USAGES for purpose in purposes),
        identities=tuple(_identities(extensions, subject)),
        refusal=refusal or _refusal(certificate, extensions, constraints is not None and constraints.ca, der),
        constraints=_find(extensions, x509.NameConstraints),
        blocks=blocks,
    )


def ends_in_whole_octets(der: bytes, signature: bytes) -> bool:
    """Whether the BIT STRING of `signature`, the last field of `der`, has no unused bits. The library does not look
    where those bits are zero; each certificate and list has one encoding only (RFC 5280 section 4.1.1.3)."""
    return der.endswith(b"\x00" + signature)


def _refusal(certificate: x509.Certificate, extensions: x509.Extensions, is_ca: bool, der: bytes) -> str:
    algorithm = certificate.signature_hash_algorithm
    name = None if algorithm is None else algorithm.name
    if name not in _HASHES:
        return f"is signed with {name}, which is not taken"
    for extension in extensions:
        if isinstance(extension.value, x509.NameConstraints):
            if problem := name_constraints.refusal(extension.value, is_ca, der):
                return problem
        elif extension.oid.dotted_string == address_blocks.OID:
            continue
        elif extension.critical and not isinstance(extension.value, _KNOWN):
            return f"has the critical extension {extension.oid.dotted_string}, which is not supported"
    return ""


def _blocks(extensions: x509.Extensions) -> tuple[AddressBlocks | None, str]:
    """The addresses that the certificate delegates, and what is wrong with them."""
    for extension in extensions:
        if extension.oid.dotted_string == address_blocks.OID:
            try:
                return address_blocks.decode(extension.value.public_bytes()), ""
            except PeerError as error:
                return None, f"{error} (RFC 3779 address blocks)"
    return None, ""


def _find(extensions: x509.Extensions, kind: type[_T]) -> _T | None:
    for extension in extensions:
        if isinstance(extension.value, kind):
            return extension.value
    return None


def _identities(extensions: x509.Extensions, subject: bytes) -> Sequence[Identity]:
    found = [Identity(IdentityType.DER_ASN1_DN, subject)]
    for name in list(_find(extensions, x509.SubjectAlternativeName) or ())[:_MAX_NAMES]:
        match name:
            case x509.DNSName():
                found.append(Identity(IdentityType.FQDN, name.value.encode()))
            case x509.RFC822Name():
                found.append(Identity(IdentityType.RFC822_ADDR, name.value.encode()))
            case x509.IPAddress() if hasattr(name.value, "packed"):
                kind = IdentityType.IPV4_ADDR if name.value.version == 4 else IdentityType.IPV6_ADDR
                found.append(Identity(kind, name.value.packed))
            case x509.DirectoryName():
                found.append(Identity(IdentityType.DER_ASN1_DN, name.value.public_bytes()))
            case _:
                continue
    key_identifier = _find(extensions, x509.SubjectKeyIdentifier)
    if key_identifier is not None:
        found.append(Identity(IdentityType.KEY_ID, key_identifier.digest))
    return found
