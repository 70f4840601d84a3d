"""Client Information Entries (RFC 2332 section 5.2.0.1) and the address forms of NHRP.

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|     Code      | Prefix Length |            unused             |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|    Maximum Transmission Unit  |         Holding Time          |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
| Cli Addr T/L  |Cli SAddr T/L  | Cli Proto Len |  Preference   |
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
|   Client NBMA address, subaddress, protocol address (variable)|
+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from dsvpn.addresses import Address
from dsvpn.errors import DecodeError, MisuseError
from dsvpn.wire.cursor import Reader


class CieCode(IntEnum):
    """CIE codes (RFC 2332 section 5.2.0.1)."""

    SUCCESS = 0
    ADMINISTRATIVELY_PROHIBITED = 4
    INSUFFICIENT_RESOURCES = 5
    #: What FRR and OpenNHRP send for "no binding exists". Understood, never sent.
    NO_BINDING_MISNUMBERED = 11
    NO_BINDING = 12
    BINDING_NOT_UNIQUE = 13
    UNIQUE_ADDRESS_REGISTERED = 14


class AddressFamily(IntEnum):
    """ar$afn: address family numbers of the NBMA address."""

    IPV4 = 1
    IPV6 = 2


class ProtocolType(IntEnum):
    """ar$pro.type: Ethertypes of the protocol address."""

    IPV4 = 0x0800
    IPV6 = 0x86DD


#: The prefix length that says "host, and unique" (RFC 2332 section 5.2.0.1).
UNIQUE_PREFIX_LENGTH = 0xFF

#: Bit 7 of a Type/Length octet must be zero, bit 6 says E.164 (RFC 2332 section 5.1).
_TYPE_LENGTH_RESERVED = 0x80
_TYPE_LENGTH_E164 = 0x40
_LENGTH_MASK = 0x3F


@dataclass(slots=True)
class Cie:
    """A Client Information Entry. `holding_time` in seconds, `mtu` in octets (0: default of the medium).

    An address that is absent (length 0) is None. `nbma_subaddress` is opaque.
    """

    code: int = 0
    prefix_length: int = 0
    mtu: int = 0
    holding_time: int = 0
    nbma: Address | None = None
    protocol: Address | None = None
    preference: int = 0
    nbma_subaddress: bytes = b""
    #: The reserved field, kept so that a packet in transit leaves as it came.
    unused: int = 0


def address_length(family: int) -> int:
    """Octets of an address of an `AddressFamily` or `ProtocolType`."""
    return 4 if family in (AddressFamily.IPV4, ProtocolType.IPV4) else 16


def nbma_family(address: Address) -> AddressFamily:
    """The address family number of an NBMA address."""
    return AddressFamily.IPV4 if address.version == 4 else AddressFamily.IPV6


def protocol_type(address: Address) -> ProtocolType:
    """The protocol type of a protocol address."""
    return ProtocolType.IPV4 if address.version == 4 else ProtocolType.IPV6


def read_type_length(reader: Reader, what: str) -> int:
    """The length in a Type/Length octet. E.164 numbers belong to media that dsvpn does not run on."""
    offset = reader.offset
    octet = reader.u8(f"{what} type/length")
    if octet & (_TYPE_LENGTH_RESERVED | _TYPE_LENGTH_E164):
        raise DecodeError(f"{what} type/length 0x{octet:02x} is not of type NSAP", offset)
    return octet & _LENGTH_MASK


def read_address(reader: Reader, length: int, family: int, what: str) -> Address | None:
    """An address of `length` octets, None for length 0; any other length than the family's is refused."""
    if length == 0:
        return None
    if length != address_length(family):
        raise DecodeError(f"{what} of {length} octets where the family has {address_length(family)}", reader.offset)
    octets = reader.take(length, what)
    return IPv4Address(octets) if length == 4 else IPv6Address(octets)


def write_address(address: Address | None, family: int, what: str) -> bytes:
    """The octets of an address, none for None. Raises MisuseError when it is of another family."""
    if address is None:
        return b""
    octets = address.packed
    if len(octets) != address_length(family):
        raise MisuseError(f"{what} {address} does not fit address family 0x{family:x} of the packet")
    return octets


def write_type_length(octets: bytes, what: str) -> int:
    """The Type/Length octet of an address or subaddress. Raises MisuseError for more than 63 octets."""
    if len(octets) > _LENGTH_MASK:
        raise MisuseError(f"{what} of {len(octets)} octets, at most {_LENGTH_MASK} fit")
    return len(octets)


def decode_cie(reader: Reader, family: int, protocol: int) -> Cie:
    """The next CIE of `reader`; `family` and `protocol` come from the fixed header."""
    code = reader.u8("CIE code")
    prefix_length = reader.u8("CIE prefix length")
    unused = reader.u16("CIE unused field")
    mtu = reader.u16("CIE MTU")
    holding_time = reader.u16("CIE holding time")
    nbma_length = read_type_length(reader, "CIE NBMA address")
    subaddress_length = read_type_length(reader, "CIE NBMA subaddress")
    protocol_length = reader.u8("CIE protocol length")
    preference = reader.u8("CIE preference")
    nbma = read_address(reader, nbma_length, family, "CIE NBMA address")
    subaddress = reader.take(subaddress_length, "CIE NBMA subaddress")
    address = read_address(reader, protocol_length, protocol, "CIE protocol address")
    return Cie(code, prefix_length, mtu, holding_time, nbma, address, preference, subaddress, unused)


def decode_cies(reader: Reader, family: int, protocol: int) -> list[Cie]:
    """All CIEs up to the reader's end. Each takes 12 octets or more, so the work is bounded by the packet."""
    cies = []
    while reader.remaining():
        cies.append(decode_cie(reader, family, protocol))
    return cies


def encode_cie(cie: Cie, family: int, protocol: int) -> bytes:
    """The octets of a CIE. Raises MisuseError when a field does not fit."""
    nbma = write_address(cie.nbma, family, "CIE NBMA address")
    address = write_address(cie.protocol, protocol, "CIE protocol address")
    head = bytes((fit(cie.code, 8, "CIE code"), fit(cie.prefix_length, 8, "CIE prefix length")))
    words = (
        fit(cie.unused, 16, "CIE unused field").to_bytes(2, "big")
        + fit(cie.mtu, 16, "CIE MTU").to_bytes(2, "big")
        + fit(cie.holding_time, 16, "CIE holding time").to_bytes(2, "big")
    )
    lengths = bytes(
        (
            len(nbma),
            write_type_length(cie.nbma_subaddress, "CIE NBMA subaddress"),
            len(address),
            fit(cie.preference, 8, "CIE preference"),
        )
    )
    return head + words + lengths + nbma + cie.nbma_subaddress + address


def encode_cies(cies: list[Cie], family: int, protocol: int) -> bytes:
    """The octets of a list of CIEs."""
    return b"".join([encode_cie(cie, family, protocol) for cie in cies])


def fit(value: int, bits: int, what: str) -> int:
    """`value` if it fits an unsigned field of `bits`. Raises MisuseError otherwise."""
    if value < 0 or value >> bits:
        raise MisuseError(f"{what} {value} does not fit {bits} bits")
    return value
