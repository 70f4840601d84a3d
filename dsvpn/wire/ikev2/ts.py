"""Traffic Selector payloads. RFC 7296 section 3.13."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import ClassVar

from dsvpn.addresses import Address
from dsvpn.errors import DecodeError, MisuseError
from dsvpn.wire.cursor import Reader
from dsvpn.wire.ikev2.constants import PayloadType, TsType

#: The port pair that says "any port".
ANY_PORTS = (0, 65535)
#: The port pair that says "ports are hidden" (RFC 7296 section 3.13.1).
OPAQUE_PORTS = (65535, 0)

_SELECTOR_HEADER_LENGTH = 4
_IPV4_SELECTOR_LENGTH = 16
_IPV6_SELECTOR_LENGTH = 40
_SELECTOR = Struct("!BBHHH")


@dataclass(frozen=True, slots=True)
class TrafficSelector:
    """A range of addresses and ports of one IP protocol (0: any). RFC 7296 section 3.13.1.

    Both addresses are of one family. Nothing orders start and end: (65535, 0) are the opaque ports, and a range that
    is empty otherwise matches no packet.
    """

    start: Address
    end: Address
    protocol: int = 0
    start_port: int = 0
    end_port: int = 65535

    @property
    def ts_type(self) -> int:
        """TS_IPV4_ADDR_RANGE or TS_IPV6_ADDR_RANGE."""
        return TsType.IPV4_ADDR_RANGE if self.start.version == 4 else TsType.IPV6_ADDR_RANGE

    def encode(self) -> bytes:
        """The selector with its own header."""
        if self.start.version != self.end.version:
            raise MisuseError(f"traffic selector from {self.start} to {self.end} mixes address families")
        addresses = self.start.packed + self.end.packed
        length = _SELECTOR.size + len(addresses)
        return _SELECTOR.pack(self.ts_type, self.protocol, length, self.start_port, self.end_port) + addresses


@dataclass(frozen=True, slots=True)
class UnknownTrafficSelector:
    """A selector of another type, kept as it came. `data` is what follows the 4-octet selector header."""

    ts_type: int
    protocol: int
    data: bytes

    def encode(self) -> bytes:
        """The selector with its own header."""
        length = _SELECTOR_HEADER_LENGTH + len(self.data)
        return bytes((self.ts_type, self.protocol)) + length.to_bytes(2, "big") + self.data


Selector = TrafficSelector | UnknownTrafficSelector


@dataclass(frozen=True, slots=True)
class TrafficSelectorsInitiator:
    """TSi payload: the traffic at the initiator's end of the CHILD_SA."""

    payload_type: ClassVar[int] = PayloadType.TSI

    selectors: tuple[Selector, ...]

    @classmethod
    def decode(cls, reader: Reader) -> TrafficSelectorsInitiator:
        """Read the body of a TSi payload."""
        return cls(_decode_selectors(reader))

    def encode(self) -> bytes:
        """The payload's body."""
        return _encode_selectors(self.selectors)


@dataclass(frozen=True, slots=True)
class TrafficSelectorsResponder:
    """TSr payload: the traffic at the responder's end of the CHILD_SA."""

    payload_type: ClassVar[int] = PayloadType.TSR

    selectors: tuple[Selector, ...]

    @classmethod
    def decode(cls, reader: Reader) -> TrafficSelectorsResponder:
        """Read the body of a TSr payload."""
        return cls(_decode_selectors(reader))

    def encode(self) -> bytes:
        """The payload's body."""
        return _encode_selectors(self.selectors)


def _encode_selectors(selectors: tuple[Selector, ...]) -> bytes:
    if not selectors:
        raise MisuseError("a TS payload needs at least one traffic selector")
    return bytes((len(selectors), 0, 0, 0)) + b"".join([selector.encode() for selector in selectors])


def _decode_selectors(reader: Reader) -> tuple[Selector, ...]:
    at = reader.offset
    count = reader.u8("number of traffic selectors")
    if not count:
        raise DecodeError("TS payload without a traffic selector", at)
    reader.take(3, "TS payload's reserved octets")
    selectors = tuple([_decode_selector(reader) for _ in range(count)])
    reader.expect_end("the last traffic selector")
    return selectors


def _decode_selector(reader: Reader) -> Selector:
    at = reader.offset
    ts_type = reader.u8("TS type")
    protocol = reader.u8("TS protocol")
    length = reader.u16("traffic selector length")
    if length < _SELECTOR_HEADER_LENGTH:
        raise DecodeError(f"traffic selector length {length} below {_SELECTOR_HEADER_LENGTH}", at + 2)
    if ts_type == TsType.IPV4_ADDR_RANGE:
        if length != _IPV4_SELECTOR_LENGTH:
            raise DecodeError(f"IPv4 traffic selector length {length}, want {_IPV4_SELECTOR_LENGTH}", at + 2)
        start_port, end_port = reader.u16("start port"), reader.u16("end port")
        start4 = IPv4Address(reader.take(4, "starting address"))
        end4 = IPv4Address(reader.take(4, "ending address"))
        return TrafficSelector(start4, end4, protocol, start_port, end_port)
    if ts_type == TsType.IPV6_ADDR_RANGE:
        if length != _IPV6_SELECTOR_LENGTH:
            raise DecodeError(f"IPv6 traffic selector length {length}, want {_IPV6_SELECTOR_LENGTH}", at + 2)
        start_port, end_port = reader.u16("start port"), reader.u16("end port")
        start6 = IPv6Address(reader.take(16, "starting address"))
        end6 = IPv6Address(reader.take(16, "ending address"))
        return TrafficSelector(start6, end6, protocol, start_port, end_port)
    return UnknownTrafficSelector(ts_type, protocol, reader.take(length - _SELECTOR_HEADER_LENGTH, "traffic selector"))
