"""Name constraints: the names that an authority may vouch for, and its authorities too (RFC 5280 section 4.2.1.10).

DNS names, mail and IP addresses and directory names are compared. A certificate with a name of a form that cannot be
compared, below an authority with a constraint of that form, is refused, and so is whatever else cannot be enforced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Final

from cryptography import x509

from dsvpn.errors import PeerError
from dsvpn.ike import distinguished_name
from dsvpn.ike.identity import Identity, IdentityType

if TYPE_CHECKING:
    from dsvpn.ike.authentication.certificate import Certificate

#: Names of a certificate and subtrees of a constraint that are compared: what a chain may have us compute.
MAX_NAMES: Final = 64
MAX_SUBTREES: Final = 128


def refusal(value: x509.NameConstraints, is_ca: bool, der: bytes) -> str:
    """Why a certificate with this extension is of no use; empty if it is enforced."""
    if not is_ca:
        return "has name constraints, but is not of a CA"
    subtrees = (*(value.permitted_subtrees or ()), *(value.excluded_subtrees or ()))
    if len(subtrees) > MAX_SUBTREES:
        return f"has {len(subtrees)} name constraints; {MAX_SUBTREES} are the most"
    if any(isinstance(base, x509.DirectoryName) and _decoded(base) is None for base in subtrees):
        return "has a name constraint that is no directory name"
    # The library skips minimum and maximum, which RFC 5280 forbids: what it has read must be all that stands there.
    encoded = value.public_bytes()
    if _octet_string(encoded) not in der:
        return "has name constraints with more than names, which are not supported"
    return ""


def check_names(path: Sequence[Certificate]) -> None:
    """PeerError for a path, from the peer's certificate to the trusted one, with a name that an authority above it may
    not vouch for. A trusted authority's constraints count like those of any other (RFC 5937)."""
    for height, authority in enumerate(path):
        if authority.constraints is None:
            continue
        for depth, certificate in enumerate(path[:height]):
            # An authority's new key is not another name (RFC 5280 section 6.1.3).
            if depth and certificate.subject == certificate.issuer:
                continue
            _check(certificate, authority, authority.constraints)


def check_identity(path: Sequence[Certificate], identity: Identity) -> None:
    """PeerError for a KEY_ID below an authority with constraints: it is no name that constraints could hold back, and
    the authority could choose it at will."""
    if identity.kind == IdentityType.KEY_ID:
        for authority in path[1:]:
            if authority.constraints is not None:
                raise PeerError(f"CA {authority.name} has name constraints and may not vouch for {identity}")


def _check(certificate: Certificate, authority: Certificate, constraints: x509.NameConstraints) -> None:
    names = list(_names(certificate))
    if len(names) > MAX_NAMES:
        raise PeerError(f"certificate {certificate.name} has {len(names)} names; {MAX_NAMES} are the most")
    for name in names:
        permitted = [base for base in constraints.permitted_subtrees or () if type(base) is type(name)]
        excluded = [base for base in constraints.excluded_subtrees or () if type(base) is type(name)]
        if not permitted and not excluded:
            continue
        within = _COMPARED.get(type(name))
        try:
            if within is None:
                raise _UncomparableError
            refused = any(within(name, base, True) for base in excluded) or (
                bool(permitted) and not any(within(name, base, False) for base in permitted)
            )
        except _UncomparableError:
            refused = True
        if refused:
            raise PeerError(
                f"CA {authority.name} may not vouch for {_text(name)} in certificate {certificate.name} "
                "(name constraints)"
            )


class _UncomparableError(Exception):
    """A name that nobody can compare with a constraint of its form."""


def _names(certificate: Certificate) -> Iterator[x509.GeneralName]:
    """Every name that constraints are about."""
    subject = certificate.x509.subject
    if subject.rdns:
        yield x509.DirectoryName(subject)
    for attribute in subject.get_attributes_for_oid(x509.NameOID.EMAIL_ADDRESS):
        yield _mail_of(attribute.value)
    for extension in certificate.x509.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            yield from extension.value


def _mail_of(value: str | bytes) -> x509.GeneralName:
    try:
        return x509.RFC822Name(value if isinstance(value, str) else value.decode())
    except ValueError:
        # No mail address, and therefore within no subtree: as such it is refused where mail addresses are constrained.
        return x509.RFC822Name("")


def _dns(name: x509.GeneralName, base: x509.GeneralName, excluding: bool) -> bool:
    """Labels may be added on the left. Case does not count (RFC 4343)."""
    assert isinstance(name, x509.DNSName)
    assert isinstance(base, x509.DNSName)
    labels, wanted = _labels(name.value), base.value.lower().removesuffix(".").removeprefix(".").split(".")
    if wanted == [""]:
        return True
    # With a dot in front, as other implementations read it, one label more is needed at least.
    least = len(wanted) + base.value.startswith(".")
    if len(labels) >= least and labels[-len(wanted) :] == wanted:
        return True
    # A wildcard may stand for what is excluded.
    domain = labels[1:]
    return excluding and labels[0] == "*" and (not domain or wanted[-len(domain) :] == domain)


def _labels(name: str) -> list[str]:
    labels = name.lower().removesuffix(".").split(".")
    if "" in labels:
        raise _UncomparableError
    return labels


def _mail(name: x509.GeneralName, base: x509.GeneralName, excluding: bool) -> bool:
    """A constraint is one mailbox, all of a host, or with a dot in front all of the hosts of a domain."""
    assert isinstance(name, x509.RFC822Name)
    assert isinstance(base, x509.RFC822Name)
    local, _, host = name.value.rpartition("@")
    if not local:
        raise _UncomparableError
    host = ".".join(_labels(host))
    wanted_local, at, wanted = base.value.rpartition("@")
    wanted = wanted.lower().removesuffix(".")
    if at:
        # Who may have a mailbox is up to its host, also whether case counts: in doubt the name is not let in.
        same = local.lower() == wanted_local.lower() if excluding else local == wanted_local
        return same and host == wanted
    if wanted.startswith("."):
        return host.endswith(wanted)
    return not wanted or host == wanted


def _address(name: x509.GeneralName, base: x509.GeneralName, excluding: bool) -> bool:
    """A constraint is a prefix."""
    assert isinstance(name, x509.IPAddress)
    assert isinstance(base, x509.IPAddress)
    if not isinstance(base.value, IPv4Network | IPv6Network) or isinstance(name.value, IPv4Network | IPv6Network):
        raise _UncomparableError
    return name.value in base.value


def _directory(name: x509.GeneralName, base: x509.GeneralName, excluding: bool) -> bool:
    """A constraint is the beginning of the name: its most general RDNs."""
    assert isinstance(name, x509.DirectoryName)
    assert isinstance(base, x509.DirectoryName)
    found, wanted = _decoded(name), _decoded(base)
    if found is None or wanted is None:
        raise _UncomparableError
    # An identity is taken in either order, so what is excluded is so in both.
    return found[: len(wanted)] == wanted or (excluding and found[::-1][: len(wanted)] == wanted)


def _decoded(name: x509.DirectoryName) -> distinguished_name.DistinguishedName | None:
    try:
        return distinguished_name.decode(name.value.public_bytes())
    except ValueError:
        return None


def _text(name: x509.GeneralName) -> str:
    if isinstance(name, x509.DirectoryName):
        return str(Identity(IdentityType.DER_ASN1_DN, name.value.public_bytes()))
    value = str(name.value)
    return "".join(c if c.isprintable() else "?" for c in value[:200]) or "a name that is empty"


def _octet_string(content: bytes) -> bytes:
    """DER: an OCTET STRING."""
    if len(content) < 0x80:
        return bytes((4, len(content))) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes((4, 0x80 | len(length))) + length + content


_COMPARED: Final[dict[type[x509.GeneralName], Callable[[x509.GeneralName, x509.GeneralName, bool], bool]]] = {
    x509.DNSName: _dns,
    x509.RFC822Name: _mail,
    x509.IPAddress: _address,
    x509.DirectoryName: _directory,
}
