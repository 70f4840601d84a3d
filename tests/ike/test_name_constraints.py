"""Name constraints (RFC 5280 section 4.2.1.10): what an authority may vouch for, and its authorities too."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from random import Random
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from dsvpn.errors import MisuseError, PeerError
from dsvpn.ike.authentication.certificate import parse
from dsvpn.ike.authentication.name_constraints import MAX_NAMES, MAX_SUBTREES
from dsvpn.ike.authentication.trust import TrustStore
from tests.ike.authority import NOW, Holder, certified, general_name, root, trust
from tests.ike.certified import A_NAME, B_NAME, chain_refused, gateway, refused
from tests.ike.harness import make_wire


def base(text: str) -> x509.GeneralName:
    """A subtree: a prefix, "@" and a mail constraint, a name with "=" inside, or a DNS name."""
    if "=" in text:
        return x509.DirectoryName(x509.Name.from_rfc4514_string(text))
    if "/" in text:
        return x509.IPAddress(ip_network(text))
    if "@" in text:
        return x509.RFC822Name(text.removeprefix("@"))
    return x509.DNSName(text)


def subject_alternative(text: str) -> x509.GeneralName:
    if "=" in text:
        return x509.DirectoryName(x509.Name.from_rfc4514_string(text))
    if ":" in text and "/" in text:
        return x509.UniformResourceIdentifier(text)
    return general_name(text)


def constrained(
    permitted: Sequence[str] = (), excluded: Sequence[str] = (), by: Holder | None = None, common: str = "Middle"
) -> Holder:
    constraints = x509.NameConstraints(list(map(base, permitted)) or None, list(map(base, excluded)) or None)
    return (by or root()).authority(common, extensions=[(constraints, True)])


def leaf(by: Holder, *names: str) -> Holder:
    alternative = x509.SubjectAlternativeName([subject_alternative(one) for one in names])
    return by.issue("leaf", extensions=[(alternative, False)])


def accepted(*holders: Holder, **options: Any) -> bool:
    try:
        trust(**options).validate([holder.certificate.der for holder in holders], NOW)
    except PeerError as error:
        assert "may not vouch for" in str(error), error
        return False
    return True


@pytest.mark.parametrize(
    ("subtree", "inside", "outside"),
    [
        (
            "example.net",
            ("example.net", "a.example.net", "a.b.Example.NET", "*.example.net"),
            ("example.org", "badexample.net", "example.net.org", "net", "a.example.ne", "a..example.net"),
        ),
        (".example.net", ("a.example.net",), ("example.net", "badexample.net")),
        ("@example.net", ("a@example.net", "A@EXAMPLE.net"), ("a@b.example.net", "a@example.org")),
        ("@.example.net", ("a@b.example.net", "a@c.b.example.net"), ("a@example.net", "a@badexample.net")),
        ("@bob@example.net", ("bob@example.net", "bob@Example.Net"), ("rob@example.net", "bob@a.example.net")),
        ("10.1.0.0/16", ("10.1.0.1", "10.1.255.255"), ("10.2.0.1", "0.0.0.0", "2001:db8::1")),
        ("2001:db8::/32", ("2001:db8::1",), ("2001:db9::1", "10.1.0.1")),
        (
            "OU=Branch,O=Example",
            ("OU=Branch,O=Example", "CN=x,OU=Branch,O=Example", "CN=x,OU=BRANCH,O=example"),
            ("O=Example", "CN=x,O=Example", "OU=Branch,O=Other", "O=Example,OU=Branch,CN=x"),
        ),
    ],
)
def test_what_lies_within_a_subtree(subtree: str, inside: Sequence[str], outside: Sequence[str]) -> None:
    # The directory name of the certificate itself is constrained as well.
    directory = ("O=Test",) if "=" in subtree else ()
    only = constrained(permitted=(subtree, *directory))
    without = constrained(excluded=(subtree,))
    for name in inside:
        assert accepted(leaf(only, name), only), name
        assert not accepted(leaf(without, name), without), name
    for name in outside:
        assert not accepted(leaf(only, name), only), name


@pytest.mark.parametrize(
    ("subtree", "names"),
    [
        ("example.net", ("example.org", "badexample.net", "net", "*.example.org")),
        ("@example.net", ("a@b.example.net",)),
        ("@bob@example.net", ("rob@example.net",)),
        ("10.1.0.0/16", ("10.2.0.1", "2001:db8::1")),
        ("OU=Branch,O=Example", ("CN=x,O=Example", "OU=Branch,O=Other")),
    ],
)
def test_what_is_not_excluded(subtree: str, names: Sequence[str]) -> None:
    without = constrained(excluded=(subtree,))
    for name in names:
        assert accepted(leaf(without, name), without), name


@pytest.mark.parametrize(
    ("subtree", "name"),
    [
        # Ways around an exclusion: a wildcard, another case, the root's dot, a name read from its other end.
        ("host.example.net", "*.example.net"),
        ("host.example.net", "*"),
        ("example.net", "A.EXAMPLE.NET."),
        ("@bob@example.net", "BOB@example.net"),
        ("@example.net", "bob@EXAMPLE.NET."),
        ("O=Example", "O=EXAMPLE,CN=x"),
        ("O=An Example", "CN=x,O=AN   example"),
        ("", "anything.example"),
    ],
)
def test_ways_around_an_exclusion(subtree: str, name: str) -> None:
    without = constrained(excluded=(subtree,))
    assert not accepted(leaf(without, name), without)


def test_other_forms_are_free() -> None:
    """A constraint of DNS names says nothing about addresses."""
    only = constrained(permitted=("example.net",))
    assert accepted(leaf(only, "10.0.0.1"), only)
    assert accepted(leaf(only, "a@example.org"), only)
    assert not accepted(leaf(only, "10.0.0.1", "a.example.org"), only)


def test_every_authority_of_the_chain_counts() -> None:
    """Constraints below do not widen those above, and the trusted authority's own count too."""
    upper = constrained(permitted=("example.net",), common="Upper")
    lower = constrained(permitted=("example.org", "a.example.net"), by=upper, common="Lower")
    assert accepted(leaf(lower, "x.a.example.net"), lower, upper)
    assert not accepted(leaf(lower, "x.example.org"), lower, upper)
    assert not accepted(leaf(lower, "b.example.net"), lower, upper)
    store = TrustStore([upper.certificate])
    assert store.validate([leaf(upper, "b.example.net").certificate.der], NOW)
    with pytest.raises(PeerError, match="may not vouch for"):
        store.validate([leaf(upper, "b.example.org").certificate.der], NOW)


def test_intermediate_authorities_are_constrained_unless_they_issued_themselves() -> None:
    upper = constrained(excluded=("CN=Middle,O=Test", "CN=Upper,O=Test"), common="Upper")
    middle = upper.authority("Middle")
    assert "may not vouch for CN=Middle,O=Test in certificate" in chain_refused(middle.issue("x"), middle, upper)
    renewed = upper.authority("Upper", kind="ed25519")
    assert accepted(renewed.issue("x"), renewed, upper)
    # The certificate of the peer itself is never exempt.
    assert not accepted(upper.issue("Upper", kind="ed448"), upper)


def test_mail_address_in_the_subject() -> None:
    """RFC 5280 section 4.2.1.10: such names of old certificates are mail addresses."""
    only = constrained(permitted=("@example.net",))
    for mail, fine in (("a@example.net", True), ("a@example.org", False), ("nobody", False)):
        key = only.issue("leaf").key
        subject = x509.Name([x509.NameAttribute(NameOID.EMAIL_ADDRESS, mail)])
        builder = x509.CertificateBuilder(only.certificate.x509.subject, subject, key.public_key(), 5)
        builder = builder.not_valid_before(NOW).not_valid_after(NOW)
        signed = builder.sign(only.key, hashes.SHA256())
        certificate = parse(signed.public_bytes(Encoding.DER))
        assert accepted(Holder(certificate, key), only) is fine, mail


def test_forms_that_cannot_be_compared_are_refused() -> None:
    names = x509.NameConstraints([x509.UniformResourceIdentifier("example.net")], None)
    for critical in (True, False):
        only = root().authority("Middle", extensions=[(names, critical)])
        assert accepted(leaf(only, "a.example.net"), only)
        assert not accepted(leaf(only, "https://a.example.net/"), only)
    only = constrained(permitted=("10.0.0.0/8",))
    network = x509.SubjectAlternativeName([x509.IPAddress(ip_network("10.1.0.0/16"))])
    assert not accepted(only.issue("leaf", extensions=[(network, False)]), only)


def test_too_many_names() -> None:
    only = constrained(permitted=("example.net",))
    many = [f"h{number}.example.net" for number in range(MAX_NAMES)]
    assert accepted(leaf(only, *many[:-1]), only)
    assert f"has {MAX_NAMES + 1} names" in chain_refused(leaf(only, *many), only)
    wide = constrained(permitted=[f"h{number}.example.net" for number in range(MAX_SUBTREES + 1)])
    assert "no trusted CA vouches" in chain_refused(leaf(wide, "h1.example.net"), wide)


@pytest.mark.parametrize(
    "encoded",
    [
        # permittedSubtrees: example.net with minimum 1, and with maximum 2.
        "3014a0123010820b6578616d706c652e6e6574800101",
        "3014a0123010820b6578616d706c652e6e6574810102",
    ],
)
def test_constraints_with_more_than_names(encoded: str) -> None:
    """The library reads the names and skips the rest: such an authority signs nothing."""
    extension = x509.UnrecognizedExtension(x509.NameConstraints.oid, bytes.fromhex(encoded))
    middle = root().authority("Middle", extensions=[(extension, True)])
    assert isinstance(middle.certificate.constraints, x509.NameConstraints)
    assert middle.certificate.refusal == "has name constraints with more than names, which are not supported"
    assert "no trusted CA vouches" in chain_refused(leaf(middle, "a.example.net"), middle)
    with pytest.raises(MisuseError, match="has name constraints with more than names"):
        TrustStore([middle.certificate])


@pytest.mark.parametrize(
    "encoded",
    [
        "30030102",
        # A minimum of 0 written out, which DER leaves away; a mask with a hole; a form that is none.
        "3014a0123010820b6578616d706c652e6e6574800100",
        "300ea00c300a87080a000000ff00ff00",
        "3007a00530038f0141",
    ],
)
def test_constraints_that_do_not_decode(encoded: str) -> None:
    extension = x509.UnrecognizedExtension(x509.NameConstraints.oid, bytes.fromhex(encoded))
    with pytest.raises(PeerError, match="does not decode"):
        root().authority("Middle", extensions=[(extension, True)])


def test_a_gateway_with_constraints_is_none() -> None:
    names = x509.NameConstraints([x509.DNSName("example.net")], None)
    assert "is not of a CA" in chain_refused(gateway(A_NAME, extensions=[(names, True)]))


def test_handshake_under_constraints() -> None:
    middle = constrained(permitted=("example.net",))
    fine, bad = gateway(A_NAME, by=middle), gateway("a.example.org", by=middle)
    net = make_wire(certified(A_NAME, fine, credentials=fine.credentials(middle)), certified(B_NAME, gateway(B_NAME)))
    net.connect()
    net = make_wire(
        certified("a.example.org", bad, credentials=bad.credentials(middle)), certified(B_NAME, gateway(B_NAME))
    )
    assert "may not vouch for a.example.org in certificate" in refused(net)


def test_no_key_id_under_constraints() -> None:
    """An authority chooses the subject key identifiers of what it signs: constraints could not hold it back."""
    identifier = x509.SubjectKeyIdentifier(b"victim")
    middle = constrained(permitted=("example.net",))
    for by, fine in ((root().authority("Free"), True), (middle, False)):
        holder = gateway(A_NAME, by=by, extensions=[(identifier, False)])
        net = make_wire(
            certified("keyid:victim", holder, credentials=holder.credentials(by)), certified(B_NAME, gateway(B_NAME))
        )
        if fine:
            net.connect()
        else:
            assert "may not vouch for keyid:victim" in refused(net)


def garbled(octets: bytes, chance: Random) -> bytes:
    changed = bytearray(octets)
    for _ in range(chance.choice((1, 1, 2, 5))):
        changed[chance.randrange(len(changed))] = chance.choice(b"\0\1.*@\x7f\x80\xff\x1e\x83")
    return bytes(changed)


@pytest.mark.parametrize("what", ["names", "constraints"])
def test_garbled_names_raise_nothing_but_peer_errors(what: str) -> None:
    """What an authority signed without looking is taken, or refused in words."""
    chance = Random(5)
    bases = ("example.net", "@example.net", "10.0.0.0/8", "O=Test")
    names = ("a.example.net", "a@example.net", "10.1.1.1", "CN=x,O=Test", "https://example.net/")
    alternative: Any = x509.SubjectAlternativeName([subject_alternative(one) for one in names])
    limits: Any = x509.NameConstraints(list(map(base, bases)), [x509.DNSName("b.example.net")])
    seen = set()
    for _ in range(300):
        changed = [alternative, limits]
        at = what == "constraints"
        octets = garbled(changed[at].public_bytes(), chance)
        changed[at] = x509.UnrecognizedExtension(changed[at].oid, octets)
        try:
            only = root().authority("Middle", extensions=[(changed[1], True)])
            holder = only.issue("leaf", extensions=[(changed[0], False)])
            trust().validate([holder.certificate.der, only.certificate.der], NOW)
        except PeerError as error:
            assert len(str(error)) < 1000
            seen.add(str(error)[:20])
    assert len(seen) > 1


@pytest.mark.parametrize("value", [b"\x13\x02\xff\xfe", b"\x0c\x02\xff\xfe", b"\x03\x02\x00\x01", b"\x13\x00"])
def test_directory_names_of_odd_values(value: bytes) -> None:
    """Octets that are no text of their type, text of no type, and nothing."""
    pair = b"\x06\x03\x55\x04\x0a" + value
    rdn = bytes((0x31, len(pair) + 2, 0x30, len(pair))) + pair
    directory = b"\xa4" + bytes((len(rdn) + 2,)) + bytes((0x30, len(rdn))) + rdn
    extension = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, bytes((0x30, len(directory))) + directory)
    only = constrained(permitted=("O=Test",))
    try:
        holder = only.issue("leaf", extensions=[(extension, False)])
    except PeerError as error:
        assert "does not decode" in str(error)
    else:
        assert not accepted(holder, only)
