"""The forwarder between arenas in memory, with scapy as the second author of ESP and GRE."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import GRE

from tests.native.associations import association, opened, sealed_gre
from tests.native.network import KEYMAT
from tests.native.vectors import (
    ADJACENCY,
    KEY,
    MESSAGE,
    MTU,
    NEEDS_CSUM,
    Encapsulation,
    Gateway,
    TunPacket,
    datagram_rows,
    gateways,
    ip,
    octets_of,
    payload,
    records,
    split_datagrams,
    tcp_superpacket,
    udp_superpacket,
    vector,
)

SUITES = sorted(KEYMAT)
#: ICMP: nothing merges them.
SIZES = [0, 1, 2, 3, 4, 5, 15, 16, 100, 1000, MTU - 28]


@pytest.mark.parametrize("encapsulation", ["udp", "esp"])
@pytest.mark.parametrize("esn", [False, True], ids=["no-esn", "esn"])
@pytest.mark.parametrize("suite", SUITES)
def test_what_is_sealed_is_opened(suite: str, esn: bool, encapsulation: Encapsulation) -> None:
    one, other = gateways(encapsulation, suite, esn)
    packets = [TunPacket(bytes(ip() / ICMP(seq=size) / payload(size))) for size in SIZES]
    arena, datagrams = one.encap_all(packets)
    result = other.decap(arena, datagrams)
    assert octets_of(*result.gather(arena)) == [packet.octets for packet in packets]
    assert not one.drops()
    assert not other.drops()
    octets = sum(len(packet.octets) for packet in packets)
    assert other.forwarder.sa_counters(other.spi)["packets"] == len(packets)
    assert one.forwarder.outbound_sa_counters(ADJACENCY)["sequence"] == len(packets)
    assert one.forwarder.adjacency_counters(ADJACENCY)["bytes_out"] == octets
    assert other.forwarder.adjacency_counters(ADJACENCY)["bytes_in"] == octets


@pytest.mark.parametrize("key", [None, KEY], ids=["no-key", "key"])
def test_plain_gre_round_trip(key: int | None) -> None:
    one, other = gateways("gre", key=key)
    packets = [TunPacket(bytes(ip(version) / UDP() / payload(100, seed))) for seed, version in enumerate((4, 6, 4))]
    arena, datagrams = one.encap_all(packets)
    for datagram, packet in zip(split_datagrams(arena, datagrams), packets, strict=True):
        parsed = GRE(datagram)
        assert (parsed.key_present, parsed.chksum_present, parsed.seqnum_present) == (key is not None, 0, 0)
        assert key is None or parsed.key == key
        assert bytes(parsed.payload) == packet.octets
    assert octets_of(*other.decap(arena, datagrams).gather(arena)) == [packet.octets for packet in packets]


@pytest.mark.parametrize("esn", [False, True], ids=["no-esn", "esn"])
@pytest.mark.parametrize("suite", SUITES)
def test_scapy_opens_what_is_sealed(suite: str, esn: bool) -> None:
    one, other = gateways("esp", suite, esn)
    packets = [TunPacket(bytes(ip() / ICMP(seq=size) / payload(size))) for size in SIZES]
    arena, datagrams = one.encap_all(packets)
    opener = association(other.spi, suite, esn)
    for number, (datagram, packet) in enumerate(zip(split_datagrams(arena, datagrams), packets, strict=True), 1):
        assert int.from_bytes(datagram[:4]) == other.spi
        assert int.from_bytes(datagram[4:8]) == number
        inner = opened(opener, datagram)
        assert inner.proto == 47
        assert inner[GRE].key == KEY
        assert bytes(inner[GRE].payload) == packet.octets


@pytest.mark.parametrize("esn", [False, True], ids=["no-esn", "esn"])
@pytest.mark.parametrize("suite", SUITES)
def test_what_scapy_seals_is_opened(suite: str, esn: bool) -> None:
    _, other = gateways("esp", suite, esn)
    sealer = association(other.spi, suite, esn)
    inner = [bytes(ip() / ICMP(seq=size) / payload(size)) for size in SIZES]
    arena, rows = datagram_rows([sealed_gre(sealer, octets) for octets in inner], "esp")
    assert octets_of(*other.decap(arena, rows).gather(arena)) == inner
    assert not other.drops()


def checked(octets: bytes) -> Any:
    """The packet, after scapy has computed the lengths and checksums itself and found the same."""
    packet: Any = IP(octets) if octets[0] >> 4 == 4 else IPv6(octets)
    again = packet.copy()
    for layer in (IP, TCP, UDP):
        if layer in again:
            del again[layer].chksum
    if IP in again:
        del again[IP].len
    if UDP in again:
        del again[UDP].len
    if IPv6 in again:
        del again[IPv6].plen
    assert bytes(again) == octets
    return packet


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("length", "size"), [(60_000, 1300), (1301, 1300), (2600, 1300), (5000, 536), (3, 1)])
def test_a_tcp_superpacket_is_cut_as_scapy_would(version: int, length: int, size: int) -> None:
    one, other = gateways()
    superpacket = tcp_superpacket(version, length, size, "PFA")
    arena, datagrams = one.encap_all([superpacket])
    # Cut by one author, merged by nobody: single datagrams to a gateway that does not coalesce.
    plain = Gateway(2, coalesce_tcp=False)
    plain.accept("aes128gcm16", True)
    sender = Gateway(1)
    sender.seal(plain.spi, "aes128gcm16", True)
    cut, rows = sender.encap_all([superpacket])
    segments = [checked(octets) for octets in octets_of(*plain.decap(cut, rows).gather(cut))]
    assert len(segments) == -(-length // size)
    expected, sequence = payload(length), 0xFFFFF000
    for index, segment in enumerate(segments):
        chunk = expected[index * size : (index + 1) * size]
        last = index == len(segments) - 1
        assert segment[TCP].seq == (sequence + index * size) % 2**32
        assert str(segment[TCP].flags) == ("FPA" if last else "A")
        assert segment[TCP].options == [("NOP", None)] * 4
        assert bytes(segment[TCP].payload) == chunk
        if version == 4:
            assert segment[IP].id == (segments[0][IP].id + index) % 65536
    # Merged again, it is the superpacket that it was.
    result = other.decap(arena, datagrams)
    merged, meta = result.gather(arena)
    if len(segments) <= 256 and size > 1:
        assert len(meta) == 1
        assert result.packets[0, 6] == len(segments)
        record = records(meta)[0]
        assert (record["gso_type"], record["gso_size"]) == (superpacket.gso_type, size)
        assert (record["flags"], record["csum_start"], record["csum_offset"]) == (
            NEEDS_CSUM,
            superpacket.csum_start,
            16,
        )
        assert octets_of(merged, meta)[0][-length:] == expected
        assert len(octets_of(merged, meta)[0]) == len(superpacket.octets)
    assert not one.drops()
    assert not other.drops()


@pytest.mark.parametrize("version", [4, 6])
def test_a_udp_superpacket_is_cut_and_merged(version: int) -> None:
    one, other = gateways()
    superpacket = udp_superpacket(version, 10_000, 1200)
    arena, datagrams = one.encap_all([superpacket])
    result = other.decap(arena, datagrams)
    merged, meta = result.gather(arena)
    assert len(meta) == 1
    assert (records(meta)[0]["gso_type"], records(meta)[0]["gso_size"]) == (5, 1200)
    assert octets_of(merged, meta)[0][-10_000:] == payload(10_000)

    one, other = gateways(coalesce_udp=False)
    arena, datagrams = one.encap_all([superpacket])
    cut = [checked(octets) for octets in octets_of(*other.decap(arena, datagrams).gather(arena))]
    assert [len(packet[UDP].payload) for packet in cut] == [1200] * 8 + [400]
    assert b"".join(bytes(packet[UDP].payload) for packet in cut) == payload(10_000)


def test_messages_are_bounded_and_contiguous() -> None:
    one, _ = gateways()
    arena, rows = vector([tcp_superpacket(4, 64_000, 1300), tcp_superpacket(4, 64_000, 1300)])
    result = one.encap(arena, rows)
    assert result.consumed == 2
    end = None
    for message in result.messages.tolist():
        fields = dict(zip(MESSAGE, message, strict=True))
        assert fields["adjacency"] == ADJACENCY
        assert (fields["encapsulation"], fields["remote_port"]) == (0, 4500)
        assert fields["segments"] <= 64
        assert fields["length"] <= 65_507
        assert fields["segments"] == -(-fields["length"] // fields["segment_size"])
        assert end is None or fields["offset"] >= end
        end = fields["offset"] + fields["length"]
    assert result.messages[:, 7].sum() == 2 * -(-64_000 // 1300)


def test_one_datagram_per_message_without_gso() -> None:
    one, other = gateways(segments=1)
    arena, datagrams = one.encap_all([tcp_superpacket(4, 10_000, 1300)])
    assert len(datagrams) == 8
    assert len(other.decap(arena, datagrams).packets) == 1


def test_a_full_output_is_gone_on_with() -> None:
    one, other = gateways()
    one.output = np.zeros(131_072, np.uint8)
    superpackets = [tcp_superpacket(4, 65_000, 1300, seed=seed) for seed in range(6)]
    arena, rows = vector(superpackets)
    assert one.encap(arena, rows).consumed < 6
    one, other = gateways()
    one.output = np.zeros(131_072, np.uint8)
    cut, datagrams = one.encap_all(superpackets)
    received = b"".join(octets[60 - 16 :] for octets in octets_of(*other.decap(cut, datagrams).gather(cut)))
    assert received == b"".join(payload(65_000, seed) for seed in range(6))


def test_a_checksum_that_the_kernel_left_is_completed() -> None:
    one, other = gateways()
    packet = ip() / UDP(sport=5, dport=6, chksum=0) / payload(101)
    octets = bytearray(bytes(packet))
    # What a kernel leaves in the field: the sum of the pseudo header, not inverted.
    pseudo = octets[12:20] + bytes([0, 17]) + octets[24:26]
    total = sum(int.from_bytes(pseudo[at : at + 2]) for at in range(0, len(pseudo), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    octets[26:28] = total.to_bytes(2)
    arena, datagrams = one.encap_all([TunPacket(bytes(octets), NEEDS_CSUM, csum_start=20, csum_offset=6)])
    (received,) = octets_of(*other.decap(arena, datagrams).gather(arena))
    assert checked(received)[UDP].chksum != 0


def test_a_packet_that_is_too_big_is_answered() -> None:
    one, _ = gateways()
    arena, rows = vector([TunPacket(bytes(ip(flags="DF") / UDP() / payload(MTU)))])
    result = one.encap(arena, rows)
    assert not len(result.messages)
    (reply,) = octets_of(result.replies, result.reply_packets)
    answer = checked(reply)
    assert (answer[ICMP].type, answer[ICMP].code, answer[ICMP].nexthopmtu) == (3, 4, MTU)
    assert answer.dst == "10.1.0.9"
    assert one.drops() == {"drop_too_big": 1}


def test_a_refused_argument_is_named() -> None:
    one, _ = gateways()
    arena, rows = vector([TunPacket(bytes(ip() / UDP()))])
    with pytest.raises(ValueError, match="output: has 10 octets and needs 131072"):
        one.forwarder.encap(one.tunnel, arena, rows, np.zeros(10, np.uint8), 0)
    with pytest.raises(ValueError, match="packets: must have 5 columns, not 4"):
        one.encap(arena, np.zeros((1, 4), np.uint32))
    with pytest.raises(ValueError, match="arena: must be a C-contiguous array"):
        one.encap(np.zeros(100, np.uint8)[::2], rows)
    with pytest.raises(ValueError, match="datagrams: 9 is no index that add_endpoints gave"):
        one.decap(arena, np.array([[0, 1, 0, 0, 9]], np.uint32))
    with pytest.raises(ValueError, match="datagrams: kind 8 is none of 0 to 3"):
        one.decap(arena, np.array([[0, 1, 0, 8, 0]], np.uint32))
