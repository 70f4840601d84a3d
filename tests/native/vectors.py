"""Packet vectors for the forwarder in memory, with scapy as the author of the packets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from dsvpn_native import DecapResult, EncapResult, MemoryForwarder
from tests.native.network import KEYMAT

Encapsulation = Literal["udp", "esp", "gre"]
Octets = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.uint32]

#: The record of a TUN packet.
PACKET = np.dtype(
    [
        ("offset", "=u4"),
        ("length", "=u4"),
        ("flags", "u1"),
        ("gso_type", "u1"),
        ("hdr_len", "=u2"),
        ("gso_size", "=u2"),
        ("csum_start", "=u2"),
        ("csum_offset", "=u2"),
        ("reserved", "=u2"),
    ]
)
MESSAGE = ("adjacency", "encapsulation", "remote_port", "tos", "offset", "length", "segment_size", "segments")
KIND = {"udp": 0, "esp": 1, "gre": 2, "ike": 3}

NEEDS_CSUM = 1
GSO_TCPV4, GSO_TCPV6, GSO_UDP = 1, 4, 5

#: Adjacency, next hop, GRE key and endpoints that every forwarder here has.
ADJACENCY, NEXT_HOP, KEY = 7, 3, 42
MTU = 1430
SECOND = 1_000_000_000


@dataclass(frozen=True)
class TunPacket:
    """A packet as a TUN gives it."""

    octets: bytes
    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0


def vector(packets: Iterable[TunPacket]) -> tuple[Octets, Rows]:
    """An arena and the rows of its packets."""
    given = list(packets)
    rows = np.zeros(len(given), PACKET)
    offset = 0
    for row, packet in zip(rows, given, strict=True):
        row["offset"], row["length"] = offset, len(packet.octets)
        for name in ("flags", "gso_type", "hdr_len", "gso_size", "csum_start", "csum_offset"):
            row[name] = getattr(packet, name)
        offset += len(packet.octets)
    arena = np.frombuffer(b"".join(packet.octets for packet in given), np.uint8).copy()
    return arena, rows.view(np.uint32).reshape(-1, 5)


def records(rows: Rows) -> npt.NDArray[np.void]:
    """The rows of packets with names."""
    return rows.reshape(-1).view(PACKET)


def octets_of(arena: Octets, rows: Rows) -> list[bytes]:
    """The packets of a vector as bytes."""
    return [arena[row["offset"] : row["offset"] + row["length"]].tobytes() for row in records(rows)]


def payload(length: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, length, np.uint8).tobytes()


def ip(version: int = 4, **fields: Any) -> Any:
    """The network header from the LAN of one side to that of the other."""
    if version == 4:
        return IP(**{"src": "10.1.0.9", "dst": "10.2.0.9", **fields})
    return IPv6(**{"src": "fd01::9", "dst": "fd02::9", **fields})


def tcp_superpacket(version: int, length: int, size: int, flags: str = "PA", seed: int = 1) -> TunPacket:
    """A TCP superpacket as a kernel gives it: the checksum field holds the sum of the pseudo header."""
    segment = ip(version) / TCP(
        sport=1000, dport=2000, seq=0xFFFFF000, ack=77, flags=flags, options=[("NOP", None)] * 4
    )
    head = len(bytes(segment)) - len(bytes(segment[TCP]))
    octets = bytearray(bytes(segment / payload(length, seed)))
    return TunPacket(
        bytes(octets),
        flags=NEEDS_CSUM,
        gso_type=GSO_TCPV4 if version == 4 else GSO_TCPV6,
        hdr_len=len(bytes(segment)),
        gso_size=size,
        csum_start=head,
        csum_offset=16,
    )


def udp_superpacket(version: int, length: int, size: int) -> TunPacket:
    datagram = ip(version) / UDP(sport=1000, dport=2000)
    head = len(bytes(datagram)) - 8
    return TunPacket(
        bytes(datagram / payload(length)),
        flags=NEEDS_CSUM,
        gso_type=GSO_UDP,
        hdr_len=head + 8,
        gso_size=size,
        csum_start=head,
        csum_offset=6,
    )


class Gateway:
    """A forwarder with one tunnel and one peer."""

    def __init__(self, side: int, encapsulation: Encapsulation = "udp", key: int | None = KEY, **options: Any) -> None:
        self.forwarder = MemoryForwarder(**options)
        self.encapsulation = encapsulation
        self.output = np.zeros(256 * 1024, np.uint8)
        self.tunnel = self.forwarder.add_tunnel(key=key, protected=encapsulation != "gre")
        local, remote = f"192.0.2.{side}", f"192.0.2.{3 - side}"
        port = 4500 if encapsulation == "udp" else 0
        self.forwarder.set_adjacency(ADJACENCY, self.tunnel, encapsulation, local, remote, port, MTU)
        self.forwarder.set_next_hop(NEXT_HOP, ADJACENCY, False)
        self.forwarder.set_route(self.tunnel, f"10.{3 - side}.0.0/16", NEXT_HOP)
        self.forwarder.set_route(self.tunnel, f"fd0{3 - side}::/16", NEXT_HOP)
        self.endpoints = self.forwarder.add_endpoints(local, port, remote, port)
        self.spi = 0
        if encapsulation != "gre":
            self.spi = self.forwarder.allocate_spi()
        self.forwarder.commit()

    def accept(self, suite: str, esn: bool, window: int = 1024) -> None:
        self.forwarder.add_inbound_sa(self.spi, suite, KEYMAT.get(suite, bytes(4)), [ADJACENCY], esn, window)
        self.forwarder.commit()

    def seal(self, spi: int, suite: str, esn: bool) -> None:
        self.forwarder.set_outbound_sa(spi, suite, KEYMAT.get(suite, bytes(4)), [ADJACENCY], esn)
        self.forwarder.commit()

    def encap(self, arena: Octets, rows: Rows, now: int = SECOND) -> EncapResult:
        return self.forwarder.encap(self.tunnel, arena, rows, self.output, now)

    def encap_all(self, packets: Sequence[TunPacket]) -> tuple[Octets, Rows]:
        """Encapsulate everything. Gives the octets of all messages and rows that `decap` takes."""
        arena, rows = vector(packets)
        parts: list[Octets] = []
        datagrams: list[list[int]] = []
        base = 0
        while len(rows):
            result = self.encap(arena, rows)
            for message in result.messages.tolist():
                fields = dict(zip(MESSAGE, message, strict=True))
                stride = fields["segment_size"] if fields["segments"] > 1 else 0
                datagrams.append([base + fields["offset"], fields["length"], stride, fields["encapsulation"], 0])
            used = int((result.messages[:, 4] + result.messages[:, 5]).max(initial=0))
            assert used or result.consumed, "no progress"
            parts.append(self.output[:used].copy())
            base += used
            rows = np.ascontiguousarray(rows[result.consumed :])
        return np.concatenate([*parts, np.zeros(0, np.uint8)]), np.array(datagrams, np.uint32).reshape(-1, 5)

    def decap(self, arena: Octets, datagrams: Rows, now: int = SECOND) -> DecapResult:
        return self.forwarder.decap(arena, datagrams, now)

    def drops(self) -> dict[str, int]:
        return {name: count for name, count in self.forwarder.counters().items() if name.startswith("drop_") and count}


def gateways(
    encapsulation: Encapsulation = "udp",
    suite: str = "aes128gcm16",
    esn: bool = True,
    key: int | None = KEY,
    **options: Any,
) -> tuple[Gateway, Gateway]:
    """Two that have each other as peer."""
    made = Gateway(1, encapsulation, key, **options), Gateway(2, encapsulation, key, **options)
    if encapsulation != "gre":
        for one in made:
            one.accept(suite, esn)
        for one, other in (made, made[::-1]):
            one.seal(other.spi, suite, esn)
    return made


def split_datagrams(arena: Octets, datagrams: Rows) -> list[bytes]:
    """Every datagram of rows that `encap_all` gave."""
    out = []
    for offset, length, stride, *_ in datagrams.tolist():
        for at in range(offset, offset + length, stride or length):
            out.append(arena[at : min(at + (stride or length), offset + length)].tobytes())
    return out


def datagram_rows(datagrams: Sequence[bytes], kind: str) -> tuple[Octets, Rows]:
    """Single datagrams as an arena and rows."""
    ends = np.cumsum([0, *map(len, datagrams)])
    rows = [[int(start), len(octets), 0, KIND[kind], 0] for start, octets in zip(ends, datagrams, strict=False)]
    return np.frombuffer(b"".join(datagrams), np.uint8).copy(), np.array(rows, np.uint32).reshape(-1, 5)
