"""NHRP packets for tests: FRR's from captures, ours of every type and family, and strategies that make more."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from dsvpn.wire import nhrp
from dsvpn.wire.nhrp import ErrorIndication, NhrpMessage, NhrpPacket, PacketType, TrafficIndication
from dsvpn.wire.nhrp_cie import AddressFamily, Cie, ProtocolType
from dsvpn.wire.nhrp_extensions import (
    CieExtension,
    Extension,
    ExtensionType,
    RawExtension,
    cisco_authentication,
)

VECTORS = Path(__file__).parent.parent / "vectors" / "nhrp"
_CARRIER = 14 + 20 + 8


def read_pcap(path: Path) -> list[bytes]:
    """The frames of a classic little-endian pcap file."""
    data = path.read_bytes()
    assert data[:4] == b"\xd4\xc3\xb2\xa1", f"{path} is not a little-endian pcap file"
    frames = []
    offset = 24
    while offset < len(data):
        _, _, length, _ = struct.unpack_from("<IIII", data, offset)
        frames.append(data[offset + 16 : offset + 16 + length])
        offset += 16 + length
    return frames


def captured(name: str) -> list[tuple[str, str, bytes]]:
    """The NHRP packets of a capture, each with its outer source and destination."""
    packets = []
    for frame in read_pcap(VECTORS / f"{name}.pcap"):
        assert frame[14 + 20 + 2 : 14 + 20 + 4] == b"\x20\x01"
        source, destination = str(IPv4Address(frame[26:30])), str(IPv4Address(frame[30:34]))
        packets.append((source, destination, frame[_CARRIER:]))
    return packets


def all_captured() -> list[tuple[str, bytes]]:
    """Every captured packet with a name for it."""
    found = []
    for path in sorted(VECTORS.glob("*.pcap")):
        found += [(f"{path.stem}-{number}", data) for number, (_, _, data) in enumerate(captured(path.stem))]
    return found


def _ip(protocol: ProtocolType) -> bytes:
    if protocol == ProtocolType.IPV4:
        return bytes.fromhex("450000540000400 03f010000 0a020001 0a010001".replace(" ", "")) + bytes(64)
    return bytes.fromhex("60000000 002c3b3f".replace(" ", "")) + bytes(15) + b"\x01" + bytes(15) + b"\x02" + bytes(44)


def reseal(data: bytes) -> bytes:
    """`data` with a right checksum, so that damage gets past it."""
    if len(data) < 14:
        return data
    blank = data[:12] + bytes(2) + data[14:]
    return blank[:12] + nhrp.checksum(blank).to_bytes(2, "big") + blank[14:]


def own_samples() -> list[NhrpPacket]:
    """One packet of each type for each pair of families, with all extensions."""
    samples: list[NhrpPacket] = []
    for family in AddressFamily:
        for protocol in ProtocolType:
            v4 = family == AddressFamily.IPV4
            nbma = [ip_address(f"192.0.2.{n}" if v4 else f"2001:db8::{n}") for n in range(1, 4)]
            address = [
                ip_address(f"10.0.0.{n}" if protocol == ProtocolType.IPV4 else f"fd00::{n}") for n in range(1, 4)
            ]
            extensions: list[Extension] = [
                CieExtension(ExtensionType.FORWARD_TRANSIT, True, [Cie(0, 0, 0, 30, nbma[0], address[0])]),
                CieExtension(ExtensionType.REVERSE_TRANSIT),
                CieExtension(ExtensionType.RESPONDER_ADDRESS, True, [Cie(0, 0, 1400, 7200, nbma[1], address[1])]),
                CieExtension(ExtensionType.NAT_ADDRESS, False, [Cie(0, 32, 0, 0, nbma[2], address[2])]),
                RawExtension(ExtensionType.VENDOR, False, b"\x00\x00\x09vendor"),
                cisco_authentication(b"s3cret" if protocol == ProtocolType.IPV4 else b"s3cret of sixteen+"),
            ]
            for kind in PacketType:
                common: tuple[Any, Any, Any] = (nbma[0], address[0], address[1])
                if kind == PacketType.ERROR_INDICATION:
                    samples.append(ErrorIndication(family, protocol, 64, 11, 0, *common, nhrp.encode(samples[0])))
                elif kind == PacketType.TRAFFIC_INDICATION:
                    samples.append(TrafficIndication(family, protocol, 1, *common, _ip(protocol), extensions[-1:]))
                else:
                    cie = Cie(0, address[0].max_prefixlen, 1400, 7200, nbma[1], address[1], 5)
                    samples.append(
                        NhrpMessage(kind, family, protocol, 64, 0x8002, 0xDEADBEEF, *common, [cie], list(extensions))
                    )
    return samples


def addresses(family: int) -> st.SearchStrategy[Any]:
    """None or an address of a family."""
    kind: Any = IPv4Address if family in (AddressFamily.IPV4, ProtocolType.IPV4) else IPv6Address
    size = 4 if kind is IPv4Address else 16
    return st.none() | st.binary(min_size=size, max_size=size).map(kind)


def cies(family: int, protocol: int) -> st.SearchStrategy[Cie]:
    octet, word = st.integers(0, 0xFF), st.integers(0, 0xFFFF)
    return st.builds(
        Cie, octet, octet, word, word, addresses(family), addresses(protocol), octet, st.binary(max_size=63), word
    )


def extensions(family: int, protocol: int) -> st.SearchStrategy[Extension]:
    cie_types = st.sampled_from((3, 4, 5, 9))
    raw_types = st.integers(1, 0x3FFF).filter(lambda number: number not in (3, 4, 5, 9))
    return st.one_of(
        st.builds(CieExtension, cie_types, st.booleans(), st.lists(cies(family, protocol), max_size=3)),
        st.builds(RawExtension, raw_types, st.booleans(), st.binary(max_size=40)),
    )


@st.composite
def packets(draw: st.DrawFn) -> NhrpPacket:
    """Any packet that can be written."""
    family, protocol = draw(st.sampled_from(AddressFamily)), draw(st.sampled_from(ProtocolType))
    octet, word = st.integers(0, 0xFF), st.integers(0, 0xFFFF)
    common: tuple[Any, Any, Any] = (draw(addresses(family)), draw(addresses(protocol)), draw(addresses(protocol)))
    subaddress = draw(st.binary(max_size=63))
    kind = draw(st.sampled_from(PacketType))
    if kind == PacketType.ERROR_INDICATION:
        rest = draw(st.binary(max_size=200))
        return ErrorIndication(family, protocol, draw(octet), draw(word), draw(word), *common, rest, subaddress)
    tail = draw(st.lists(extensions(family, protocol), max_size=5))
    if kind == PacketType.TRAFFIC_INDICATION:
        rest = draw(st.binary(max_size=200))
        return TrafficIndication(family, protocol, draw(octet), *common, rest, tail, subaddress)
    entries = draw(st.lists(cies(family, protocol), max_size=4))
    request_id = draw(st.integers(0, 0xFFFFFFFF))
    return NhrpMessage(kind, family, protocol, draw(octet), draw(word), request_id, *common, entries, tail, subaddress)
