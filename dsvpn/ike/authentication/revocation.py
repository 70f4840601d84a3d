"""Revocation by CRL (RFC 5280 section 5): lists come in as octets, from files or from whoever fetches URLs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from dsvpn.errors import MisuseError
from dsvpn.ike.authentication.certificate import Certificate, ends_in_whole_octets
from dsvpn.ike.identity import Identity, IdentityType

#: Longest list that is taken, octets.
MAX_CRL: Final = 8 << 20
_HASHES: Final = ("sha256", "sha384", "sha512", None)
#: Signatures by intermediate authorities that are remembered as good or bad.
_MAX_REMEMBERED: Final = 256


@dataclass(slots=True, eq=False)
class Crl:
    """A certificate revocation list. `source` says where it is from."""

    source: str
    issuer: bytes = field(repr=False)
    issuer_name: str
    issued_at: datetime
    next_update: datetime | None
    revoked: int
    _list: x509.CertificateRevocationList = field(repr=False)
    _signed_by: dict[bytes, bool] = field(default_factory=dict, repr=False)

    def is_of(self, authority: Certificate) -> bool:
        """Whether `authority` made it, by name, right and signature."""
        if self.issuer != authority.subject or not authority.may_sign_crls:
            return False
        mark = hashlib.sha256(authority.der).digest()
        if mark not in self._signed_by:
            if len(self._signed_by) >= _MAX_REMEMBERED:
                self._signed_by.clear()
            self._signed_by[mark] = _verify(self._list, authority)
        return self._signed_by[mark]

    def is_current(self, now: datetime) -> bool:
        """Whether it is neither of the future nor due to be replaced."""
        return self.issued_at <= now and (self.next_update is None or now <= self.next_update)

    def revokes(self, serial: int) -> bool:
        """Whether a certificate with this serial number is on it."""
        return self._list.get_revoked_certificate_by_serial_number(serial) is not None


def parse_crl(data: bytes, source: str) -> Crl:
    """A list from PEM or DER. MisuseError for what is none, or is one of a kind that is not supported."""
    if len(data) > MAX_CRL:
        raise MisuseError(f"{source} has {len(data)} octets; a CRL may have {MAX_CRL}")
    try:
        if data.lstrip().startswith(b"-----"):
            parsed = x509.load_pem_x509_crl(data)
        else:
            parsed = x509.load_der_x509_crl(data)
        critical = [extension.oid.dotted_string for extension in parsed.extensions if extension.critical]
        algorithm = parsed.signature_hash_algorithm
        encoded, signature = parsed.public_bytes(Encoding.DER), parsed.signature
        issuer = parsed.issuer.public_bytes()
        crl = Crl(
            source,
            issuer,
            str(Identity(IdentityType.DER_ASN1_DN, issuer)),
            parsed.last_update_utc,
            parsed.next_update_utc,
            len(parsed),
            parsed,
        )
    except Exception as error:  # as with certificates: what comes from a URL may make the library raise anything
        raise MisuseError(f"{source} is no CRL in PEM or DER ({type(error).__name__})") from None
    if not ends_in_whole_octets(encoded, signature):
        raise MisuseError(f"{source} is no CRL in PEM or DER (its signature is not of whole octets)")
    if critical:
        # Delta lists and lists of a part of the certificates do not tell about the others (RFC 5280 section 5.2).
        raise MisuseError(f"{source} has the critical extension {critical[0]}; only complete CRLs are supported")
    if (None if algorithm is None else algorithm.name) not in _HASHES:
        raise MisuseError(f"{source} is signed with {algorithm.name if algorithm else '?'}, which is not taken")
    return crl


def _verify(crl: x509.CertificateRevocationList, authority: Certificate) -> bool:
    try:
        return crl.is_signature_valid(authority.public_key)
    except Exception:  # an algorithm that does not fit the key, for example
        return False
