"""Single stages over vectors. A call's cost of crossing from Python is in it: see how it fades with the vector."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import numpy as np
import pytest

import dsvpn_native
from bench.micro.forwarder import KEYMAT, Pair
from bench.micro.vectors import ICV, SIZES, VECTORS, case_name, lengths, raw_ring, superpacket, tcp, vector

_ROUNDS = 200
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
    raw = raw_ring(suite, size, "seal")
    mean = sum(lengths(size, count)) / count
    benchmark.extra_info.update(case=case_name(size), packets=count, octets=mean, raw_seconds=raw)
    benchmark(cipher.seal, arena, records, spi=_SPI, first_sequence=1)


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
    raw = raw_ring(suite, size, "open")
    mean = sum(lengths(size, count)) / count
    benchmark.extra_info.update(case=case_name(size), packets=count, octets=mean, raw_seconds=raw)
    benchmark.pedantic(run, setup=fresh, rounds=_ROUNDS, warmup_rounds=5)
    assert authentic.all()


@pytest.mark.parametrize(
    "routes",
    [1000, 10_000, pytest.param(100_000, marks=pytest.mark.slow), pytest.param(1_000_000, marks=pytest.mark.slow)],
)
def test_fib(benchmark: Any, routes: int) -> None:
    pair = Pair(routes=routes, far=False)
    count = 4096
    every = np.random.default_rng(2).integers(0, routes, count, dtype=np.uint32)
    addresses = every * 256 + np.uint32(int(IPv4Address("20.0.0.10")))
    next_hops = np.zeros(count, dtype=np.uint32)
    pair.sender.lookup_ipv4(pair.tunnel, addresses, next_hops)
    assert (next_hops == 0).all()
    benchmark.group = "FIB lookup, random IPv4 addresses"
    benchmark.extra_info.update(case=f"{routes} routes", packets=count)
    benchmark(pair.sender.lookup_ipv4, pair.tunnel, addresses, next_hops)


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


def test_segment(benchmark: Any) -> None:
    """GSO split into copies, checksums completed. The encap itself splits without this copy."""
    arena, packets = superpacket(44, 1390)
    assert len(dsvpn_native.segment(arena, packets)[1]) == 44
    benchmark.group = "GSO split"
    benchmark.extra_info.update(case="TCP, 44 segments of 1390 B", packets=44, octets=1430)
    benchmark(dsvpn_native.segment, arena, packets)


@pytest.mark.parametrize("verify", [False, True])
def test_coalesce(benchmark: Any, verify: bool) -> None:
    original, packets = vector([tcp(IPv4Address("172.16.2.10"), 1390, 1 + 1390 * index) for index in range(44)])
    arena = original.copy()

    def run() -> Any:
        return dsvpn_native.coalesce(arena, packets, verify_checksums=verify)

    assert len(run().packets) == 1
    benchmark.group = "coalesce"
    case = "TCP, 44 segments of 1390 B" + (", checksums verified" if verify else "")
    benchmark.extra_info.update(case=case, packets=44, octets=1430)
    benchmark.pedantic(run, setup=lambda: np.copyto(arena, original), rounds=_ROUNDS, warmup_rounds=5)


@pytest.mark.parametrize("length", [64, 576, 1424, 65536])
def test_checksum(benchmark: Any, length: int) -> None:
    octets = np.arange(length, dtype=np.uint32).astype(np.uint8)
    benchmark.group = "Internet checksum"
    benchmark.extra_info.update(case=f"{length} B", packets=1, octets=length)
    benchmark(dsvpn_native.checksum, octets)
