"""The IKEv2 codec against itself: round trips, truncation, damage and every rule that refuses."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsvpn.errors import DecodeError, MisuseError
from dsvpn.wire.ikev2 import (
    HEADER_LENGTH,
    Authentication,
    Delete,
    Encrypted,
    EncryptedFragment,
    Flag,
    Header,
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
    Transform,
    TransformAttribute,
    TransformType,
    UnknownPayload,
    add_padding,
    decode_payloads,
    encode_associated_data,
    encode_fragment_associated_data,
    encode_payloads,
    find,
    find_all,
    find_notify,
    name_of,
    remove_padding,
    unsupported_critical,
)
from dsvpn.wire.ikev2.delete import MAX_SPIS
from dsvpn.wire.ikev2.payload import MAX_PAYLOADS
from dsvpn.wire.ikev2.sa import MAX_ATTRIBUTES, MAX_PROPOSALS
from tests.wire.ikev2_strategies import (
    ENCRYPTED_SAMPLES,
    GCM_PROPOSAL,
    SAMPLES,
    SELECTOR_4,
    SELECTOR_6,
    encrypted_payloads,
    headers,
    messages,
    plain_chains,
    plain_payloads,
)

HEADER = Header(b"initiatr", b"respondr", 35, 0x08, 1)
EVERY_SAMPLE = [Message(HEADER, (sample,)) for sample in SAMPLES + ENCRYPTED_SAMPLES] + [
    Message(HEADER, SAMPLES + ENCRYPTED_SAMPLES[:1])
]


def chain(kind: int, body: bytes, critical: int = 0) -> bytes:
    """One payload behind its generic header, written by hand."""
    return bytes((0, critical)) + (4 + len(body)).to_bytes(2, "big") + body


def decode_one(kind: int, body: bytes) -> Payload:
    (payload,) = decode_payloads(kind, chain(kind, body))
    return payload


# --- round trips


@pytest.mark.parametrize("kind", plain_payloads, ids=lambda kind: str(kind.__name__))
@given(data=st.data())
def test_payload_round_trip(kind: type[object], data: st.DataObject) -> None:
    payload = data.draw(plain_payloads[kind])
    assert isinstance(payload, kind)
    first, encoded = encode_payloads([payload])
    assert first == payload.payload_type
    assert decode_payloads(first, encoded) == (payload,)


@pytest.mark.parametrize("kind", encrypted_payloads, ids=lambda kind: str(kind.__name__))
@given(data=st.data())
def test_encrypted_payload_round_trip(kind: type[object], data: st.DataObject) -> None:
    message = Message(HEADER, (data.draw(encrypted_payloads[kind]),))
    assert Message.decode(message.encode()) == message


@given(message=messages)
def test_message_round_trip(message: Message) -> None:
    encoded = message.encode()
    decoded = Message.decode(encoded)
    assert decoded == message
    assert decoded.header.length == len(encoded)
    assert decoded.encode() == encoded


@given(header=headers, inner=plain_chains, outer=plain_chains, data=st.binary(max_size=40))
def test_associated_data_is_what_precedes_the_sealed_octets(
    header: Header, inner: list[Payload], outer: list[Payload], data: bytes
) -> None:
    first, plaintext = encode_payloads(inner)
    sealed = data + add_padding(plaintext)
    front = encode_associated_data(header, first, len(sealed), outer)
    decoded = Message.decode(front + sealed)
    encrypted = decoded.payloads[-1]
    assert isinstance(encrypted, Encrypted)
    assert encrypted.associated_data == front
    assert decoded.payloads[:-1] == tuple(outer)
    assert decoded == Message(header, (*outer, Encrypted(first, sealed)))
    assert decode_payloads(encrypted.first_payload, remove_padding(encrypted.data[len(data) :])) == tuple(inner)


@given(header=headers, outer=plain_chains, number=st.integers(1, 9), more=st.integers(0, 9), sealed=st.binary())
def test_fragment_associated_data_includes_the_fragment_numbers(
    header: Header, outer: list[Payload], number: int, more: int, sealed: bytes
) -> None:
    front = encode_fragment_associated_data(header, 35, number, number + more, len(sealed), outer)
    decoded = Message.decode(front + sealed)
    fragment = decoded.payloads[-1]
    assert fragment == EncryptedFragment(35 if number == 1 else 0, number, number + more, sealed)
    assert isinstance(fragment, EncryptedFragment)
    assert fragment.associated_data == front


@given(payloads=st.binary(max_size=50), length=st.integers(0, 255))
def test_padding_round_trip(payloads: bytes, length: int) -> None:
    assert remove_padding(add_padding(payloads, length)) == payloads


@pytest.mark.parametrize(("plaintext", "offset"), [(b"", 40), (b"\x01", 40), (b"\0\0\0\x04", 43)])
def test_padding_longer_than_the_plaintext_is_refused(plaintext: bytes, offset: int) -> None:
    with pytest.raises(DecodeError) as refused:
        remove_padding(plaintext, 40)
    assert refused.value.offset == offset


# --- damage


@pytest.mark.parametrize("message", EVERY_SAMPLE, ids=lambda m: "+".join(type(p).__name__ for p in m.payloads)[:40])
def test_truncation_at_every_offset(message: Message) -> None:
    encoded = message.encode()
    for length in range(len(encoded)):
        with pytest.raises(DecodeError) as refused:
            Message.decode(encoded[:length])
        assert 0 <= refused.value.offset <= length
        # The header's length tells of a plain truncation at once; a sender that lies about it gets no further.
        if length >= HEADER_LENGTH:
            lying = encoded[:24] + length.to_bytes(4, "big") + encoded[28:length]
            with pytest.raises(DecodeError) as refused:
                Message.decode(lying)
            assert HEADER_LENGTH <= refused.value.offset <= length


@pytest.mark.parametrize("message", EVERY_SAMPLE, ids=lambda m: "+".join(type(p).__name__ for p in m.payloads)[:40])
def test_every_octet_flipped_decodes_or_is_refused(message: Message) -> None:
    encoded = message.encode()
    for at in range(len(encoded)):
        for bits in (0x01, 0x80, 0xFF):
            damaged = bytearray(encoded)
            damaged[at] ^= bits
            try:
                decoded = Message.decode(bytes(damaged))
            except DecodeError as refused:
                assert 0 <= refused.offset <= len(encoded)
            else:
                # What is let in can be written again, and means the same then.
                assert Message.decode(decoded.encode()) == decoded


@given(data=st.binary(max_size=300))
def test_anything_decodes_or_is_refused(data: bytes) -> None:
    framed = data[:24] + (28 + len(data[24:])).to_bytes(4, "big") + data[24:] if len(data) >= 24 else data
    for candidate in (data, framed):
        try:
            decoded = Message.decode(candidate)
        except DecodeError as refused:
            assert 0 <= refused.offset <= len(candidate)
        else:
            assert Message.decode(decoded.encode()) == decoded


@given(kind=st.integers(1, 255), data=st.binary(max_size=200), base=st.integers(0, 100))
def test_any_plaintext_decodes_or_is_refused(kind: int, data: bytes, base: int) -> None:
    try:
        decode_payloads(kind, data, base)
    except DecodeError as refused:
        assert base <= refused.offset <= base + len(data)


# --- rules


def refused(kind: int, body: str, what: str, offset: int) -> None:
    """`offset` counts from the body's first octet; the base offset stands for octets in front of the plaintext."""
    with pytest.raises(DecodeError, match=what) as error:
        decode_payloads(kind, chain(kind, bytes.fromhex(body)), 100)
    assert error.value.offset == 104 + offset


GCM = "0000000c 01000014 800e0080"
PRF = "03000008 02000005"


@pytest.mark.parametrize(
    ("body", "what", "offset"),
    [
        ("", "last substruc truncated", 0),
        (f"01000014 01010001 {GCM}", "proposal's last substruc 1, want 0 or 2", 0),
        (f"02000014 01010001 {GCM}", "last substruc truncated", 20),
        (f"00000014 01010001 {GCM} 00", "1 octets behind the end of SA payload", 20),
        ("00000007 01010000", "proposal length 7 below 8", 2),
        (f"00000015 01010001 {GCM}", "proposal truncated", 4),
        (f"00000014 01010002 {GCM}", "transform's last substruc 0, want 3", 8),
        (f"00000014 01010001 03{GCM[2:]}", "transform's last substruc 3, want 0", 8),
        (f"0000001c 01010001 {PRF} {GCM}", "transform's last substruc 3, want 0", 8),
        (f"00000014 01010000 {GCM}", "12 octets behind the end of the last transform", 8),
        (f"00000015 01010001 {GCM} 00", "1 octets behind the end of the last transform", 20),
        (f"00000018 01010401 00000001 {GCM}", "SPI size 4 for protocol 1", 6),
        (f"00000014 01030001 {GCM}", "SPI size 0 for protocol 3", 6),
        (f"0000001c 01030801 0000000000000001 {GCM}", "SPI size 8 for protocol 3", 6),
        (f"02000014 01010001 {GCM} 00000014 01010001 {GCM}", "proposal number 1 after 1", 24),
        (f"02000014 01010001 {GCM} 00000014 03010001 {GCM}", "proposal number 3 after 1", 24),
        ("00000010 01010001 00000007 01000014", "transform length 7 below 8", 10),
        ("00000012 01010001 0000000a 01000014 800e", "attribute value or length truncated", 18),
        ("00000014 01010001 0000000c 01000014 000e0001", "attribute value truncated", 20),
        ("00000018 01010001 00000010 01000014 800e0080 800e0100", "second Key Length", 20),
    ],
)
def test_sa_rules(body: str, what: str, offset: int) -> None:
    refused(PayloadType.SA, body, what, offset)


def test_proposals_are_bounded() -> None:
    proposals = tuple(Proposal(number + 1, 1, b"", ()) for number in range(MAX_PROPOSALS))
    assert decode_one(PayloadType.SA, SecurityAssociation(proposals).encode()) == SecurityAssociation(proposals)
    too_many = SecurityAssociation((*proposals, Proposal(MAX_PROPOSALS + 1, 1, b"", ())))
    with pytest.raises(DecodeError, match=f"more than {MAX_PROPOSALS} proposals"):
        decode_one(PayloadType.SA, too_many.encode())


def test_transform_attributes_are_bounded() -> None:
    def with_attributes(count: int) -> SecurityAssociation:
        attributes = tuple(TransformAttribute(20 + index, index) for index in range(count))
        return SecurityAssociation((Proposal(1, 1, b"", (Transform(1, 20, None, attributes),)),))

    most = with_attributes(MAX_ATTRIBUTES)
    assert decode_one(PayloadType.SA, most.encode()) == most
    with pytest.raises(DecodeError, match=f"more than {MAX_ATTRIBUTES} transform attributes"):
        decode_one(PayloadType.SA, with_attributes(MAX_ATTRIBUTES + 1).encode())


def test_transforms_are_as_many_as_their_count_can_say() -> None:
    most = SecurityAssociation((Proposal(1, 1, b"", (Transform(2, 5),) * 255),))
    assert decode_one(PayloadType.SA, most.encode()) == most


@pytest.mark.parametrize(
    ("kind", "body", "what", "offset"),
    [
        (PayloadType.KE, "00", "key exchange group truncated", 0),
        (PayloadType.KE, "001f00", "reserved octets truncated", 2),
        (PayloadType.IDI, "020000", "reserved octets truncated", 1),
        (PayloadType.IDR, "", "ID type truncated", 0),
        (PayloadType.CERT, "", "certificate encoding truncated", 0),
        (PayloadType.CERTREQ, "", "certificate request encoding truncated", 0),
        (PayloadType.AUTH, "0200", "reserved octets truncated", 1),
        (PayloadType.NONCE, "00" * 15, "nonce of 15 octets, want 16 to 256", 0),
        (PayloadType.NONCE, "00" * 257, "nonce of 257 octets, want 16 to 256", 0),
        (PayloadType.NOTIFY, "030440", "notify message type truncated", 2),
        (PayloadType.NOTIFY, "03044009 000000", "notify SPI truncated", 4),
        (PayloadType.DELETE, "0100", "number of SPIs truncated", 2),
        (PayloadType.DELETE, "01080001 0000000000000000", "1 SPIs of 8 octets in a delete payload of the IKE SA", 1),
        (PayloadType.DELETE, "03080001 0000000000000000", "SPI size 8 in a delete payload, want 4", 1),
        (PayloadType.DELETE, "03040002 00000001", "SPI truncated", 8),
        (PayloadType.DELETE, "03040001 00000001 00", "1 octets behind the end of the last SPI", 8),
        (PayloadType.DELETE, f"0304{MAX_SPIS + 1:04x}", "SPIs in a delete payload, at most", 2),
        (PayloadType.TSI, "00000000", "without a traffic selector", 0),
        (PayloadType.TSI, "01000000", "TS type truncated", 4),
        (PayloadType.TSI, "01000000 0a000003", "traffic selector length 3 below 4", 6),
        (PayloadType.TSI, "01000000 07000014", "IPv4 traffic selector length 20, want 16", 6),
        (PayloadType.TSR, "01000000 08000010", "IPv6 traffic selector length 16, want 40", 6),
        (PayloadType.TSR, "01000000 07000010 0000ffff c0000201 c00002", "ending address truncated", 16),
        (PayloadType.TSR, "01000000 0a000004 00", "1 octets behind the end of the last traffic selector", 8),
        (PayloadType.CP, "0100", "reserved octets truncated", 1),
        (PayloadType.CP, "01000000 0001", "attribute length truncated", 6),
        (PayloadType.CP, "01000000 00010004 0000", "attribute value truncated", 8),
        (PayloadType.CP, "01000000" + "00010000" * 257, "more than 256 configuration attributes", 1028),
        (PayloadType.EAP, "010100", "EAP length truncated", 2),
        (PayloadType.EAP, "01010006 01", "EAP length 6 in a payload of 5 octets", 2),
        (PayloadType.EAP, "02010004", "EAP request or response without a type", 0),
        (PayloadType.SK, "00", "encrypted payload inside an encrypted payload", -4),
        (PayloadType.SKF, "00010001", "encrypted payload inside an encrypted payload", -4),
    ],
)
def test_body_rules(kind: int, body: str, what: str, offset: int) -> None:
    refused(kind, body, what, offset)


@pytest.mark.parametrize(
    ("payloads", "what", "offset"),
    [
        ("00000003", "payload length 3 below 4", 30),
        ("00000005", "payload truncated", 32),
        ("0000000400", "1 octets behind the end of the last payload", 32),
        ("2b000004", "next payload truncated", 32),
    ],
)
def test_chain_rules(payloads: str, what: str, offset: int) -> None:
    body = bytes.fromhex(payloads)
    with pytest.raises(DecodeError, match=what) as error:
        Message.decode(HEADER.encode(PayloadType.VENDOR, HEADER_LENGTH + len(body)) + body)
    assert error.value.offset == offset


@pytest.mark.parametrize(("number", "total", "first"), [(0, 1, 0), (2, 1, 0), (1, 0, 0), (2, 2, 35)])
def test_fragment_rules(number: int, total: int, first: int) -> None:
    with pytest.raises(DecodeError, match="fragment"):
        Message.decode(Message(HEADER, (EncryptedFragment(first, number, total, b""),)).encode())


def test_nothing_follows_an_encrypted_payload() -> None:
    body = chain(0, b"sealed") + chain(0, b"")
    with pytest.raises(DecodeError, match="encrypted payload, which is always the last"):
        Message.decode(HEADER.encode(PayloadType.SK, HEADER_LENGTH + len(body)) + body)


def test_payloads_are_bounded() -> None:
    most = Message(HEADER, (Notify(16384),) * MAX_PAYLOADS)
    assert Message.decode(most.encode()) == most
    with pytest.raises(DecodeError, match=f"more than {MAX_PAYLOADS} payloads"):
        Message.decode(Message(HEADER, (Notify(16384),) * (MAX_PAYLOADS + 1)).encode())


def test_header_rules() -> None:
    data = Message(HEADER, ()).encode()
    assert len(data) == HEADER_LENGTH
    for damaged, what in [
        (data[:17] + b"\x10" + data[18:], "IKE major version 1, want 2 at offset 17"),
        (data[:17] + b"\x30" + data[18:], "IKE major version 3, want 2 at offset 17"),
        (data[:24] + b"\0\0\0\x1b", "IKE length 27 below the header's 28 at offset 24"),
        (data[:24] + b"\0\0\0\x1d", "IKE length 29 in a datagram of 28 octets at offset 24"),
        (data + b"\0", "IKE length 28 in a datagram of 29 octets at offset 24"),
    ]:
        with pytest.raises(DecodeError) as error:
            Message.decode(damaged)
        assert str(error.value) == what


def test_reserved_header_bits_and_minor_version_are_ignored() -> None:
    data = bytearray(Message(HEADER, ()).encode())
    data[17] = 0x2F
    data[19] |= 0xC7
    decoded = Message.decode(bytes(data)).header
    assert decoded.flags == Flag.INITIATOR
    assert decoded.major_version == 2


def test_header_flags() -> None:
    assert HEADER.from_initiator
    assert not HEADER.is_response
    answer = Header(b"i" * 8, b"r" * 8, 34, Flag.RESPONSE, 0)
    assert answer.is_response
    assert not answer.from_initiator


def test_unknown_payload_keeps_its_critical_bit_and_known_ones_ignore_it() -> None:
    for critical in (True, False):
        payload = UnknownPayload(200, critical, b"data")
        assert decode_payloads(*encode_payloads([payload])) == (payload,)
        assert (unsupported_critical([Nonce(bytes(16)), payload]) is payload) is critical
    data = chain(PayloadType.VENDOR, b"vendor", 0x80)
    assert encode_payloads(decode_payloads(PayloadType.VENDOR, data))[1] == chain(PayloadType.VENDOR, b"vendor")


def test_reserved_octets_of_an_identity_survive_because_auth_covers_them() -> None:
    body = b"\x02\x01\x02\x03name"
    for kind in (PayloadType.IDI, PayloadType.IDR):
        assert decode_one(kind, body).encode() == body


def test_offsets_count_from_the_start_of_the_datagram() -> None:
    """The same damage is reported at the same place whether the payload was in the clear or sealed."""
    payloads: list[Payload] = [Notify(16384), Nonce(bytes(16))]
    first, encoded = encode_payloads(payloads)
    damaged = encoded[:-1]
    with pytest.raises(DecodeError) as inside:
        decode_payloads(first, damaged, 60)
    with pytest.raises(DecodeError) as outside:
        Message.decode(HEADER.encode(first, HEADER_LENGTH + len(damaged)) + damaged)
    assert inside.value.offset - 60 == outside.value.offset - HEADER_LENGTH


# --- what a caller cannot encode


def test_misuse_is_refused() -> None:
    cases: list[tuple[Payload, str]] = [
        (SecurityAssociation(()), "at least one proposal"),
        (TrafficSelectorsInitiator(()), "at least one traffic selector"),
        (
            TrafficSelectorsInitiator((TrafficSelector(IPv4Address("192.0.2.1"), IPv6Address("::1")),)),
            "mixes address families",
        ),
        (Authentication(1, bytes(0xFFFF)), "Authentication of 65543 octets, at most 65535"),
    ]
    for payload, what in cases:
        with pytest.raises(MisuseError, match=what):
            encode_payloads([payload])
    with pytest.raises(MisuseError, match="always the last"):
        encode_payloads([Encrypted(0, b""), Nonce(bytes(16))])
    with pytest.raises(MisuseError, match="always the last"):
        encode_associated_data(HEADER, 0, 0, [Nonce(bytes(16)), Encrypted(0, b"")])


def test_values_are_frozen_and_have_no_dict() -> None:
    nonce = Nonce(bytes(16))
    with pytest.raises(FrozenInstanceError):
        nonce.data = b""  # type: ignore[misc]
    assert not hasattr(nonce, "__dict__")
    assert len({Nonce(bytes(16)), Nonce(bytes(16))}) == 1


# --- helpers


def test_find() -> None:
    payloads = (Notify(16384), Nonce(bytes(16)), Notify(16391, b"x"))
    assert find(payloads, Nonce) is payloads[1]
    assert find(payloads, KeyExchange) is None
    assert find_all(payloads, Notify) == [payloads[0], payloads[2]]
    assert find_notify(payloads, NotifyType.USE_TRANSPORT_MODE) is payloads[2]
    assert find_notify(payloads, 14) is None


def test_names() -> None:
    assert Notify(14).name == "NO_PROPOSAL_CHOSEN"
    assert Notify(14).is_error
    assert Notify(16391).name == "USE_TRANSPORT_MODE"
    assert not Notify(16391).is_error
    assert Notify(60000).name == "60000"
    assert name_of(TransformType, 6) == "ADDKE1"


def test_selector_types_and_transforms_by_type() -> None:
    assert SELECTOR_4.ts_type == 7
    assert SELECTOR_6.ts_type == 8
    assert GCM_PROPOSAL.of_type(TransformType.KE) == (Transform(4, 31),)
    assert GCM_PROPOSAL.of_type(TransformType.ESN) == ()


def test_delete_of_the_ike_sa_has_no_spi() -> None:
    assert Delete(1).encode() == bytes.fromhex("01000000")
    assert Delete(3).encode() == bytes.fromhex("03040000")
