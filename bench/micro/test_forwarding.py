"""The whole encap and decap, memory to memory, on one core: FIB, adjacency, GRE, ESP and the packets' headers."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from bench.micro.forwarder import Pair
from bench.micro.vectors import SIZES, VECTORS, RawRing, case_name, lengths, superpacket, udp_vector

#: Each takes some microseconds: so many last about as long as what the benchmark fixture chooses for encap, a second.
_ROUNDS = 4000
_SUITES = ("aes128gcm16", "chacha20poly1305")


def _mean(size: str, count: int) -> float:
    return sum(lengths(size, count)) / count


@pytest.mark.parametrize("count", VECTORS)
@pytest.mark.parametrize("size", SIZES)
def test_encap(benchmark: Any, size: str, count: int) -> None:
    pair = Pair()
    arena, packets = udp_vector(size, count, pair.destinations(1, 1))
    output = pair.output(arena, packets)
    result = pair.encap(arena, packets, output)
    assert result.consumed == count
    assert int(result.messages[:, 7].sum()) == count
    benchmark.group = "encap"
    raw = RawRing("aes128gcm16", size, "seal")
    benchmark.extra_info.update(case=case_name(size), packets=count, octets=_mean(size, count))
    benchmark(pair.encap, arena, packets, output)
    benchmark.extra_info["raw_seconds"] = raw.seconds()


@pytest.mark.parametrize("size", SIZES)
def test_encap_plain_gre(benchmark: Any, size: str) -> None:
    """FIB, adjacency and GRE without ESP."""
    pair = Pair(None, far=False)
    arena, packets = udp_vector(size, 256, pair.destinations(1, 1))
    output = pair.output(arena, packets)
    assert int(pair.encap(arena, packets, output).messages[:, 7].sum()) == 256
    benchmark.group = "encap without ESP (plain GRE)"
    benchmark.extra_info.update(case=case_name(size), packets=256, octets=_mean(size, 256))
    benchmark(pair.encap, arena, packets, output)


@pytest.mark.parametrize("suite", _SUITES)
def test_encap_superpacket(benchmark: Any, suite: str) -> None:
    """One read of the TUN to one UDP GSO message: 44 segments."""
    pair = Pair(suite)
    arena, packets = superpacket(44, 1390)
    arena[16:20] = np.frombuffer(pair.destinations(1, 1)[0].packed, dtype=np.uint8)
    output = pair.output(arena, np.zeros((44, 5), dtype=np.uint32))
    assert pair.encap(arena, packets, output).messages[:, 7].tolist() == [44]
    benchmark.group = "encap of a TCP superpacket of 44 segments"
    benchmark.extra_info.update(case=suite, packets=44, octets=1430)
    benchmark(pair.encap, arena, packets, output)


def _decap(benchmark: Any, pair: Pair, size: str, count: int, *, flows: bool) -> None:
    arena, packets = udp_vector(size, count, pair.destinations(1, 1), flows=flows)
    output = pair.output(arena, packets)

    def sealed() -> tuple[tuple[Any, Any], dict[str, Any]]:
        # Every round takes datagrams of its own: the replay window would refuse the old ones.
        return (output, pair.datagrams(pair.encap(arena, packets, output))), {}

    (first, datagrams), _ = sealed()
    assert int(pair.decap(first, datagrams).packets[:, 6].sum()) == count
    benchmark.pedantic(pair.decap, setup=sealed, rounds=_ROUNDS, warmup_rounds=5)


@pytest.mark.parametrize("count", VECTORS)
@pytest.mark.parametrize("size", SIZES)
def test_decap(benchmark: Any, size: str, count: int) -> None:
    """Every packet of another flow: none can be merged."""
    benchmark.group = "decap"
    raw = RawRing("aes128gcm16", size, "open")
    benchmark.extra_info.update(case=case_name(size), packets=count, octets=_mean(size, count))
    _decap(benchmark, Pair(), size, count, flows=True)
    benchmark.extra_info["raw_seconds"] = raw.seconds()


def test_decap_one_flow(benchmark: Any) -> None:
    """All packets merge."""
    benchmark.group = "decap of one flow, merged"
    raw = RawRing("aes128gcm16", "1424", "open")
    benchmark.extra_info.update(case="1424 B", packets=44, octets=1424)
    _decap(benchmark, Pair(), "1424", 44, flows=False)
    benchmark.extra_info["raw_seconds"] = raw.seconds()


def test_updates_while_forwarding(benchmark: Any) -> None:
    """Next hops that move, each with a commit, while another thread forwards.

    That thread needs the interpreter's lock between vectors, which a native worker does not: its rate is a lower bound.
    """
    benchmark.group = "updates while another core forwards 1424 B packets"
    pair = Pair(routes=1000, peers=1000, far=False)
    arena, packets = udp_vector("1424", 64, pair.destinations(64, 1000))
    output = pair.output(arena, packets)
    stop = threading.Event()
    forwarded = lost = 0

    def forward() -> None:
        nonlocal forwarded, lost
        while not stop.is_set():
            given = int(pair.encap(arena, packets, output).messages[:, 7].sum())
            forwarded += given
            lost += len(packets) - given

    def rate(seconds: float) -> float:
        before, begun = forwarded, time.perf_counter()
        time.sleep(seconds)
        return (forwarded - before) / (time.perf_counter() - begun)

    shift = 0

    def updates() -> None:
        nonlocal shift
        # Every call moves every hop: an update that changes nothing would cost nothing.
        shift = (shift + 100) % 1000
        for hop in range(100):
            pair.sender.set_next_hop(hop, (hop + shift) % 1000, False)
            pair.sender.commit()

    thread = threading.Thread(target=forward)
    thread.start()
    try:
        alone = rate(0.3)
        before, begun = forwarded, time.perf_counter()
        benchmark.pedantic(updates, rounds=100)
        during = (forwarded - before) / (time.perf_counter() - begun)
    finally:
        stop.set()
        thread.join()
    assert lost == 0
    assert during > 0
    note = f"forwarding at {during / alone:.0%} of its rate without updates, no packet lost"
    benchmark.extra_info.update(case="next hop and commit", packets=100, note=note)
