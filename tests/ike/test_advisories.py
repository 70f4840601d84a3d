"""The classes of mistakes that other implementations of IKEv2 were warned about in 2025 and 2026, tried here.

Each test names what went wrong elsewhere; the code is another, the temptation is the same.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from datetime import timedelta
from time import process_time
from typing import Any

import pytest
from cryptography import x509

from dsvpn.ike import events
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import CertificateEncoding, ExchangeType, NotifyType, PayloadType, ProtocolId
from tests.ike.authority import NOW, certified, root, trust
from tests.ike.bad_network import check_end
from tests.ike.certified import A_NAME, B_NAME, answered, chain_refused, gateway, tampered
from tests.ike.fuzzing import seal
from tests.ike.harness import InFlight, Payloads, Wire, both_options, make_wire


def at_ike_auth(net: Wire) -> InFlight:
    """Both have keys and nobody has proved anything: the initiator's IKE_AUTH, which has not arrived."""
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    return net.flying["a"].popleft()


# -- a state machine that takes CREATE_CHILD_SA before IKE_AUTH (CVE-2026-78135) --------------------------------------


def child_request() -> list[wire.Payload]:
    from dsvpn.addresses import Endpoint, Path
    from dsvpn.ike import selectors
    from dsvpn.ike.proposals import offer_esp
    from dsvpn.ike.suites import parse_esp_suite
    from tests.ike.harness import A, B

    ts_i, ts_r = selectors.propose(Path(Endpoint(A, 500), Endpoint(B, 500)))
    return [
        wire.Notify(NotifyType.USE_TRANSPORT_MODE),
        offer_esp([parse_esp_suite("aes128gcm16")], 0x12345678, with_groups=True),
        wire.Nonce(bytes(32)),
        wire.TrafficSelectorsInitiator((ts_i,)),
        wire.TrafficSelectorsResponder((ts_r,)),
    ]


UNPROVED: list[tuple[int, list[wire.Payload]]] = [
    (ExchangeType.CREATE_CHILD_SA, child_request()),
    (ExchangeType.INFORMATIONAL, []),
    (ExchangeType.INFORMATIONAL, [wire.Delete(ProtocolId.IKE)]),
    (ExchangeType.INFORMATIONAL, [wire.Notify(NotifyType.AUTH_LIFETIME, bytes(4))]),
    (ExchangeType.IKE_FOLLOWUP_KE, [wire.KeyExchange(31, bytes(32)), wire.Notify(NotifyType.ADDITIONAL_KEY_EXCHANGE)]),
    (ExchangeType.IKE_INTERMEDIATE, [wire.KeyExchange(31, bytes(32))]),
    (38, []),
]


@pytest.mark.parametrize(("exchange", "payloads"), UNPROVED)
@pytest.mark.parametrize("message_id", [0, 1, 2])
def test_nothing_but_ike_auth_before_ike_auth(exchange: int, payloads: list[wire.Payload], message_id: int) -> None:
    """Whoever can do a key exchange can seal; that proves nothing. To either end, as request and as answer."""
    net = make_wire()
    flight = at_ike_auth(net)
    header = wire.Message.decode(flight.data).header
    key = net._key(flight)
    for flags in (wire.Flag.INITIATOR, wire.Flag.INITIATOR | wire.Flag.RESPONSE):
        forged = wire.Header(header.initiator_spi, header.responder_spi, exchange, flags, message_id)
        net.b.engine.receive_datagram(key.seal(forged, payloads), flight.path, net.now)
    peer_key = net.b.engine._context.ike_sas[header.responder_spi]._sealing
    assert peer_key is not None
    for flags in (0, wire.Flag.RESPONSE):
        forged = wire.Header(header.initiator_spi, header.responder_spi, exchange, flags, message_id)
        net.a.engine.receive_datagram(peer_key.seal(forged, payloads), net.a.path_to(net.b), net.now)
    net.collect()
    assert not net.b.events
    assert not net.b.allocated
    assert not net.a.events
    assert not net.flying["b"]
    # The handshake goes on as if nothing had happened.
    net.hand(flight)
    net.settle()
    assert net.a.established
    assert net.b.established
    net.check_agreement()


def test_after_a_refused_proof_nothing_more_is_taken() -> None:
    net = make_wire(*both_options())
    net.b.engine._context.profiles["default"] = replace(
        net.b.engine._context.profiles["default"], psk=b"another secret"
    )
    flight = at_ike_auth(net)
    net.hand(flight)
    assert net.b.of(events.IkeAuthenticationRefused)
    header = wire.Message.decode(flight.data).header
    key = net._key(flight)
    for exchange, payloads in [*UNPROVED, (ExchangeType.IKE_AUTH, [])]:
        for message_id in (1, 2, 3):
            forged = wire.Header(header.initiator_spi, header.responder_spi, exchange, wire.Flag.INITIATOR, message_id)
            net.b.engine.receive_datagram(key.seal(forged, payloads), flight.path, net.now)
            net.b.drain()
            assert not net.b.engine.datagrams_to_send(net.now)
    assert not net.b.established
    assert not net.b.allocated


def test_a_second_ike_auth_makes_nothing() -> None:
    """It is no request that an established IKE SA can have, and ends it."""
    net = make_wire(*both_options(dpd_interval=20.0))
    flight = at_ike_auth(net)
    chain = net.inside(flight)
    net.hand(flight)
    net.settle()
    made = set(net.b.allocated)
    header = wire.Message.decode(flight.data).header
    again = wire.Header(
        header.initiator_spi, header.responder_spi, ExchangeType.IKE_AUTH, wire.Flag.INITIATOR, header.message_id + 1
    )
    net.hand(replace(flight, data=net._key(flight).seal(again, list(chain))))
    (answer,) = net.flying["b"]
    assert net.inside(answer) == (wire.Notify(NotifyType.INVALID_SYNTAX),)
    assert net.b.allocated == made
    net.settle()
    net.sleep(200)
    check_end(net)
    assert not net.b.established
    assert not net.b.children


# -- lengths from which something is subtracted (CVE-2026-25075), EAP that nobody asked for (CVE-2025-62291) ----------


def lengths(chain: bytes, first: int) -> list[tuple[int, int]]:
    """Where the lengths of a payload chain stand: offset, and the real one."""
    found, at, kind = [], 0, first
    while kind:
        (length,) = struct.unpack_from("!H", chain, at + 2)
        found.append((at + 2, length))
        kind, at = chain[at], at + length
    return found


@pytest.mark.parametrize("wrong", [0, 1, 3, 4, 5, 7, 0xFFFF, -1, +1])
def test_lengths_that_lie_inside_ike_auth(wrong: int) -> None:
    """Every payload in turn says that it is longer or shorter, down to less than its own header."""
    template = make_wire()
    payloads = template.inside(at_ike_auth(template))
    first, chain = wire.encode_payloads(payloads)
    for at, real in lengths(chain, first):
        value = real + wrong if wrong in (-1, 1) else wrong
        net = make_wire()
        flight = at_ike_auth(net)
        forged = chain[:at] + struct.pack("!H", value) + chain[at + 2 :]
        net.hand(replace(flight, data=seal(net, flight, first, forged)))
        assert not net.b.established
        net.settle()
        net.sleep(100)
        net.b.check_spis()
        assert not net.b.engine._context.ike_sas


EAP_BODIES = [
    b"",
    b"\1",
    b"\1\1\0\4",
    b"\1\1\0\0",
    b"\1\1\xff\xff\x15",
    b"\3\1\0\4",
    b"\4\1\0\4",
    # EAP-TTLS with an AVP whose length is less than its header, and MSCHAPv2's failure request without an end.
    b"\1\1\0\x12\x15\x80\0\0\0\x08\0\0\0\x4f\x40\0\0\1",
    b"\1\1\0\x0a\x1a\4\1\0\xff\xff",
]


@pytest.mark.parametrize("body", EAP_BODIES)
@pytest.mark.parametrize("role", ["initiator", "responder"])
def test_eap_is_not_spoken(body: bytes, role: str) -> None:
    """Neither end looks into it: what is offered instead of a proof is no proof."""
    net = make_wire()
    flight = at_ike_auth(net)
    first, chain = wire.encode_payloads([p for p in net.inside(flight) if not isinstance(p, wire.Authentication)])
    payload = bytes((first, 0)) + struct.pack("!H", len(body) + 4) + body
    if role == "initiator":
        net.hand(flight)
        flight = net.flying["b"].popleft()
        first, chain = wire.encode_payloads(
            [p for p in net.inside(flight) if isinstance(p, wire.IdentificationResponder)]
        )
        payload = bytes((first, 0)) + struct.pack("!H", len(body) + 4) + body
    net.hand(replace(flight, data=seal(net, flight, PayloadType.EAP, payload + chain)))
    assert not flight.receiver.established
    net.settle()
    net.sleep(300)
    check_end(net)


# -- certificates in wrappings: PKCS #7 without certificates (CVE-2026-77207), attribute certificates that make a
#    parser loop or leak (CVE-2026-78131, CVE-2026-78132) -------------------------------------------------------------

#: SignedData with a CRL's place and no certificate; an attribute certificate's beginning; and no ASN.1 at all.
WRAPPED = [
    bytes.fromhex("301806092a864886f70d010702a00b3009020101310030000000"),
    bytes.fromhex("30820100a1820000"),
    b"\x30\x80" * 200,
    b"\x30\x84\xff\xff\xff\xff",
    b"",
    b"\xff" * 3000,
]


@pytest.mark.parametrize("octets", WRAPPED)
@pytest.mark.parametrize("encoding", [*CertificateEncoding, 0, 200])
def test_certificates_in_other_wrappings_are_not_opened(encoding: int, octets: bytes) -> None:
    holder = gateway(A_NAME)
    net = make_wire(certified(A_NAME, holder), certified(B_NAME, gateway(B_NAME)))

    def instead(payloads: Payloads) -> list[wire.Payload]:
        return [wire.Certificate(encoding, octets) if isinstance(p, wire.Certificate) else p for p in payloads]

    begun = process_time()
    assert tampered(net, instead)
    assert process_time() - begun < 5.0


def test_many_certificates_cost_little() -> None:
    """As many as fit into a message: they are counted before anybody looks into them."""
    middle = root().authority("Middle")
    others = [middle.authority(f"M{number % 3}").certificate.der for number in range(60)]
    holder = gateway(A_NAME, by=middle)
    net = make_wire(certified(A_NAME, holder), certified(B_NAME, gateway(B_NAME)))

    def with_more(payloads: Payloads) -> list[wire.Payload]:
        return [
            *payloads,
            *(wire.Certificate(CertificateEncoding.X509_SIGNATURE, der) for der in others),
        ]

    begun = process_time()
    assert tampered(net, with_more) == "peer sent 61 certificates; 8 are the most"
    assert process_time() - begun < 5.0


# -- name constraints compared by case (CVE-2026-35331) ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["example.net", "EXAMPLE.NET", "Example.Net"])
@pytest.mark.parametrize("kind", ["permitted", "excluded"])
def test_name_constraints_hold_however_they_are_written(kind: str, name: str) -> None:
    names = [x509.DNSName(name)]
    constraints = x509.NameConstraints(names if kind == "permitted" else None, names if kind == "excluded" else None)
    inside, outside = A_NAME, "a.example.com"
    for critical in (True, False):
        middle = root().authority("Middle", extensions=[(constraints, critical)])
        for identity in (inside, inside.upper(), outside, outside.upper()):
            leaf = gateway(identity, by=middle)
            if (identity.lower() == inside) == (kind == "permitted"):
                assert trust().validate([leaf.certificate.der, middle.certificate.der], NOW)
            else:
                assert "may not vouch for" in chain_refused(leaf, middle)


def test_identities_do_not_depend_on_case() -> None:
    """Neither letting in nor keeping out: a DNS name is one name however it is written (RFC 4343)."""
    net = make_wire(
        certified(A_NAME.upper(), gateway(A_NAME)), certified(B_NAME, gateway(B_NAME.upper(), sans=(B_NAME.upper(),)))
    )
    net.connect()
    net.check_agreement()


# -- revoked meanwhile (reauthentication that overlooks it), expired meanwhile -----------------------------------------


def test_reauthentication_asks_for_revocation_again() -> None:
    bad = gateway(A_NAME)
    net = make_wire(certified(A_NAME, bad), certified(B_NAME, gateway(B_NAME)))
    net.connect()
    net.b.engine._context.profiles["default"] = certified(B_NAME, gateway(B_NAME), trust=trust(crls=[root().crl(bad)]))
    net.a.engine.reauthenticate(net.a.handle, net.now)
    net.settle()
    assert "is revoked" in net.b.of(events.IkeAuthenticationRefused)[0].reason
    assert len(net.b.established) == 1


def test_a_certificate_of_the_future_or_past_is_none() -> None:
    for times in ({"start": NOW + timedelta(days=1), "end": NOW + timedelta(days=2)}, {"end": NOW - timedelta(1)}):
        options: dict[str, Any] = {"start": NOW - timedelta(days=9)} | times
        holder = gateway(B_NAME, **options)
        reason = answered(make_wire(certified(A_NAME, gateway(A_NAME)), certified(B_NAME, holder)))
        assert "valid before" in reason or "expired" in reason


# -- public values: too long for a buffer (CVE-2023-41913), or that make the secret known ------------------------------


@pytest.mark.parametrize("length", [0, 1, 31, 33, 256, 1000, 60000])
def test_public_values_of_any_length(length: int) -> None:
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    flight = net.flying["a"].popleft()
    message = wire.Message.decode(flight.data)
    changed = tuple(
        wire.KeyExchange(p.group, b"\x05" * length) if isinstance(p, wire.KeyExchange) else p for p in message.payloads
    )
    net.hand(replace(flight, data=wire.Message(message.header, changed).encode()))
    assert not net.b.engine._context.ike_sas
    # Refused, and the true one is served afterwards.
    net.flying["b"].clear()
    net.hand(flight)
    net.settle()
    assert net.a.established


# -- fragments that never end, and too many ----------------------------------------------------------------------------


def test_fragments_of_strangers_keep_nothing() -> None:
    """Unauthentic fragments are not kept, whatever they say of their number."""
    net = make_wire()
    net.connect()
    status = net.b.snapshot(net.now)[0]
    for number in range(1, 500):
        body = struct.pack("!HH", number % 65535, 65535) + bytes(64)
        header = wire.Header(
            status.initiator_spi.to_bytes(8, "big"),
            status.responder_spi.to_bytes(8, "big"),
            ExchangeType.INFORMATIONAL,
            wire.Flag.INITIATOR,
            status.expected_request_id,
        )
        payload = bytes((0, 0)) + struct.pack("!H", len(body) + 4) + body
        net.b.engine.receive_datagram(
            header.encode(PayloadType.SKF, wire.HEADER_LENGTH + len(payload)) + payload, net.b.path_to(net.a), net.now
        )
    (sa,) = net.b.engine._context.ike_sas.values()
    assert sa.reassembly.deadline == float("inf")
    net.check_agreement()
