"""The IKEv2 codec against datagrams that others made: recorded exchanges (tests/vectors/ikev2) and RFC examples."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from dsvpn.errors import DecodeError
from dsvpn.wire.ikev2 import (
    OPAQUE_PORTS,
    Authentication,
    Certificate,
    Configuration,
    ConfigurationAttribute,
    Delete,
    EncryptedFragment,
    ExchangeType,
    IdentificationInitiator,
    IdentificationResponder,
    KeyExchange,
    Message,
    Nonce,
    Notify,
    NotifyType,
    Payload,
    PayloadType,
    Proposal,
    SecurityAssociation,
    TrafficSelector,
    TrafficSelectorsInitiator,
    TrafficSelectorsResponder,
    Transform,
    UnknownTrafficSelector,
    decode_payloads,
    encode_payloads,
    find,
    find_all,
    find_notify,
    name_of,
)
from tests.wire.ikev2_capture import VECTORS, datagrams, open_sealed, read_keys

CAPTURE = datagrams(VECTORS / "strongswan5.9.8.pcap")
KEYS = read_keys(VECTORS / "strongswan5.9.8.keys")

#: Every datagram of the capture in the notation of RFC 7296: exchange, message id, request or response, payloads.
EXCHANGES = [
    "IKE_SA_INIT 0 > SA KE NONCE N(NAT_DETECTION_SOURCE_IP) N(NAT_DETECTION_DESTINATION_IP)"
    " N(SIGNATURE_HASH_ALGORITHMS) N(REDIRECT_SUPPORTED)",
    "IKE_SA_INIT 0 < N(INVALID_KE_PAYLOAD)",
    "IKE_SA_INIT 0 > SA KE NONCE N(NAT_DETECTION_SOURCE_IP) N(NAT_DETECTION_DESTINATION_IP)"
    " N(SIGNATURE_HASH_ALGORITHMS) N(REDIRECT_SUPPORTED)",
    "IKE_SA_INIT 0 < SA KE NONCE N(NAT_DETECTION_SOURCE_IP) N(NAT_DETECTION_DESTINATION_IP) CERTREQ"
    " N(SIGNATURE_HASH_ALGORITHMS) N(CHILDLESS_IKEV2_SUPPORTED) N(MULTIPLE_AUTH_SUPPORTED)",
    "IKE_AUTH 1 > SK{IDI N(INITIAL_CONTACT) CERTREQ IDR AUTH N(USE_TRANSPORT_MODE) SA TSI TSR"
    " N(MULTIPLE_AUTH_SUPPORTED) N(EAP_ONLY_AUTHENTICATION) N(IKEV2_MESSAGE_ID_SYNC_SUPPORTED)}",
    "IKE_AUTH 1 < SK{IDR AUTH N(NO_PROPOSAL_CHOSEN)}",
    "IKE_SA_INIT 0 > SA KE NONCE N(NAT_DETECTION_SOURCE_IP) N(NAT_DETECTION_DESTINATION_IP)"
    " N(IKEV2_FRAGMENTATION_SUPPORTED) N(SIGNATURE_HASH_ALGORITHMS) N(REDIRECT_SUPPORTED)",
    "IKE_SA_INIT 0 < SA KE NONCE N(NAT_DETECTION_SOURCE_IP) N(NAT_DETECTION_DESTINATION_IP) CERTREQ"
    " N(IKEV2_FRAGMENTATION_SUPPORTED) N(SIGNATURE_HASH_ALGORITHMS) N(CHILDLESS_IKEV2_SUPPORTED)"
    " N(MULTIPLE_AUTH_SUPPORTED)",
    "IKE_AUTH 1 > SKF(1/3)",
    "IKE_AUTH 1 > SKF(2/3)",
    "IKE_AUTH 1 > SKF(3/3)",
    "IKE_AUTH 1 < SKF(1/2)",
    "IKE_AUTH 1 < SKF(2/2)",
    "CREATE_CHILD_SA 2 > SK{SA NONCE KE}",
    "CREATE_CHILD_SA 2 < SK{SA NONCE KE}",
    "INFORMATIONAL 3 > SK{DELETE}",
    "INFORMATIONAL 3 < SK{}",
    "INFORMATIONAL 0 > SK{DELETE}",
    "INFORMATIONAL 0 < SK{}",
    "INFORMATIONAL 0 > SK{DELETE}",
    "INFORMATIONAL 0 < SK{}",
]


def noted(payloads: tuple[Payload, ...]) -> str:
    return " ".join(
        f"N({payload.name})" if isinstance(payload, Notify) else name_of(PayloadType, payload.payload_type)
        for payload in payloads
    )


def notation(datagram: bytes) -> str:
    message = Message.decode(datagram)
    header = message.header
    start = f"{name_of(ExchangeType, header.exchange_type)} {header.message_id} {'<' if header.is_response else '>'} "
    fragment = find(message.payloads, EncryptedFragment)
    if fragment is not None:
        return f"{start}SKF({fragment.number}/{fragment.total})"
    opened = open_sealed(message, KEYS)
    return start + (noted(message.payloads) if opened is None else f"SK{{{noted(decode_payloads(*opened))}}}")


def payloads_of(index: int) -> tuple[Payload, ...]:
    """The payloads of datagram `index`, opened if they were sealed."""
    message = Message.decode(CAPTURE[index])
    opened = open_sealed(message, KEYS)
    return message.payloads if opened is None else decode_payloads(*opened)


def reassembled(indices: range) -> tuple[Payload, ...]:
    """The payloads of a fragmented message (RFC 7383 section 2.6)."""
    opened = [open_sealed(Message.decode(CAPTURE[index]), KEYS) for index in indices]
    parts = [part for part in opened if part is not None]
    return decode_payloads(parts[0][0], b"".join([plaintext for _, plaintext in parts]))


def test_capture_reads_as_the_exchanges_it_holds() -> None:
    assert [notation(datagram) for datagram in CAPTURE] == EXCHANGES


@pytest.mark.parametrize("index", range(len(EXCHANGES)))
def test_recorded_datagram_encodes_to_the_same_octets(index: int) -> None:
    message = Message.decode(CAPTURE[index])
    assert message.encode() == CAPTURE[index]
    if find(message.payloads, EncryptedFragment) is None:
        opened = open_sealed(message, KEYS)
        if opened is not None:
            assert encode_payloads(decode_payloads(*opened)) == opened


@pytest.mark.parametrize("index", range(len(EXCHANGES)))
def test_recorded_datagram_damaged_decodes_or_is_refused(index: int) -> None:
    datagram = CAPTURE[index]
    for at in range(len(datagram)):
        with pytest.raises(DecodeError):
            Message.decode(datagram[:at])
        damaged = bytearray(datagram)
        damaged[at] ^= 0xFF
        try:
            Message.decode(bytes(damaged))
        except DecodeError as refused:
            assert refused.offset <= len(datagram)


def test_init_request_offers_what_was_configured() -> None:
    assert find(payloads_of(0), SecurityAssociation) == SecurityAssociation(
        (
            Proposal(1, 1, b"", (Transform(1, 20, 128), Transform(2, 5), Transform(4, 31), Transform(4, 19))),
            Proposal(2, 1, b"", (Transform(1, 28), Transform(2, 7), Transform(4, 31))),
            Proposal(3, 1, b"", (Transform(1, 20, 128), Transform(1, 20, 256), Transform(2, 5), Transform(4, 19))),
        )
    )


def test_invalid_ke_names_the_group_and_the_second_request_uses_it() -> None:
    refusal = find_notify(payloads_of(1), NotifyType.INVALID_KE_PAYLOAD)
    assert refusal is not None
    assert refusal.data == bytes.fromhex("0013")
    first, second = find(payloads_of(0), KeyExchange), find(payloads_of(2), KeyExchange)
    assert first is not None
    assert second is not None
    assert (first.group, len(first.data), second.group, len(second.data)) == (31, 32, 19, 64)


def test_auth_request_for_gre_in_transport_mode() -> None:
    payloads = payloads_of(4)
    initiator, responder = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
    assert find(payloads, IdentificationInitiator) == IdentificationInitiator(2, b"spoke1")
    assert find(payloads, IdentificationResponder) == IdentificationResponder(2, b"hub.example.org")
    assert find(payloads, SecurityAssociation) == SecurityAssociation(
        (
            Proposal(1, 3, bytes.fromhex("1b1e6cc2"), (Transform(1, 20, 128), Transform(5, 1), Transform(5, 0))),
            Proposal(2, 3, bytes.fromhex("1b1e6cc2"), (Transform(1, 28), Transform(5, 0))),
        )
    )
    assert find(payloads, TrafficSelectorsInitiator) == TrafficSelectorsInitiator(
        (TrafficSelector(initiator, initiator, 47),)
    )
    assert find(payloads, TrafficSelectorsResponder) == TrafficSelectorsResponder(
        (TrafficSelector(responder, responder, 47),)
    )


def test_fragmented_auth_exchange_with_certificates_and_configuration() -> None:
    request, response = reassembled(range(8, 11)), reassembled(range(11, 13))
    for payloads, name in [(request, b"a.example.org"), (response, b"b.example.org")]:
        certificate, authentication = find(payloads, Certificate), find(payloads, Authentication)
        assert certificate is not None
        assert certificate.encoding == 4
        assert name in certificate.data
        assert authentication is not None
        assert authentication.method == 14
    assert find(request, Configuration) == Configuration(1, (ConfigurationAttribute(1), ConfigurationAttribute(8)))
    assert find(response, Configuration) == Configuration(
        2,
        (
            ConfigurationAttribute(1, IPv4Address("10.9.0.1").packed),
            ConfigurationAttribute(8, IPv6Address("2001:db8:9::1").packed + b"\x40"),
            ConfigurationAttribute(3, IPv4Address("192.0.2.53").packed),
        ),
    )
    assert find(request, TrafficSelectorsResponder) == TrafficSelectorsResponder(
        (
            TrafficSelector(IPv4Address("10.8.0.0"), IPv4Address("10.8.255.255")),
            TrafficSelector(IPv6Address("2001:db8:8::"), IPv6Address("2001:db8:8:ffff:ffff:ffff:ffff:ffff")),
        )
    )
    assert find_notify(response, NotifyType.TS_UNACCEPTABLE) is not None


def test_ike_sa_rekey_carries_the_new_spis_in_its_proposals() -> None:
    for index, spi in [(13, "d4989b48ce964136"), (14, "e2405fd18577d868")]:
        payload = find(payloads_of(index), SecurityAssociation)
        assert payload is not None
        assert [proposal.spi.hex() for proposal in payload.proposals] == [spi]
        nonce = find(payloads_of(index), Nonce)
        assert nonce is not None
        assert len(nonce.data) == 32
    assert find_all(payloads_of(15), Delete) == [Delete(1)]


@pytest.mark.parametrize(
    ("payload", "octets"),
    [
        # A trap policy for GRE with key 42 offers the packet's own selector first; the key stands in both ports.
        (
            TrafficSelectorsInitiator(
                (
                    TrafficSelector(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.1"), 47, 42, 42),
                    TrafficSelector(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.1"), 47),
                )
            ),
            "02000000 072f0010002a002ac0000201c0000201 072f00100000ffffc0000201c0000201",
        ),
        # RFC 7296 section 3.13.1: OPAQUE is start port 65535 and end port 0.
        (
            TrafficSelectorsResponder((TrafficSelector(IPv6Address("::"), IPv6Address("::1"), 6, *OPAQUE_PORTS),)),
            f"01000000 08060028ffff0000 {'00' * 32}"[:-1] + "1",
        ),
        # RFC 9478 section 3: a security label, zero octet, length, label.
        (
            TrafficSelectorsResponder((UnknownTrafficSelector(10, 0, b"label"),)),
            "01000000 0a000009 6c6162656c",
        ),
        # RFC 9370 section 2.2.2: ADDKE1 offers ML-KEM-768.
        (
            SecurityAssociation((Proposal(1, 1, b"", (Transform(1, 20, 256), Transform(6, 36))),)),
            "0000001c 01010002 0300000c 01000014 800e0100 00000008 06000024",
        ),
        # RFC 7296 section 3.11: the IKE SA is deleted without SPIs, CHILD_SAs by 4-octet SPIs.
        (Delete(1), "01000000"),
        (Delete(3, (b"\xc0\0\0\1", b"\xc0\0\0\2")), "03040002 c0000001 c0000002"),
        # RFC 7296 section 1.3.3: REKEY_SA names the SA that is being rekeyed.
        (Notify(NotifyType.REKEY_SA, b"", 3, b"\xc0\0\0\1"), "03044009 c0000001"),
    ],
)
def test_octets_written_from_the_rfcs(payload: Payload, octets: str) -> None:
    body = bytes.fromhex(octets)
    assert payload.encode() == body
    chain = b"\0\0" + (4 + len(body)).to_bytes(2, "big") + body
    assert decode_payloads(payload.payload_type, chain) == (payload,)
    assert encode_payloads([payload]) == (payload.payload_type, chain)
