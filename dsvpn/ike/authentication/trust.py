"""Whom we believe: authorities, the path from a peer's certificate to one of them, and revocation (RFC 5280 section 6).

The rules are those of RFC 5280 as far as IPsec needs them (RFC 4945); what is not supported (critical extensions,
constraints of names that cannot be compared) makes a certificate useless instead of being skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final

from dsvpn.errors import MisuseError, PeerError
from dsvpn.ike.authentication.address_blocks import AddressBlocks, delegated
from dsvpn.ike.authentication.certificate import Certificate, parse
from dsvpn.ike.authentication.name_constraints import check_names
from dsvpn.ike.authentication.revocation import Crl

#: CERT payloads of a message that are looked at: what a peer may have us parse.
MAX_CERTIFICATES: Final = 8
#: Authorities between a peer's certificate and a trusted one, and signatures checked to find the way.
MAX_INTERMEDIATES: Final = 5
MAX_SIGNATURES: Final = 24
#: Authorities that CERTREQ names.
MAX_REQUESTED: Final = 64

#: Certificates of peers, with their paths, that a store remembers: a peer that comes again is not taken apart again.
MAX_REMEMBERED: Final = 512

#: A peer's certificate, then the authorities up to the trusted one.
CertificatePath = tuple[Certificate, ...]


class TrustStore:
    """Trusted authorities and what they revoked. Never changed: new files make a new one.

    `require_crl`: a certificate whose issuer has no current CRL here is refused. Otherwise it passes, and a CRL past
    its next update still revokes what it names. MisuseError when an authority is none.
    """

    def __init__(
        self, authorities: Iterable[Certificate], crls: Iterable[Crl] = (), *, require_crl: bool = False
    ) -> None:
        self.authorities = tuple(authorities)
        self.crls = tuple(crls)
        self.require_crl = require_crl
        for authority in self.authorities:
            problem = authority_problem(authority)
            if problem:
                raise MisuseError(f"certificate {authority.name} {problem}")
        self._by_subject: dict[bytes, list[Certificate]] = {}
        for authority in self.authorities:
            self._by_subject.setdefault(authority.subject, []).append(authority)
        #: Paths by what the peer sent, the least recently used first.
        self._remembered: dict[tuple[bytes, ...], CertificatePath] = {}
        self._hashes = b"".join(authority.key_hash for authority in self.authorities[:MAX_REQUESTED])

    def with_crls(self, crls: Iterable[Crl]) -> TrustStore:
        """The same authorities with other lists."""
        return TrustStore(self.authorities, crls, require_crl=self.require_crl)

    @property
    def requested(self) -> bytes:
        """The data of a CERTREQ payload: 20 octets for each authority (RFC 7296 section 3.7)."""
        return self._hashes

    def validate(self, encoded: Sequence[bytes], now: datetime) -> CertificatePath:
        """The path from the first of `encoded` (DER) to an authority. PeerError, in words for the operator, if there
        is none that is valid at `now`."""
        if len(encoded) > MAX_CERTIFICATES:
            raise PeerError(f"peer sent {len(encoded)} certificates; {MAX_CERTIFICATES} are the most")
        if not encoded:
            raise PeerError("peer sent no certificate")
        key = tuple(encoded)
        path = self._recall(key, now)
        if path is None:
            path = self._find_path(encoded, now)
            if len(self._remembered) >= MAX_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
        self._remembered[key] = path
        return path

    def _recall(self, key: tuple[bytes, ...], now: datetime) -> CertificatePath | None:
        """A path whose signatures held before, if what time and lists decide holds at `now`."""
        path = self._remembered.pop(key, None)
        if path is not None:
            try:
                for certificate in path:
                    certificate.check_validity(now)
                self.check_revocation(path, now)
            except PeerError:
                # There may be another path; if not, the search says what is wrong.
                return None
        return path

    def _find_path(self, encoded: Sequence[bytes], now: datetime) -> CertificatePath:
        leaf = parse(encoded[0])
        if leaf.refusal:
            raise PeerError(f"certificate {leaf.name} {leaf.refusal}")
        if not leaf.may_sign:
            raise PeerError(f"certificate {leaf.name} is not for signatures (key usage)")
        if not leaf.usable:
            raise PeerError(f"certificate {leaf.name} is not for IPsec (extended key usage)")
        leaf.check_validity(now)
        return self.validate_parsed(leaf, _readable(encoded[1:]), now)

    def validate_parsed(self, leaf: Certificate, others: Iterable[Certificate], now: datetime) -> CertificatePath:
        """The same for a certificate that is taken apart already. `others` may serve as intermediate authorities."""
        problems: list[PeerError] = []
        for path in self._paths((leaf,), tuple(others), _Budget()):
            try:
                for authority in path[1:]:
                    authority.check_validity(now)
                check_names(path)
                delegated_to(path)
                self.check_revocation(path, now)
            except PeerError as error:
                problems.append(error)
            else:
                return path
        if problems:
            raise problems[0]
        raise PeerError(
            f"certificate {leaf.name} is by {leaf.issuer_name or 'nobody'}, which no trusted CA vouches for"
        )

    def check_revocation(self, path: CertificatePath, now: datetime) -> None:
        """PeerError if an authority of the path has revoked what it signed, or if a CRL is required and missing."""
        reason = self.revoked(path)
        if reason:
            raise PeerError(reason)
        for certificate, issuer in pairwise(path):
            lists = [crl for crl in self.crls if crl.is_of(issuer)]
            if self.require_crl and not any(crl.is_current(now) for crl in lists):
                state = "only an outdated CRL" if lists else "no CRL"
                raise PeerError(
                    f"there is {state} of {issuer.name} for certificate {certificate.name}, and crl_policy requires one"
                )

    def revoked(self, path: CertificatePath) -> str:
        """Which certificate of the path is on a list of its issuer; empty if none is."""
        for certificate, issuer in pairwise(path):
            if any(crl.revokes(certificate.serial) for crl in self.crls if crl.is_of(issuer)):
                return f"certificate {certificate.name} (serial {certificate.serial:x}) is revoked"
        return ""

    def trusts(self, path: CertificatePath) -> bool:
        """Whether the path that was found earlier still ends in a trusted authority."""
        return any(path[-1].der == authority.der for authority in self.authorities)

    def _paths(
        self, path: CertificatePath, others: Sequence[Certificate], budget: _Budget
    ) -> Iterator[CertificatePath]:
        """Every way from `path` to a trusted authority, shortest first at each step."""
        last = path[-1]
        for authority in self._by_subject.get(last.issuer, ()):
            if _may_issue(authority, path) and budget.signed(last, authority):
                yield (*path, authority)
        if len(path) > MAX_INTERMEDIATES:
            return
        for authority in others:
            if (
                authority.subject == last.issuer
                and all(authority.der != known.der for known in path)
                and not authority_problem(authority)
                and _may_issue(authority, path)
                and budget.signed(last, authority)
            ):
                yield from self._paths((*path, authority), others, budget)


def delegated_to(path: CertificatePath) -> AddressBlocks | None:
    """The addresses that the path delegates to the holder of its first certificate, None if that has no such
    extension. PeerError if a certificate has more than was delegated to its issuer (RFC 3779 section 2.3)."""
    try:
        return delegated([certificate.blocks for certificate in path])
    except PeerError as error:
        raise PeerError(f"certificate {path[0].name}, or an authority above it, {error} (RFC 3779)") from None


def authority_problem(certificate: Certificate) -> str:
    """Why a certificate cannot sign others; empty if it can."""
    if certificate.refusal:
        return certificate.refusal
    if not certificate.is_ca:
        return "is not of a CA (basic constraints)"
    if not certificate.may_sign_certificates:
        return "may not sign certificates (key usage)"
    return ""


def _may_issue(authority: Certificate, path: CertificatePath) -> bool:
    """Whether the path length constraint allows as many authorities below as there are. Self-issued certificates do
    not count (RFC 5280 section 4.2.1.9)."""
    below = sum(1 for certificate in path[1:] if certificate.subject != certificate.issuer)
    return authority.path_length is None or below <= authority.path_length


class _Budget:
    """Signatures that may still be checked for one peer."""

    def __init__(self) -> None:
        self._left = MAX_SIGNATURES

    def signed(self, certificate: Certificate, issuer: Certificate) -> bool:
        """Whether `issuer` signed `certificate`."""
        if not self._left:
            return False
        self._left -= 1
        return certificate.is_signed_by(issuer)


def _readable(encoded: Iterable[bytes]) -> list[Certificate]:
    """The further certificates of a peer; those that do not decode are none."""
    found = []
    for der in encoded:
        try:
            found.append(parse(der))
        except PeerError:
            continue
    return found
