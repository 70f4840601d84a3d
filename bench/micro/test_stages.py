"""Single stages over vectors. A call's cost of crossing from Python is in it: see how it fades with the vector."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from ipaddress import IPv4Address
from typing import Any

import numpy as np
import pytest

import dsvpn_native
from bench.micro.forwarder import KEYMAT, Pair
from bench.micro.vectors import ICV, SIZES, VECTORS, RawRing, case_name, lengths, superpacket, tcp, vector

_ROUNDS = 500
_SPI = 0x12345678
_SUITES = ("aes128gcm16", "chacha20poly1305")


def _records(size: str, count: int) -> tuple[Any, Any]:
    """An arena and its records, with room for an ICV behind each."""
    each = lengths(size, count)
    records = np.zeros((count, 2), dtype=np.uint32)
    records[:, 1] = each
    records[1:, 0] = np.cumsum([length + ICV for length in each])[:-1]
    return np.zeros(sum(each) + ICV * count, dtype=np.uint8), records


@pytest.mark.parametrize("count", VECTORS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("suite", _SUITES)
def test_seal(benchmark: Any, suite: str, size: str, count: int) -> None:
    cipher = dsvpn_native.Cipher(suite, KEYMAT[suite])
    arena, records = _records(size, count)
    benchmark.group = f"seal, {suite}"
    raw = RawRing(suite, size, "seal")
    mean = sum(lengths(size, count)) / count
    benchmark.extra_info.update(case=case_name(size), packets=count, octets=mean)
    benchmark(cipher.seal, arena, records, spi=_SPI, first_sequence=1)
    benchmark.extra_info["raw_seconds"] = raw.seconds()


@pytest.mark.parametrize("count", VECTORS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("suite", _SUITES)
def test_open(benchmark: Any, suite: str, size: str, count: int) -> None:
    cipher = dsvpn_native.Cipher(suite, KEYMAT[suite])
    sealed, records = _records(size, count)
    cipher.seal(sealed, records, spi=_SPI, first_sequence=1)
    work, authentic = sealed.copy(), np.zeros(count, dtype=np.uint8)

    def fresh() -> None:
        np.copyto(work, sealed)

    def run() -> None:
        cipher.open(work, records, authentic, spi=_SPI, first_sequence=1)

    benchmark.group = f"open, {suite}"
    raw = RawRing(suite, size, "open")
    mean = sum(lengths(size, count)) / count
    benchmark.extra_info.update(case=case_name(size), packets=count, octets=mean)
    benchmark.pedantic(run, setup=fresh, rounds=_ROUNDS, warmup_rounds=5)
    benchmark.extra_info["raw_seconds"] = raw.seconds()
    assert authentic.all()


@pytest.fixture(scope="module")
def tables() -> Callable[[int, int], Pair]:
    """Forwarders with so many routes and peers, each made once."""
    return cache(lambda routes, peers: Pair(routes=routes, peers=peers, far=False))


@pytest.mark.parametrize("count", VECTORS)
@pytest.mark.parametrize("routes", [1000, 10_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (10**5, 10**6))])
def test_fib(benchmark: Any, tables: Callable[[int, int], Pair], routes: int, count: int) -> None:
    """Every call with addresses of its own, at random over all routes."""
    pair = tables(routes, 1)
    addresses, next_hops = np.zeros(count, dtype=np.uint32), np.zeros(count, dtype=np.uint32)
    random = np.random.default_rng(2)

    def fresh() -> None:
        every = random.integers(0, routes, count, dtype=np.uint32)
        addresses[:] = every * 256 + np.uint32(int(IPv4Address("20.0.0.10")))

    benchmark.group = "FIB lookup, random IPv4 addresses"
    benchmark.extra_info.update(case=f"{routes} routes", packets=count)
    benchmark.pedantic(
        pair.sender.lookup_ipv4, (pair.tunnel, addresses, next_hops), setup=fresh, rounds=_ROUNDS, warmup_rounds=5
    )
    assert (next_hops == 0).all()


@pytest.mark.parametrize("count", VECTORS)
@pytest.mark.parametrize("peers", [1, 1000, pytest.param(10**5, marks=pytest.mark.slow)])
def test_adjacency(benchmark: Any, tables: Callable[[int, int], Pair], peers: int, count: int) -> None:
    """Next hop, adjacency and its outbound SA's first line, at random over all peers."""
    pair = tables(peers, peers)
    next_hops, spis = np.zeros(count, dtype=np.uint32), np.zeros(count, dtype=np.uint32)
    random = np.random.default_rng(3)

    def fresh() -> None:
        next_hops[:] = random.integers(0, peers, count, dtype=np.uint32)

    benchmark.group = "adjacency: next hop to outbound SA"
    benchmark.extra_info.update(case=f"{peers} peers", packets=count)
    benchmark.pedantic(pair.sender.lookup_adjacencies, (next_hops, spis), setup=fresh, rounds=_ROUNDS, warmup_rounds=5)
    assert (spis == next_hops + 0x1000).all()


@pytest.mark.parametrize("count", VECTORS)
@pytest.mark.parametrize("way", ["write", "parse"])
def test_gre(benchmark: Any, way: str, count: int) -> None:
    """Headers with a key, in packets of 64 octets."""
    records = np.zeros((count, 2), dtype=np.uint32)
    records[:, 0], records[:, 1] = np.arange(count) * 64, 64
    arena, offsets, lengths = np.zeros(count * 64, dtype=np.uint8), records[:, 0].copy(), np.zeros(count, np.uint32)
    dsvpn_native.write_gre(arena, offsets, key=42, protocol=0x0800)
    benchmark.group = "GRE"
    benchmark.extra_info.update(case=f"{way}, with a key", packets=count)
    if way == "write":
        benchmark(dsvpn_native.write_gre, arena, offsets, key=42, protocol=0x0800)
    else:
        benchmark(dsvpn_native.parse_gre, arena, records, lengths)
        assert (lengths == 8).all()


@pytest.mark.parametrize("count", VECTORS)
def test_replay_window(benchmark: Any, count: int) -> None:
    window = dsvpn_native.ReplayWindow(1024)
    accepted = np.zeros(count, dtype=np.uint8)
    sequences = np.arange(1, count + 1, dtype=np.uint64)

    def advance() -> None:
        sequences.__iadd__(np.uint64(count))

    benchmark.group = "replay window, in order"
    benchmark.extra_info.update(case="1024 packets", packets=count)
    benchmark.pedantic(window.update, args=(sequences, accepted), setup=advance, rounds=_ROUNDS, warmup_rounds=5)
    assert accepted.all()


@pytest.mark.parametrize("count", [1, 16, 44])
@pytest.mark.parametrize("size", [64, 256, 576, 1424])
def test_segment(benchmark: Any, size: int, count: int) -> None:
    """GSO split into copies, checksums completed. The encap itself splits without this copy. 44 segments of 1424 octets
    are what 64 KiB hold."""
    arena, packets = superpacket(count, size - 40)
    assert len(dsvpn_native.segment(arena, packets)[1]) == count
    benchmark.group = "GSO split of a TCP superpacket"
    benchmark.extra_info.update(case=case_name(str(size)), packets=count, octets=size)
    benchmark(dsvpn_native.segment, arena, packets)


@pytest.mark.parametrize("count", VECTORS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("verify", [False, True])
def test_coalesce(benchmark: Any, verify: bool, size: str, count: int) -> None:
    """One TCP flow. In IMIX the sizes change from packet to packet, so that little merges."""
    sequence, octets = 1, []
    for length in lengths(size, count):
        octets.append(tcp(IPv4Address("172.16.2.10"), length - 40, sequence))
        sequence += length - 40
    original, packets = vector(octets)
    arena = original.copy()

    def run() -> Any:
        return dsvpn_native.coalesce(arena, packets, verify_checksums=verify)

    merged = run().packets
    assert int(merged[:, 6].sum()) == count
    # 64 KiB is the most that a packet can have.
    assert size == "IMIX" or len(merged) <= 1 + sum(lengths(size, count)) // 60_000
    benchmark.group = "coalesce" + (", checksums verified" if verify else "")
    benchmark.extra_info.update(case=case_name(size), packets=count, octets=sum(lengths(size, count)) / count)
    benchmark.pedantic(run, setup=lambda: np.copyto(arena, original), rounds=_ROUNDS, warmup_rounds=5)


@pytest.mark.parametrize("length", [64, 576, 1424, 65536])
def test_checksum(benchmark: Any, length: int) -> None:
    octets = np.arange(length, dtype=np.uint32).astype(np.uint8)
    benchmark.group = "Internet checksum"
    benchmark.extra_info.update(case=f"{length} B", packets=1, octets=length)
    benchmark(dsvpn_native.checksum, octets)
