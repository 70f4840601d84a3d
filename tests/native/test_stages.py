"""Single stages over vectors, against models and other authors."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from scapy.layers.inet import ICMP, TCP, UDP
from scapy.utils import checksum as scapy_checksum

from dsvpn_native import Cipher, MemoryForwarder, ReplayWindow, checksum, coalesce, segment
from tests.native.network import KEYMAT
from tests.native.vectors import TunPacket, ip, octets_of, payload, records, tcp_superpacket, udp_superpacket, vector

SEED = 20240917
SPI = 0x10002000


@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 63, 64, 65, 1499, 65_535])
def test_checksum(length: int) -> None:
    octets = payload(length)
    assert checksum(np.frombuffer(octets, np.uint8)) == scapy_checksum(octets)


@pytest.mark.parametrize("esn", [False, True], ids=["no-esn", "esn"])
@pytest.mark.parametrize("suite", sorted(KEYMAT))
def test_seal_and_open(suite: str, esn: bool) -> None:
    keymat = KEYMAT[suite]
    other = (ChaCha20Poly1305 if suite.startswith("chacha") else AESGCM)(keymat[:-4])
    lengths = [0, 1, 16, 17, 100, 1424]
    starts = np.cumsum([0, *(length + 16 for length in lengths)])
    rows = np.array(list(zip(starts, lengths, strict=False)), np.uint32)
    plain = [payload(length, length) for length in lengths]
    arena = np.frombuffer(b"".join(octets + bytes(16) for octets in plain), np.uint8).copy()
    first = 2**32 - 2
    cipher = Cipher(suite, keymat)
    cipher.seal(arena, rows, spi=SPI, first_sequence=first, esn=esn)
    for index, ((start, length), octets) in enumerate(zip(rows.tolist(), plain, strict=True)):
        sequence = first + index
        aad = SPI.to_bytes(4) + (sequence.to_bytes(8) if esn else (sequence % 2**32).to_bytes(4))
        sealed = arena[start : start + length + 16].tobytes()
        nonce = keymat[-4:] + sequence.to_bytes(8)
        assert sealed == other.encrypt(nonce, octets, aad)
        with pytest.raises(InvalidTag):
            other.decrypt(nonce, sealed, aad + b"x")
    arena[rows[2, 0]] ^= 1
    authentic = np.zeros(len(rows), np.uint8)
    cipher.open(arena, rows, authentic, spi=SPI, first_sequence=first, esn=esn)
    assert authentic.tolist() == [1, 1, 0, 1, 1, 1]
    assert arena[rows[5, 0] : rows[5, 0] + 1424].tobytes() == plain[5]


def test_a_record_beyond_the_arena_is_refused() -> None:
    cipher = Cipher("aes128gcm16", KEYMAT["aes128gcm16"])
    with pytest.raises(ValueError, match="records: row 1 goes beyond the arena"):
        cipher.seal(np.zeros(40, np.uint8), np.array([[0, 16], [20, 16]], np.uint32), spi=SPI, first_sequence=1)
    with pytest.raises(ValueError, match="records: row 0 goes beyond the arena"):
        cipher.seal(np.zeros(40, np.uint8), np.array([[2**32 - 1, 2**32 - 1]], np.uint32), spi=SPI, first_sequence=1)


@pytest.mark.parametrize("size", [1, 32, 64, 1000, 8192])
def test_replay_window_against_a_model(size: int) -> None:
    random = np.random.default_rng(SEED)
    rounded = -(-size // 64) * 64
    steps = random.integers(-2 * size, 2 * size + 2, 4000)
    sequences = np.maximum(1, 5 * size + np.cumsum(random.integers(0, 3, 4000)) + steps // 2).astype(np.uint64)
    seen: set[int] = set()
    highest = 0
    expected = []
    for sequence in sequences.tolist():
        fresh = sequence not in seen and sequence + rounded > highest
        expected.append(int(fresh))
        if fresh:
            seen.add(sequence)
            highest = max(highest, sequence)
    accepted = np.zeros(len(sequences), np.uint8)
    ReplayWindow(size).update(sequences, accepted)
    assert accepted.tolist() == expected, f"seed {SEED}"
    assert 0 < sum(expected) < len(expected)


def test_replay_window_bounds() -> None:
    with pytest.raises(ValueError, match="replay_window: 8193 is not between 0 and 8192"):
        ReplayWindow(8193)
    with pytest.raises(ValueError, match="accepted: must have one entry per sequence number"):
        ReplayWindow(64).update(np.zeros(3, np.uint64), np.zeros(2, np.uint8))


def fib(prefixes: Sequence[IPv4Network | IPv6Network]) -> tuple[MemoryForwarder, int]:
    forwarder = MemoryForwarder()
    tunnel = forwarder.add_tunnel()
    for index, prefix in enumerate(prefixes):
        forwarder.set_next_hop(index, None, False)
        forwarder.set_route(tunnel, str(prefix), index)
    forwarder.commit()
    return forwarder, tunnel


def longest(prefixes: Sequence[IPv4Network | IPv6Network], value: int) -> int:
    """The index of the longest of the prefixes that holds an address, by looking at every one."""
    best, length = 0xFFFFFFFF, -1
    for index, prefix in enumerate(prefixes):
        bits = prefix.max_prefixlen - prefix.prefixlen
        if prefix.prefixlen > length and int(prefix.network_address) >> bits == value >> bits:
            best, length = index, prefix.prefixlen
    return best


def test_ipv4_lookup_against_a_model() -> None:
    random = np.random.default_rng(SEED)
    lengths = random.integers(1, 33, 300).tolist()
    bases = (random.integers(0, 64, 300) << 26 | random.integers(0, 1 << 26, 300)).tolist()
    networks = [IPv4Network((base, length), strict=False) for base, length in zip(bases, lengths, strict=True)]
    prefixes = list(dict.fromkeys(networks))
    forwarder, tunnel = fib(prefixes)
    near = [int(prefix.network_address) for prefix in prefixes] + [int(prefix.broadcast_address) for prefix in prefixes]
    addresses = np.array([*near, *random.integers(0, 1 << 32, 1000).tolist()], np.uint32)
    found = np.zeros(len(addresses), np.uint32)
    forwarder.lookup_ipv4(tunnel, addresses, found)
    assert found.tolist() == [longest(prefixes, address) for address in addresses.tolist()], f"seed {SEED}"
    gone = prefixes[: len(prefixes) // 2]
    for prefix in gone:
        forwarder.remove_route(tunnel, str(prefix))
    forwarder.commit()
    forwarder.lookup_ipv4(tunnel, addresses, found)
    left = prefixes[len(gone) :]
    offset = [
        index + len(gone) if index != 0xFFFFFFFF else index for index in (longest(left, a) for a in addresses.tolist())
    ]
    assert found.tolist() == offset, f"seed {SEED}"


def test_ipv6_lookup_against_a_model() -> None:
    random = np.random.default_rng(SEED)
    prefixes = list(
        dict.fromkeys(
            IPv6Network((int.from_bytes(b"\x20\x01" + random.bytes(14)), length), strict=False)
            for length in random.integers(8, 129, 200).tolist()
        )
    )
    forwarder, tunnel = fib(prefixes)
    values = [int(prefix[0]) for prefix in prefixes] + [int(prefix[-1]) for prefix in prefixes]
    addresses = np.frombuffer(b"".join(IPv6Address(value).packed for value in values), np.uint8).reshape(-1, 16)
    found = np.zeros(len(values), np.uint32)
    forwarder.lookup_ipv6(tunnel, addresses, found)
    assert found.tolist() == [longest(prefixes, value) for value in values], f"seed {SEED}"


def test_lookup_refuses_what_does_not_fit() -> None:
    forwarder, tunnel = fib([IPv4Network("10.0.0.0/8")])
    with pytest.raises(ValueError, match="next_hops: has 2 entries for 1 addresses"):
        forwarder.lookup_ipv4(tunnel, np.zeros(1, np.uint32), np.zeros(2, np.uint32))
    with pytest.raises(ValueError, match="addresses: must have 16 columns"):
        forwarder.lookup_ipv6(tunnel, np.zeros((1, 4), np.uint8), np.zeros(1, np.uint32))
    with pytest.raises(ValueError, match="tunnel: there is no tunnel 5"):
        forwarder.lookup_ipv4(5, np.array([int(IPv4Address("10.0.0.1"))], np.uint32), np.zeros(1, np.uint32))


@pytest.mark.parametrize("version", [4, 6])
def test_merging_undoes_cutting(version: int) -> None:
    superpackets = [tcp_superpacket(version, 20_000, 1200), udp_superpacket(version, 9_000, 1000)]
    arena, rows = segment(*vector(superpackets))
    assert len(rows) == 17 + 9
    result = coalesce(arena, rows, verify_checksums=True)
    merged, meta = result.gather(arena)
    assert [int(packet[6]) for packet in result.packets] == [17, 9]
    assert [octets[-length:] for octets, length in zip(octets_of(merged, meta), (20_000, 9_000), strict=True)] == [
        payload(20_000),
        payload(9_000),
    ]
    assert records(meta)["gso_size"].tolist() == [1200, 1000]


def stream(**change: Any) -> list[TunPacket]:
    """Two adjacent TCP segments; `change` makes the second another one."""
    fields: dict[str, Any] = {"sport": 1, "dport": 2, "ack": 3, "window": 4, "flags": "A", "options": []}
    network: dict[str, Any] = {}
    second = dict(fields)
    sequence = 1100
    for name, value in change.items():
        if name == "seq":
            sequence = value
        elif name in fields:
            second[name] = value
        else:
            network[name] = value
    return [
        TunPacket(bytes(ip(id=5) / TCP(seq=1000, **fields) / payload(100))),
        TunPacket(bytes(ip(**{"id": 6, **network}) / TCP(seq=sequence, **second) / payload(100, 2))),
    ]


def test_adjacent_segments_are_merged() -> None:
    arena, rows = vector(stream())
    assert len(coalesce(arena, rows).packets) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 1101},
        {"seq": 900},
        {"sport": 9},
        {"ack": 4},
        {"flags": "SA"},
        {"flags": "AE"},
        {"options": [("NOP", None)] * 4},
        {"tos": 4},
        {"ttl": 3},
        {"flags": "AU"},
        {"dst": "10.2.0.8"},
    ],
    ids=str,
)
def test_different_segments_are_not_merged(change: dict[str, Any]) -> None:
    packets = stream(**change)
    arena, rows = vector(packets)
    result = coalesce(arena, rows)
    assert octets_of(*result.gather(arena)) == [packet.octets for packet in packets]


def test_a_wrong_checksum_is_not_merged_when_asked() -> None:
    first, second = stream()
    broken = bytearray(second.octets)
    broken[-1] ^= 1
    arena, rows = vector([first, TunPacket(bytes(broken))])
    assert len(coalesce(arena, rows, verify_checksums=True).packets) == 2


def test_order_within_a_flow_is_kept() -> None:
    random = np.random.default_rng(SEED)
    packets: list[TunPacket] = []
    sequences = [0, 0]
    for _ in range(200):
        flow = int(random.integers(0, 2))
        size = int(random.choice([100, 100, 100, 60]))
        head = ip(flags="DF") / TCP(sport=flow, dport=9, seq=sequences[flow], flags="A")
        packets.append(TunPacket(bytes(head / payload(size, len(packets)))))
        sequences[flow] += size
        if random.integers(0, 20) == 0:
            packets.append(TunPacket(bytes(ip() / ICMP() / payload(10))))
    arena, rows = vector(packets)
    result = coalesce(arena, rows)
    cut = octets_of(*segment(*result.gather(arena)))
    assert len(result.packets) < len(packets)

    def payloads(all_octets: list[bytes], flow: int) -> bytes:
        return b"".join(octets[40:] for octets in all_octets if octets[9] == 6 and octets[21] == flow)

    given = [packet.octets for packet in packets]
    for flow in (0, 1):
        assert payloads(cut, flow) == payloads(given, flow), f"seed {SEED}"


def test_udp_is_not_merged_across_flows() -> None:
    packets = [TunPacket(bytes(ip() / UDP(sport=port) / payload(100))) for port in (1, 2)]
    arena, rows = vector(packets)
    assert len(coalesce(arena, rows).packets) == 2
