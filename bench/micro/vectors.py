"""Packet vectors as the data plane's memory surface takes them, and rings to measure against."""

from __future__ import annotations

import json
import struct
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.environment import ROOT
from bench.null_native import cargo_directory
from dsvpn.lab.run import command

Octets = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.uint32]

#: The record of a TUN packet.
TUN_PACKET = np.dtype(
    [
        ("offset", "u4"),
        ("length", "u4"),
        ("flags", "u1"),
        ("gso_type", "u1"),
        ("hdr_len", "u2"),
        ("gso_size", "u2"),
        ("csum_start", "u2"),
        ("csum_offset", "u2"),
        ("reserved", "u2"),
    ]
)
NEEDS_CSUM, GSO_TCPV4 = 1, 1
#: Packet lengths in octets: 7 : 4 : 1, the simple IMIX, its longest packet being what the tunnel carries.
IMIX = (64, 576, 64, 64, 1424, 64, 576, 64, 576, 64, 64, 576)
SIZES: dict[str, tuple[int, ...]] = {"64": (64,), "256": (256,), "576": (576,), "1424": (1424,), "IMIX": IMIX}
VECTORS = (1, 16, 64, 256)
ICV = 16
_RAW_RING = Path(__file__).parent / "raw_ring"


def lengths(size: str, count: int) -> list[int]:
    """Lengths of `count` packets of a size of SIZES."""
    pattern = SIZES[size]
    return [pattern[index % len(pattern)] for index in range(count)]


def case_name(size: str) -> str:
    """A size of SIZES for people."""
    return size if size == "IMIX" else f"{size} B"


def internet_checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1])) + (
        data[-1] << 8 if len(data) & 1 else 0
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(protocol: int, destination: IPv4Address, payload: bytes, identification: int = 0) -> bytes:
    """An IPv4 packet with DF and a right header checksum."""
    source = IPv4Address("172.16.1.10")
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), identification, 0x4000, 64, protocol, 0)
    head += source.packed + destination.packed
    return head[:10] + struct.pack("!H", internet_checksum(head)) + head[12:] + payload


def udp(destination: IPv4Address, length: int, port: int) -> bytes:
    """A UDP packet of `length` octets from `port`."""
    body = bytes(length - 28)
    head = struct.pack("!HHHH", port, 5999, length - 20, 0)
    pseudo = IPv4Address("172.16.1.10").packed + destination.packed + struct.pack("!BBH", 0, 17, length - 20)
    value = internet_checksum(pseudo + head + body) or 0xFFFF
    return ipv4(17, destination, head[:6] + struct.pack("!H", value) + body)


def tcp(destination: IPv4Address, payload: int, sequence: int) -> bytes:
    """A TCP segment with `payload` octets; its checksum is right."""
    body = bytes(payload)
    head = struct.pack("!HHIIBBHHH", 40000, 5201, sequence, 1, 0x50, 0x10, 65535, 0, 0)
    pseudo = IPv4Address("172.16.1.10").packed + destination.packed + struct.pack("!BBH", 0, 6, 20 + payload)
    value = internet_checksum(pseudo + head + body)
    return ipv4(6, destination, head[:16] + struct.pack("!H", value) + head[18:] + body)


def vector(packets: list[bytes]) -> tuple[Octets, Rows]:
    """An arena and its rows, for single packets."""
    arena = np.frombuffer(b"".join(packets), dtype=np.uint8).copy()
    records = np.zeros(len(packets), dtype=TUN_PACKET)
    records["length"] = [len(packet) for packet in packets]
    records["offset"][1:] = np.cumsum(records["length"])[:-1]
    return arena, records.view(np.uint32).reshape(-1, 5)


def udp_vector(size: str, count: int, destinations: list[IPv4Address], *, flows: bool = True) -> tuple[Octets, Rows]:
    """UDP packets; with `flows`, each of a flow of its own, so that none can be merged."""
    return vector(
        [
            udp(destinations[index % len(destinations)], length, 10000 + (index if flows else 0))
            for index, length in enumerate(lengths(size, count))
        ]
    )


def superpacket(segments: int, mss: int) -> tuple[Octets, Rows]:
    """One TCP superpacket as a TUN with TSO gives it: NEEDS_CSUM, the pseudo-header's sum in the checksum field."""
    destination = IPv4Address("172.16.2.10")
    packet = bytearray(tcp(destination, segments * mss, 1))
    pseudo = bytes(packet[12:20]) + struct.pack("!BBH", 0, 6, 20 + segments * mss)
    packet[36:38] = struct.pack("!H", ~internet_checksum(pseudo) & 0xFFFF)
    arena = np.frombuffer(bytes(packet), dtype=np.uint8).copy()
    record = np.zeros(1, dtype=TUN_PACKET)
    record["length"] = len(packet)
    record["flags"], record["gso_type"], record["hdr_len"], record["gso_size"] = NEEDS_CSUM, GSO_TCPV4, 40, mss
    record["csum_start"], record["csum_offset"] = 20, 16
    return arena, record.view(np.uint32).reshape(-1, 5)


@cache
def _raw_ring_program() -> str:
    """Build bench/micro/raw_ring. HostError without cargo."""
    target = ROOT / "build" / "bench" / "raw-ring"
    command(
        [
            str(cargo_directory() / "cargo"),
            "build",
            "--release",
            "--quiet",
            "--locked",
            "--manifest-path",
            str(_RAW_RING / "Cargo.toml"),
            "--target-dir",
            str(target),
        ],
        timeout=600,
    )
    return str(target / "release" / "raw-ring")


class RawRing:
    """Seconds that ring alone takes to "seal" or "open" one packet of a size of SIZES, measured right before and right
    after what is set against it, so that the machine's slow moments meet both."""

    def __init__(self, suite: str, size: str, way: str) -> None:
        self._case = suite, size, way
        self._before = raw_ring(*self._case)

    def seconds(self) -> float:
        """The mean of both."""
        return (self._before + raw_ring(*self._case)) / 2


def raw_ring(suite: str, size: str, way: str) -> float:
    """The same, measured at this moment."""
    pattern = SIZES[size]
    argv = [_raw_ring_program(), suite, *map(str, sorted(set(pattern)))]
    found: dict[str, dict[str, float]] = json.loads(command(argv, timeout=120))
    return sum(found[str(length)][way] for length in pattern) / len(pattern)
