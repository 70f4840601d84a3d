"""Authentication by certificate between two engines (RFC 7296 section 2.15, RFC 4754, RFC 7427, RFC 8420)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.x509.oid import ExtendedKeyUsageOID

from dsvpn.errors import PeerError
from dsvpn.ike import events
from dsvpn.ike.authentication import signatures
from dsvpn.ike.authentication.trust import MAX_CERTIFICATES, MAX_INTERMEDIATES
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import AuthMethod, CertificateEncoding, NotifyType
from tests.ike.authority import DAY, KEYS, NOW, Holder, certified, name, root, trust
from tests.ike.certified import A_NAME, B_NAME, alter_proof, answered, chain_refused, gateway, refused, tampered
from tests.ike.harness import Change, Payloads, make_profile, make_wire

# -- every method ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["ecdsa256", "rsa"])
@pytest.mark.parametrize("kind", KEYS)
def test_every_kind_of_key_proves_either_end(kind: str, other: str) -> None:
    """
    HDR, SK {IDi, CERT, N(INITIAL_CONTACT), CERTREQ, AUTH (14), …}  -->
                                    <--  HDR, SK {IDr, CERT, AUTH (14), …}
    """
    net = make_wire(
        certified(A_NAME, gateway(A_NAME, kind=kind), B_NAME), certified(B_NAME, gateway(B_NAME, kind=other), A_NAME)
    )
    net.connect()
    net.check_agreement()
    expected = {
        "ecdsa256": "ECDSA with SHA2-256",
        "ecdsa384": "ECDSA with SHA2-384",
        "ecdsa521": "ECDSA with SHA2-512",
        "rsa": "RSA-PSS with SHA2-256",
        "ed25519": "Ed25519",
        "ed448": "Ed448",
        "mldsa44": "ML-DSA-44",
        "mldsa65": "ML-DSA-65",
        "mldsa87": "ML-DSA-87",
    }
    assert net.b.snapshot(net.now)[0].authentication == expected[kind]
    assert net.a.snapshot(net.now)[0].authentication == expected[other]
    assert net.a.of(events.IkeSaEstablished)[0].remote_identity == B_NAME
    assert net.b.of(events.IkeSaEstablished)[0].remote_identity == A_NAME


def test_rsa_pkcs1_where_that_is_wanted() -> None:
    holder = gateway(A_NAME, kind="rsa")
    net = make_wire(
        certified(A_NAME, holder, credentials=holder.credentials(pss=False)), certified(B_NAME, gateway(B_NAME))
    )
    net.connect()
    assert net.b.snapshot(net.now)[0].authentication == "RSA with SHA2-256"


@pytest.mark.parametrize(
    ("kind", "method", "said"),
    [
        ("ecdsa256", AuthMethod.ECDSA_256, "ECDSA with SHA2-256"),
        ("ecdsa384", AuthMethod.ECDSA_384, "ECDSA with SHA2-384"),
        ("ecdsa521", AuthMethod.ECDSA_521, "ECDSA with SHA2-512"),
        ("rsa", AuthMethod.RSA_SIGNATURE, "RSA with SHA2-256"),
    ],
)
@pytest.mark.parametrize("signer", ["a", "b"])
def test_classic_methods_towards_a_peer_without_rfc_7427(kind: str, method: int, said: str, signer: str) -> None:
    holders = {"a": gateway(A_NAME, kind=kind), "b": gateway(B_NAME, kind=kind)}
    net = make_wire(certified(A_NAME, holders["a"]), certified(B_NAME, holders["b"]))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    # Its peer's SIGNATURE_HASH_ALGORITHMS has never been: IKE_SA_INIT is proved, so it cannot be taken out on the way.
    for end in net.ends:
        for sa in end.engine._context.ike_sas.values():
            if end.name == signer:
                sa.peer_hashes = None
                if signer == "a":
                    outstanding = sa.requests.outstanding
                    assert outstanding is not None
                    net.flying["a"].clear()
                    sa.requests.next_id -= 1
                    sa.requests.close()
                    sa.add_task(outstanding.task, net.now)
                    net.a.engine._context.release_spi(min(net.a.allocated))
    net.collect()
    if signer == "b":
        (proof,) = wire.find_all(net.inside(net.flying["a"][0]), wire.Authentication)
        assert proof.method == AuthMethod.DIGITAL_SIGNATURE
        net.deliver("a")
    (proof,) = wire.find_all(net.inside(net.flying[signer][0]), wire.Authentication)
    assert proof.method == method
    net.settle()
    assert net.a.established
    verifier = net.b if signer == "a" else net.a
    assert verifier.snapshot(net.now)[0].authentication == said


@pytest.mark.parametrize(
    ("kind", "named", "said"),
    [
        ("rsa", (4,), "RSA-PSS with SHA2-512"),
        ("rsa", (1, 3), "RSA-PSS with SHA2-384"),
        ("rsa", (5, 77), ""),
        ("ecdsa384", (2, 3, 4), "ECDSA with SHA2-384"),
        ("ed25519", (5,), "Ed25519"),
        ("ed25519", (2, 3, 4), ""),
        ("mldsa65", (2, 5), "ML-DSA-65"),
    ],
)
def test_only_hashes_that_the_peer_named_are_signed_with(kind: str, named: tuple[int, ...], said: str) -> None:
    """RFC 7427 section 4. SHA-1 is named by some, and never used."""
    credentials = gateway(A_NAME, kind=kind).credentials()
    if not said:
        with pytest.raises(PeerError, match="takes no signature"):
            credentials.sign(b"octets", frozenset(named))
        return
    proof = credentials.sign(b"octets", frozenset(named))
    assert proof.method == AuthMethod.DIGITAL_SIGNATURE
    assert signatures.verify(credentials.certificate.public_key, proof.method, proof.data, b"octets") == said


def test_sha1_is_refused_by_name() -> None:
    holder = gateway(A_NAME, kind="rsa")
    net = make_wire(certified(A_NAME, holder), certified(B_NAME, gateway(B_NAME)))
    data = holder.key.sign(b"octets", padding.PKCS1v15(), hashes.SHA1())
    with pytest.raises(PeerError, match="SHA-1, which is broken"):
        signatures.verify(holder.certificate.public_key, AuthMethod.RSA_SIGNATURE, data, b"octets")
    sha1_with_rsa = bytes.fromhex("300d06092a864886f70d0101050500")

    def sign_with_sha1(payloads: Payloads) -> list[wire.Payload]:
        proof = wire.Authentication(AuthMethod.DIGITAL_SIGNATURE, bytes((15,)) + sha1_with_rsa + bytes(256))
        return [proof if isinstance(p, wire.Authentication) else p for p in payloads]

    assert "SHA-1" in tampered(net, sign_with_sha1)


def test_certificate_on_one_side_and_shared_key_on_the_other() -> None:
    """A profile that has both answers a peer in kind, and proves itself by certificate of its own accord."""
    both = certified(A_NAME, gateway(A_NAME), trust=trust())
    both = replace(both, psk=b"a secret that both know")
    net = make_wire(both, make_profile(B_NAME))
    net.b.engine.initiate("default", net.b.path_to(net.a), net.now)
    net.settle()
    assert net.a.snapshot(net.now)[0].authentication == "pre-shared key"
    assert net.b.snapshot(net.now)[0].authentication == "pre-shared key"
    other = make_wire(both, certified(B_NAME, gateway(B_NAME)))
    other.connect()
    assert other.b.snapshot(net.now)[0].authentication == "ECDSA with SHA2-256"


def test_a_peer_must_use_the_method_that_is_configured() -> None:
    assert "not by shared key" in refused(make_wire(certified(A_NAME, gateway(A_NAME)), make_profile(B_NAME)))
    reason = refused(make_wire(make_profile(A_NAME), certified(B_NAME, gateway(B_NAME))))
    assert "by shared key, not by certificate" in reason


def test_what_ike_sa_init_and_ike_auth_say() -> None:
    net = make_wire(certified(A_NAME, gateway(A_NAME), B_NAME), certified(B_NAME, gateway(B_NAME)))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    request = wire.Message.decode(net.deliver("a").data)
    answer = wire.Message.decode(net.deliver("b").data)
    for message in (request, answer):
        (found,) = [p for p in message.payloads if isinstance(p, wire.Notify) and p.type == 16431]
        assert found.data == bytes.fromhex("00020003000400 05".replace(" ", ""))
        assert wire.find_notify(message.payloads, NotifyType.HTTP_CERT_LOOKUP_SUPPORTED) is None
    (asked,) = wire.find_all(answer.payloads, wire.CertificateRequest)
    assert (asked.encoding, asked.data) == (CertificateEncoding.X509_SIGNATURE, root().certificate.key_hash)
    inside = net.inside(net.flying["a"][0])
    assert [type(p).__name__ for p in inside][:2] == ["IdentificationInitiator", "Certificate"]
    assert wire.find(inside, wire.CertificateRequest) == asked
    # Nothing of this without certificates.
    plain = make_wire()
    plain.connect()
    for flight in plain.record[:2]:
        payloads = wire.Message.decode(flight.data).payloads
        assert wire.find_notify(payloads, NotifyType.SIGNATURE_HASH_ALGORITHMS) is None
        assert wire.find(payloads, wire.CertificateRequest) is None


# -- chains ------------------------------------------------------------------------------------------------


def test_a_chain_of_intermediate_authorities() -> None:
    middle = root().authority("Middle")
    lower = middle.authority("Lower")
    net = make_wire(
        certified(A_NAME, gateway(A_NAME, by=lower), chain=(lower, middle)), certified(B_NAME, gateway(B_NAME))
    )
    net.connect()
    (association,) = net.b.engine._context.associations.values()
    assert association.proved is not None
    assert [c.name for c in association.proved.path] == [
        f"CN={who},O=Test" for who in (A_NAME, "Lower", "Middle", "Root")
    ]


@pytest.mark.parametrize("between", [3, MAX_INTERMEDIATES])
def test_four_certificates_and_more(between: int) -> None:
    """RFC 7296 section 3.6 wants four of them to be sent and taken."""
    holder, chain = root(), list[Holder]()
    for number in range(between):
        holder = holder.authority(f"Level {number}")
        chain.insert(0, holder)
    net = make_wire(
        certified(A_NAME, gateway(A_NAME, by=holder), chain=tuple(chain)), certified(B_NAME, gateway(B_NAME))
    )
    net.connect()
    (association,) = net.b.engine._context.associations.values()
    assert association.proved is not None
    assert len(association.proved.path) == between + 2


def test_the_order_of_the_chain_does_not_matter_and_strangers_in_it_do_no_harm() -> None:
    middle = root().authority("Middle")
    lower = middle.authority("Lower")
    stranger = root("Stranger").authority("Middle")
    holder = gateway(A_NAME, by=lower)
    path = trust().validate([h.certificate.der for h in (holder, stranger, middle, root("Stranger"), lower)], NOW)
    assert [c.serial for c in path] == [h.certificate.serial for h in (holder, lower, middle, root())]


@pytest.mark.parametrize(
    ("middle", "says"),
    [
        ({"ca": False}, "no trusted CA vouches"),
        ({"ca": None}, "no trusted CA vouches"),
        ({"ca": True, "usage": {"digital_signature": True}}, "no trusted CA vouches"),
        ({"ca": True, "end": NOW - DAY / 2}, "expired on"),
        ({"ca": True, "start": NOW + DAY / 2}, "not valid before"),
        (
            {"ca": True, "extensions": [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b""), True)]},
            "no tru",
        ),
    ],
)
def test_an_intermediate_that_is_no_authority(middle: dict[str, Any], says: str) -> None:
    between = root().issue("Middle", **middle)
    assert says in chain_refused(between.issue("leaf"), between)


def test_path_length_constraints() -> None:
    top = root().authority("Top", path_length=0)
    below = top.authority("Below")
    assert trust().validate([top.issue("leaf").certificate.der, top.certificate.der], NOW)
    assert "no trusted CA vouches" in chain_refused(below.issue("leaf"), below, top)


def test_long_chains_and_loops_end() -> None:
    holder = root()
    chain: list[Holder] = []
    for number in range(7):
        holder = holder.authority(f"Level {number}")
        chain.insert(0, holder)
    assert "no trusted CA vouches" in chain_refused(holder.issue("leaf"), *chain)
    one = root("Loop").authority("One")
    two = one.authority("Two")
    cross = two.authority("One")
    assert "no trusted CA vouches" in chain_refused(two.issue("leaf"), two, cross, one, cross)


def test_wrong_authority() -> None:
    other = root("Other")
    net = make_wire(certified(A_NAME, gateway(A_NAME, by=other)), certified(B_NAME, gateway(B_NAME)))
    assert "which no trusted CA vouches for" in refused(net)
    net = make_wire(certified(A_NAME, gateway(A_NAME)), certified(B_NAME, gateway(B_NAME, by=other), trust=trust()))
    assert "which no trusted CA vouches for" in answered(net)


def test_an_authority_with_the_same_name_is_another() -> None:
    forger = Holder(root("Forger").certificate, root("Forger").key)
    forged = forger.issue(A_NAME, (A_NAME,), issuer=name("Root"))
    assert "no trusted CA vouches" in chain_refused(forged)


# -- properties of a peer's certificate --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"end": NOW - DAY / 24}, "expired on 2026-06-15 11:00 UTC"),
        ({"start": NOW + DAY / 24}, "is not valid before 2026-06-15 13:00 UTC"),
        ({"usage": {"key_encipherment": True}}, "is not for signatures"),
        ({"extensions": [(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False)]}, "is not for IPsec"),
        (
            {"extensions": [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True)]},
            "critical extension 1.2.3.4",
        ),
    ],
)
@pytest.mark.parametrize("role", ["initiator", "responder"])
def test_a_certificate_that_is_not_taken(options: dict[str, Any], says: str, role: str) -> None:
    local, remote = (A_NAME, B_NAME) if role == "initiator" else (B_NAME, A_NAME)
    good = certified(remote, gateway(remote))
    # What an honest gateway refuses to be configured with, a peer can send all the same.
    sent, used = gateway(local, **options), gateway(local)

    def swap(payloads: Payloads) -> list[wire.Payload]:
        der = wire.Certificate(CertificateEncoding.X509_SIGNATURE, sent.certificate.der)
        return [der if isinstance(p, wire.Certificate) else p for p in payloads]

    bad = certified(local, used)
    if role == "initiator":
        assert says in tampered(make_wire(bad, good), swap)
    else:
        assert says in answered(make_wire(good, bad), swap)


@pytest.mark.parametrize(
    "purposes",
    [[ExtendedKeyUsageOID.IPSEC_IKE], [ExtendedKeyUsageOID.SERVER_AUTH], [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]],
)
def test_extended_key_usages_that_are_taken(purposes: list[x509.ObjectIdentifier]) -> None:
    holder = gateway(A_NAME, extensions=[(x509.ExtendedKeyUsage(purposes), True)])
    make_wire(certified(A_NAME, holder), certified(B_NAME, gateway(B_NAME))).connect()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda method, data: (method, data[:-1] + bytes((data[-1] ^ 1,))), "not by the key of its certificate"),
        (lambda method, data: (method, data[:5]), "cut short"),
        (lambda method, data: (method, b""), "cut short"),
        (lambda method, data: (method, data[:13]), "cut short"),
        (lambda method, data: (method, b"\x0c" + bytes(12) + data[13:]), "unknown algorithm"),
        (lambda method, data: (method, data + bytes(9000)), "octets"),
        (lambda method, data: (AuthMethod.ECDSA_256, data), "signature has"),
        (lambda method, data: (AuthMethod.ECDSA_256, bytes(64)), "not by the key of its certificate"),
        (lambda method, data: (AuthMethod.ECDSA_384, bytes(96)), "has a key for ECDSA P-256"),
        (lambda method, data: (AuthMethod.RSA_SIGNATURE, data), "has a key for ECDSA P-256"),
        (lambda method, data: (AuthMethod.DSS_SIGNATURE, data), "DSS_SIGNATURE, which is not spoken here"),
        (lambda method, data: (AuthMethod.NULL, b""), "NULL, which is not spoken here"),
        (lambda method, data: (201, b""), "201, which is not spoken here"),
    ],
)
@pytest.mark.parametrize("role", ["initiator", "responder"])
def test_tampered_proofs(change: Any, says: str, role: str) -> None:
    net = make_wire(certified(A_NAME, gateway(A_NAME)), certified(B_NAME, gateway(B_NAME)))
    reason = tampered(net, alter_proof(change)) if role == "initiator" else answered(net, alter_proof(change))
    assert says in reason


def test_a_proof_with_the_hash_of_another_algorithm() -> None:
    """The algorithm is named beside the signature: naming another must not let it pass."""
    for other in signatures.SCHEMES:

        def rename(method: int, data: bytes, other: bytes = other) -> tuple[int, bytes]:
            return method, bytes((len(other),)) + other + data[1 + data[0] :]

        if str(signatures.SCHEMES[other]) == "ECDSA with SHA2-256":
            continue
        net = make_wire(certified(A_NAME, gateway(A_NAME)), certified(B_NAME, gateway(B_NAME)))
        reason = tampered(net, alter_proof(rename))
        assert "not by the key" in reason or "has a key for ECDSA P-256" in reason


def test_somebody_elses_certificate_is_no_proof() -> None:
    mine, other = gateway(A_NAME), gateway("c.example.net", sans=(A_NAME,))

    def swap(payloads: Payloads) -> list[wire.Payload]:
        der = wire.Certificate(CertificateEncoding.X509_SIGNATURE, other.certificate.der)
        return [der if isinstance(p, wire.Certificate) else p for p in payloads]

    net = make_wire(certified(A_NAME, mine), certified(B_NAME, gateway(B_NAME)))
    assert "not by the key of its certificate" in tampered(net, swap)


def replace_certificates(*payloads: wire.Payload) -> Change:
    return lambda before: [*payloads, *(p for p in before if not isinstance(p, wire.Certificate))]


@pytest.mark.parametrize("role", ["initiator", "responder"])
def test_garbage_instead_of_certificates(role: str) -> None:
    der = gateway(A_NAME if role == "initiator" else B_NAME).certificate.der
    encoding = CertificateEncoding.X509_SIGNATURE
    cases: list[tuple[Change, str]] = [
        (replace_certificates(), "sent no certificate"),
        (replace_certificates(wire.Certificate(encoding, b"")), "does not decode"),
        (replace_certificates(wire.Certificate(encoding, b"\x30\x03abc")), "does not decode"),
        (replace_certificates(wire.Certificate(encoding, bytes(20000))), "certificate of 20000 octets"),
        (replace_certificates(*[wire.Certificate(encoding, der)] * (MAX_CERTIFICATES + 1)), "9 certificates"),
        (replace_certificates(wire.Certificate(CertificateEncoding.HASH_AND_URL_X509, b"x" * 40)), "hash and URL"),
        (replace_certificates(wire.Certificate(CertificateEncoding.PGP, der)), "sent no certificate"),
        (replace_certificates(wire.Certificate(CertificateEncoding.CRL, der)), "sent no certificate"),
    ]
    for change, says in cases:
        net = make_wire(certified(A_NAME, gateway(A_NAME)), certified(B_NAME, gateway(B_NAME)))
        assert says in (tampered(net, change) if role == "initiator" else answered(net, change))


def test_every_truncated_and_flipped_certificate_is_refused_without_an_exception() -> None:
    der = gateway(A_NAME).certificate.der
    store = trust()
    broken = [der[:at] for at in range(len(der))]
    broken += [der[:at] + bytes((der[at] ^ 1 << bit,)) + der[at + 1 :] for at in range(len(der)) for bit in (0, 3, 7)]
    for data in broken:
        with pytest.raises(PeerError):
            store.validate([data, data], NOW)


def test_a_signature_with_unused_bits_is_refused() -> None:
    """Of a signature whose last octet is even, one bit can be declared unused without another one changing."""
    while (certificate := gateway(A_NAME).certificate).x509.signature[-1] & 1:
        pass
    at = len(certificate.der) - len(certificate.x509.signature) - 1
    data = certificate.der[:at] + b"\x01" + certificate.der[at + 1 :]
    assert x509.load_der_x509_certificate(data).signature == certificate.x509.signature
    with pytest.raises(PeerError, match="whole octets"):
        trust().validate([data], NOW)
