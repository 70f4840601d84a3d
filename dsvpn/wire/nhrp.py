"""NHRP packets (RFC 2332 section 5; type 8, Traffic Indication, is Cisco's).

The fixed header, 20 octets:

      0                   1                   2                   3
      0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
     +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
     |            ar$afn             |          ar$pro.type          |
     +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
     |                          ar$pro.snap                          |
     +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
     |  ar$pro.snap  |   ar$hopcnt   |            ar$pktsz           |
     +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
     |           ar$chksum           |            ar$extoff          |
     +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
     | ar$op.version |   ar$op.type  |    ar$shtl    |    ar$sstl    |
     +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

The mandatory part starts with the protocol address lengths, four octets of which depend on the type (flags and
request id, or error code and offset, or nothing), and the addresses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from dsvpn.addresses import Address
from dsvpn.errors import DecodeError, MisuseError
from dsvpn.wire.cursor import Reader
from dsvpn.wire.nhrp_cie import (
    AddressFamily,
    Cie,
    ProtocolType,
    decode_cies,
    encode_cies,
    fit,
    read_address,
    read_type_length,
    write_address,
    write_type_length,
)
from dsvpn.wire.nhrp_extensions import Extension, decode_extensions, encode_extensions


class PacketType(IntEnum):
    """ar$op.type."""

    RESOLUTION_REQUEST = 1
    RESOLUTION_REPLY = 2
    REGISTRATION_REQUEST = 3
    REGISTRATION_REPLY = 4
    PURGE_REQUEST = 5
    PURGE_REPLY = 6
    ERROR_INDICATION = 7
    TRAFFIC_INDICATION = 8


class ErrorCode(IntEnum):
    """Error Indication codes (RFC 2332 section 5.2.7)."""

    UNRECOGNIZED_EXTENSION = 1
    #: What FRR and OpenNHRP send for a loop. Understood, never sent.
    LOOP_MISNUMBERED = 2
    LOOP_DETECTED = 3
    PROTOCOL_ADDRESS_UNREACHABLE = 6
    PROTOCOL_ERROR = 7
    SDU_SIZE_EXCEEDED = 8
    INVALID_EXTENSION = 9
    INVALID_RESOLUTION_REPLY = 10
    AUTHENTICATION_FAILURE = 11
    HOP_COUNT_EXCEEDED = 15


#: Flags of Resolution Requests and Replies (RFC 2332 section 5.2.1).
FLAG_ROUTER = 0x8000
FLAG_AUTHORITATIVE = 0x4000
FLAG_DESTINATION_STABLE = 0x2000
FLAG_UNIQUE = 0x1000
FLAG_SOURCE_STABLE = 0x0800
#: Cisco: the sender understands the NAT Address extension. Resolution and registration.
FLAG_NAT = 0x0002
#: Flag of Registration Requests and Replies (section 5.2.3).
FLAG_REGISTRATION_UNIQUE = 0x8000
#: Flag of Purge Requests (section 5.2.5): no reply wanted.
FLAG_PURGE_NO_REPLY = 0x8000

NHRP_VERSION = 1
FIXED_HEADER_LENGTH = 20
#: Offset of the octet pairs that a transit NHS rewrites.
_PACKET_SIZE = slice(10, 12)
_CHECKSUM = slice(12, 14)
_EXTENSION_OFFSET = slice(14, 16)
MAX_PACKET_SIZE = 0xFFFF


@dataclass(slots=True)
class NhrpMessage:
    """A packet of types 1 to 6. `family` and `protocol_type` rule every address in it, `flags` depend on the type."""

    type: PacketType
    family: AddressFamily
    protocol_type: ProtocolType
    hop_count: int
    flags: int
    request_id: int
    source_nbma: Address | None
    source_protocol: Address | None
    destination_protocol: Address | None
    cies: list[Cie] = field(default_factory=list)
    extensions: list[Extension] = field(default_factory=list)
    source_subaddress: bytes = b""


@dataclass(slots=True)
class ErrorIndication:
    """Type 7. `packet` is the head of the offending packet, `offset` the octet in it that is at fault."""

    family: AddressFamily
    protocol_type: ProtocolType
    hop_count: int
    code: int
    offset: int
    source_nbma: Address | None
    source_protocol: Address | None
    destination_protocol: Address | None
    packet: bytes = b""
    source_subaddress: bytes = b""


@dataclass(slots=True)
class TrafficIndication:
    """Type 8. `packet` is the head of the data packet that would better go another way."""

    family: AddressFamily
    protocol_type: ProtocolType
    hop_count: int
    source_nbma: Address | None
    source_protocol: Address | None
    destination_protocol: Address | None
    packet: bytes = b""
    extensions: list[Extension] = field(default_factory=list)
    source_subaddress: bytes = b""


NhrpPacket = NhrpMessage | ErrorIndication | TrafficIndication


@dataclass(slots=True)
class OffendingHeader:
    """What the head of an offending packet in an Error Indication still tells."""

    type: int
    request_id: int | None
    source_protocol: Address | None
    destination_protocol: Address | None


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) over `data`; an odd last octet counts as the high half of a word."""
    value = int.from_bytes(data, "big") << (8 if len(data) & 1 else 0)
    # 2^16 is 1 modulo 0xffff, so the remainder is the ones' complement sum of all words.
    total = value % 0xFFFF
    if total == 0 and value:
        total = 0xFFFF
    return 0xFFFF - total


def decode(data: bytes) -> NhrpPacket:
    """Read one packet. Raises DecodeError and nothing else, whatever `data` is.

    Octets behind the packet size that the header states are ignored (padding of the medium).
    """
    head = Reader(data)
    family, protocol = _read_families(head)
    head.take(5, "protocol type long form")
    hop_count = head.u8("hop count")
    size = head.u16("packet size")
    head.u16("checksum")
    extension_offset = head.u16("extension offset")
    version = head.u8("version")
    if version != NHRP_VERSION:
        raise DecodeError(f"NHRP version {version}", 16)
    number = head.u8("packet type")
    if not PacketType.RESOLUTION_REQUEST <= number <= PacketType.TRAFFIC_INDICATION:
        raise DecodeError(f"NHRP packet type {number}", 17)
    if not FIXED_HEADER_LENGTH <= size <= len(data):
        raise DecodeError(f"packet size {size} where {len(data)} octets came", 10)
    if checksum(data[:size]):
        raise DecodeError("checksum does not match", 12)
    if extension_offset and not FIXED_HEADER_LENGTH <= extension_offset < size:
        raise DecodeError(f"extension offset {extension_offset} outside the packet", 14)
    kind = PacketType(number)

    nbma_length = read_type_length(head, "source NBMA address")
    subaddress_length = read_type_length(head, "source NBMA subaddress")
    body = Reader(data, head.offset, extension_offset or size)
    source_length = body.u8("source protocol length")
    destination_length = body.u8("destination protocol length")
    first = body.u16("flags")
    second = body.take(4, "request id") if kind != PacketType.ERROR_INDICATION else body.take(4, "error code")
    source_nbma = read_address(body, nbma_length, family, "source NBMA address")
    subaddress = body.take(subaddress_length, "source NBMA subaddress")
    source = read_address(body, source_length, protocol, "source protocol address")
    destination = read_address(body, destination_length, protocol, "destination protocol address")

    if kind == PacketType.ERROR_INDICATION:
        code, offset = int.from_bytes(second[:2], "big"), int.from_bytes(second[2:], "big")
        # Error Indications carry no extensions (RFC 2332 section 5.2.7): all that is left is the offending packet.
        rest = data[body.offset : size]
        return ErrorIndication(
            family, protocol, hop_count, code, offset, source_nbma, source, destination, rest, subaddress
        )
    extensions: list[Extension] = []
    if extension_offset:
        extensions = decode_extensions(Reader(data, extension_offset, size), family, protocol)
    if kind == PacketType.TRAFFIC_INDICATION:
        return TrafficIndication(
            family, protocol, hop_count, source_nbma, source, destination, body.rest(), extensions, subaddress
        )
    cies = decode_cies(body, family, protocol)
    request_id = int.from_bytes(second, "big")
    return NhrpMessage(
        kind,
        family,
        protocol,
        hop_count,
        first,
        request_id,
        source_nbma,
        source,
        destination,
        cies,
        extensions,
        subaddress,
    )


def encode(packet: NhrpPacket) -> bytes:
    """The octets of a packet, checksum included. Raises MisuseError when a field does not fit."""
    family, protocol = packet.family, packet.protocol_type
    nbma = write_address(packet.source_nbma, family, "source NBMA address")
    source = write_address(packet.source_protocol, protocol, "source protocol address")
    destination = write_address(packet.destination_protocol, protocol, "destination protocol address")
    extensions = b""
    if isinstance(packet, NhrpMessage):
        kind = packet.type
        fields = fit(packet.flags, 16, "flags").to_bytes(2, "big")
        fields += fit(packet.request_id, 32, "request id").to_bytes(4, "big")
        tail = encode_cies(packet.cies, family, protocol)
        extensions = encode_extensions(packet.extensions, family, protocol)
    elif isinstance(packet, ErrorIndication):
        kind = PacketType.ERROR_INDICATION
        fields = bytes(2) + fit(packet.code, 16, "error code").to_bytes(2, "big")
        fields += fit(packet.offset, 16, "error offset").to_bytes(2, "big")
        tail = packet.packet
    else:
        kind = PacketType.TRAFFIC_INDICATION
        fields = bytes(6)
        tail = packet.packet
        extensions = encode_extensions(packet.extensions, family, protocol)
    subaddress_length = write_type_length(packet.source_subaddress, "source NBMA subaddress")
    mandatory = (
        bytes((len(source), len(destination))) + fields + nbma + packet.source_subaddress + source + destination + tail
    )
    extension_offset = FIXED_HEADER_LENGTH + len(mandatory) if extensions else 0
    size = FIXED_HEADER_LENGTH + len(mandatory) + len(extensions)
    if size > MAX_PACKET_SIZE:
        raise MisuseError(f"NHRP packet of {size} octets, at most {MAX_PACKET_SIZE} fit")
    header = bytearray(FIXED_HEADER_LENGTH)
    header[0:2] = int(family).to_bytes(2, "big")
    header[2:4] = int(protocol).to_bytes(2, "big")
    header[9] = fit(packet.hop_count, 8, "hop count")
    header[_PACKET_SIZE] = size.to_bytes(2, "big")
    header[_EXTENSION_OFFSET] = extension_offset.to_bytes(2, "big")
    header[16] = NHRP_VERSION
    header[17] = kind
    header[18] = len(nbma)
    header[19] = subaddress_length
    data = bytes(header) + mandatory + extensions
    header[_CHECKSUM] = checksum(data).to_bytes(2, "big")
    return bytes(header) + data[FIXED_HEADER_LENGTH:]


def read_offending_header(data: bytes) -> OffendingHeader:
    """The type, request id and addresses at the head of an offending packet, which is usually cut short.

    Raises DecodeError when even these are not there.
    """
    head = Reader(data)
    family, protocol = _read_families(head)
    head.take(13, "fixed header")
    number = head.u8("packet type")
    nbma_length = read_type_length(head, "source NBMA address")
    subaddress_length = read_type_length(head, "source NBMA subaddress")
    source_length = head.u8("source protocol length")
    destination_length = head.u8("destination protocol length")
    head.u16("flags")
    request_id = head.u32("request id")
    read_address(head, nbma_length, family, "source NBMA address")
    head.take(subaddress_length, "source NBMA subaddress")
    source = read_address(head, source_length, protocol, "source protocol address")
    destination = read_address(head, destination_length, protocol, "destination protocol address")
    has_id = PacketType.RESOLUTION_REQUEST <= number <= PacketType.PURGE_REPLY
    return OffendingHeader(number, request_id if has_id else None, source, destination)


def read_ip_addresses(head: bytes) -> tuple[Address, Address]:
    """Source and destination of an IPv4 or IPv6 packet of which `head` is the start.

    Raises DecodeError when `head` is too short or neither.
    """
    reader = Reader(head)
    version = reader.u8("IP version") >> 4
    if version == 4:
        reader.take(11, "IPv4 header")
        return IPv4Address(reader.take(4, "IPv4 source")), IPv4Address(reader.take(4, "IPv4 destination"))
    if version == 6:
        reader.take(7, "IPv6 header")
        return IPv6Address(reader.take(16, "IPv6 source")), IPv6Address(reader.take(16, "IPv6 destination"))
    raise DecodeError(f"IP version {version}", 0)


def _read_families(reader: Reader) -> tuple[AddressFamily, ProtocolType]:
    family = reader.u16("address family")
    if family not in (AddressFamily.IPV4, AddressFamily.IPV6):
        raise DecodeError(f"address family {family} is neither IPv4 (1) nor IPv6 (2)", 0)
    protocol = reader.u16("protocol type")
    if protocol not in (ProtocolType.IPV4, ProtocolType.IPV6):
        raise DecodeError(f"protocol type 0x{protocol:04x} is neither IPv4 nor IPv6", 2)
    return AddressFamily(family), ProtocolType(protocol)
