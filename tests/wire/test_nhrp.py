"""The NHRP codec: FRR's packets, round trips, truncation, damage."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsvpn.errors import DecodeError, MisuseError
from dsvpn.wire import nhrp
from dsvpn.wire.nhrp import (
    ErrorIndication,
    NhrpMessage,
    NhrpPacket,
    PacketType,
    TrafficIndication,
    checksum,
    decode,
    encode,
    read_ip_addresses,
    read_offending_header,
)
from dsvpn.wire.nhrp_cie import AddressFamily, Cie, ProtocolType
from dsvpn.wire.nhrp_extensions import (
    CieExtension,
    ExtensionType,
    RawExtension,
    cisco_authentication,
    cisco_authentication_word,
)
from tests.wire.nhrp_samples import all_captured, captured, own_samples, packets, reseal

CAPTURED = all_captured()
OWN = [encode(packet) for packet in own_samples()]
#: What the damage is done to: of the captured packets one of each kind and size, for the time that it takes.
SAMPLES = list({(data[17], len(data)): data for _, data in CAPTURED}.values()) + OWN


def decode_or_refuse(data: bytes) -> NhrpPacket | None:
    """What `decode` says; anything but a packet or a DecodeError about a place in `data` fails the test."""
    try:
        return decode(data)
    except DecodeError as error:
        assert error.what
        assert 0 <= error.offset <= max(len(data), 20)
        return None


class TestFrr:
    @pytest.mark.parametrize("data", [data for _, data in CAPTURED], ids=[name for name, _ in CAPTURED])
    def test_captured_packet_is_written_again_as_it_was(self, data: bytes) -> None:
        assert encode(decode(data)) == data

    def test_there_are_captures_of_each_exchange(self) -> None:
        assert len(CAPTURED) == 48
        assert {decode(data).__class__ for _, data in CAPTURED} == {NhrpMessage, TrafficIndication}

    def test_registration_behind_nat(self) -> None:
        _, _, request = captured("frr8.4.4_nat_registration")[2]
        packet = decode(request)
        assert isinstance(packet, NhrpMessage)
        assert packet.type == PacketType.REGISTRATION_REQUEST
        assert (packet.hop_count, packet.flags, packet.request_id) == (1, 0x0002, 1)
        assert packet.source_nbma == ip_address("198.51.100.12")
        assert packet.source_protocol == packet.destination_protocol == ip_address("10.255.0.12")
        assert packet.cies == [Cie(prefix_length=32, holding_time=30)]
        assert [(e.type, e.compulsory) for e in packet.extensions] == [(4, True), (5, True), (3, True), (9, False)]
        nat = packet.extensions[3]
        assert isinstance(nat, CieExtension)
        assert nat.cies == [Cie(prefix_length=32, nbma=ip_address("192.0.2.1"), protocol=ip_address("0.0.0.0"))]

        _, _, answer = captured("frr8.4.4_nat_registration")[3]
        reply = decode(answer)
        assert isinstance(reply, NhrpMessage)
        assert (reply.type, reply.hop_count) == (PacketType.REGISTRATION_REPLY, 64)
        nat = reply.extensions[3]
        assert isinstance(nat, CieExtension)
        assert nat.cies[1] == Cie(prefix_length=32, nbma=ip_address("192.0.2.12"), protocol=ip_address("10.255.0.12"))

    def test_traffic_indication(self) -> None:
        _, _, data = captured("frr8.4.4_plain_redirect")[0]
        packet = decode(data)
        assert isinstance(packet, TrafficIndication)
        assert (packet.hop_count, packet.extensions) == (1, [])
        assert read_ip_addresses(packet.packet) == (ip_address("10.1.0.1"), ip_address("10.2.0.1"))
        assert packet.destination_protocol == ip_address("10.1.0.1")


class TestRoundTrip:
    @given(packets())
    def test_any_packet(self, packet: NhrpPacket) -> None:
        assert decode(encode(packet)) == packet

    @pytest.mark.parametrize(
        "packet", own_samples(), ids=lambda p: f"{type(p).__name__}-{p.family}-{p.protocol_type:x}"
    )
    def test_samples(self, packet: NhrpPacket) -> None:
        assert decode(encode(packet)) == packet

    @given(packets(), st.binary(max_size=8))
    def test_padding_of_the_medium_is_ignored(self, packet: NhrpPacket, padding: bytes) -> None:
        assert decode(encode(packet) + padding) == packet


class TestDamage:
    @pytest.mark.parametrize("data", SAMPLES)
    def test_truncated_anywhere(self, data: bytes) -> None:
        for length in range(len(data)):
            with pytest.raises(DecodeError):
                decode(data[:length])

    @pytest.mark.parametrize("data", SAMPLES)
    def test_truncated_anywhere_with_a_right_size_and_checksum(self, data: bytes) -> None:
        for length in range(20, len(data)):
            decode_or_refuse(reseal(data[:10] + length.to_bytes(2, "big") + data[12:length]))

    @pytest.mark.parametrize("data", SAMPLES)
    def test_each_bit_flipped(self, data: bytes) -> None:
        for bit in range(len(data) * 8):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 0x80 >> bit % 8
            with pytest.raises(DecodeError):
                decode(bytes(flipped))
            packet = decode_or_refuse(reseal(bytes(flipped)))
            if packet is not None:
                encode(packet)

    @given(st.sampled_from(SAMPLES), st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=4)), max_size=6))
    def test_splices(self, data: bytes, splices: list[tuple[int, bytes]]) -> None:
        for offset, piece in splices:
            data = data[:offset] + piece + data[offset + len(piece) :]
        packet = decode_or_refuse(reseal(data))
        if packet is not None:
            assert decode(encode(packet)) == packet

    @given(st.binary(max_size=200))
    def test_noise(self, data: bytes) -> None:
        decode_or_refuse(data)
        decode_or_refuse(reseal(data))
        for reader in (read_offending_header, read_ip_addresses):
            try:
                reader(data)
            except DecodeError as error:
                assert error.what

    def test_largest_packet_of_smallest_entries(self) -> None:
        packet = own_samples()[0]
        assert isinstance(packet, NhrpMessage)
        packet.cies = [Cie()] * 5400
        packet.extensions = []
        assert decode(encode(packet)) == packet
        packet.cies = [Cie()] * 5500
        with pytest.raises(MisuseError, match="at most 65535"):
            encode(packet)


class TestRules:
    """Single rules, each with the message a person gets."""

    def packet(self, **changes: object) -> bytes:
        packet = own_samples()[0]
        assert isinstance(packet, NhrpMessage)
        return encode(replace(packet, **changes))  # type: ignore[arg-type]

    def damaged(self, offset: int, value: bytes) -> bytes:
        data = self.packet()
        return reseal(data[:offset] + value + data[offset + len(value) :])

    @pytest.mark.parametrize(
        ("offset", "value", "what"),
        [
            (0, b"\x00\x03", "address family 3"),
            (2, b"\x00\x80", "protocol type 0x0080"),
            (10, b"\x00\x10", "packet size 16"),
            (14, b"\xff\xff", "extension offset 65535"),
            (14, b"\x00\x13", "extension offset 19"),
            (16, b"\x02", "NHRP version 2"),
            (17, b"\x00", "packet type 0"),
            (17, b"\x09", "packet type 9"),
            (18, b"\x44", "source NBMA address type/length 0x44"),
            (18, b"\x05", "source NBMA address of 5 octets"),
            (20, b"\x08", "source protocol address of 8 octets"),
        ],
    )
    def test_refused_field(self, offset: int, value: bytes, what: str) -> None:
        with pytest.raises(DecodeError, match=what):
            decode(self.damaged(offset, value))

    def test_octets_behind_the_end_extension(self) -> None:
        data = self.packet()
        longer = data[:10] + (len(data) + 4).to_bytes(2, "big") + data[12:] + bytes(4)
        with pytest.raises(DecodeError, match="behind the end of the End extension"):
            decode(reseal(longer))

    def test_extensions_without_an_end(self) -> None:
        data = self.packet()
        shorter = data[:10] + (len(data) - 4).to_bytes(2, "big") + data[12:-4]
        with pytest.raises(DecodeError, match="extension type truncated"):
            decode(reseal(shorter))

    @pytest.mark.parametrize("length", [1, 2, 3, 5, 20, 21, 1401])
    def test_checksum_of_any_length_verifies(self, length: int) -> None:
        data = bytes(range(1, 1 + length % 200)) * (1 + length // 200)
        word = checksum(data + bytes(len(data) % 2))
        assert checksum(data + bytes(len(data) % 2) + word.to_bytes(2, "big")) == 0

    def test_checksum_of_an_odd_length_pads_with_zero(self) -> None:
        assert checksum(b"\x12\x34\x56") == checksum(b"\x12\x34\x56\x00") == 0xFFFF - 0x1234 - 0x5600

    def test_checksum_edge_values(self) -> None:
        assert checksum(b"\xff\xff") == 0
        assert checksum(bytes(4)) == 0xFFFF

    def test_addresses_of_another_family_are_refused(self) -> None:
        with pytest.raises(MisuseError, match="does not fit address family"):
            self.packet(source_protocol=ip_address("fd00::1"))
        with pytest.raises(MisuseError, match="hop count 256"):
            self.packet(hop_count=256)
        with pytest.raises(MisuseError, match="extension type 4 does not go with RawExtension"):
            self.packet(extensions=[RawExtension(4)])
        with pytest.raises(MisuseError, match="64 octets"):
            self.packet(source_subaddress=bytes(64))

    def test_order_of_extensions_and_unknown_ones_are_kept(self) -> None:
        extensions = [
            RawExtension(77, True, b"x"),
            CieExtension(9, False),
            RawExtension(0x3FFF, False),
            CieExtension(3),
        ]
        packet = decode(self.packet(extensions=extensions))
        assert isinstance(packet, NhrpMessage)
        assert packet.extensions == extensions

    def test_cisco_authentication(self) -> None:
        extension = cisco_authentication(b"s3cret")
        assert extension == RawExtension(ExtensionType.AUTHENTICATION, True, b"\x00\x00\x00\x01s3cret")
        assert cisco_authentication_word(extension) == b"s3cret"
        assert cisco_authentication_word(RawExtension(7, True, b"\x00\x00\x00\x02s3cret")) is None
        assert cisco_authentication_word(RawExtension(7, True, b"")) is None

    def test_head_of_an_offending_packet(self) -> None:
        data = self.packet(type=PacketType.REGISTRATION_REQUEST)
        header = read_offending_header(data[:40])
        assert (header.type, header.request_id) == (PacketType.REGISTRATION_REQUEST, 0xDEADBEEF)
        assert (header.source_protocol, header.destination_protocol) == (ip_address("10.0.0.1"), ip_address("10.0.0.2"))
        with pytest.raises(DecodeError, match="destination protocol address truncated"):
            read_offending_header(data[:39])

    def test_error_indication_layout(self) -> None:
        error = ErrorIndication(
            AddressFamily.IPV4,
            ProtocolType.IPV4,
            0,
            11,
            20,
            ip_address("192.0.2.1"),
            ip_address("10.0.0.1"),
            ip_address("10.0.0.2"),
            b"offending",
        )
        data = encode(error)
        # Lengths, unused, error code, error offset, addresses, packet; no extensions (RFC 2332 section 5.2.7).
        assert data[20:] == bytes.fromhex("04040000000b0014c00002010a0000010a000002") + b"offending"
        assert data[14:16] == bytes(2)
        assert nhrp.decode(data) == error
