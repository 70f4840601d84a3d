"""The whole encap and decap with a million routes and 100,000 peers, against ten of each in the same run.

Each vector of 256 packets goes to destinations (or comes from inbound SAs) at random over all, other ones every time,
in the same arena: what differs between the two sides is the tables alone. Small and large take turns, vector by vector.

Two kinds of traffic. At random: every packet has a destination of its own, the worst that can be asked for. Trains: 16
or 64 packets in a row have one destination, and each train another one at random, as in the vectors of a busy gateway:
TCP and the receive offload of network cards give runs of one flow.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache
from ipaddress import IPv4Address
from typing import Any

import numpy as np
import pytest

import dsvpn_native
from bench.micro.forwarder import FIRST_PREFIX, MTU, Pair, keymat
from bench.micro.vectors import Octets, Rows, case_name, lengths, udp_vector

COUNT = 256
SMALL = (10, 10)
#: Routes and peers.
LARGE = [
    (1000, 1000),
    pytest.param((100_000, 10_000), marks=pytest.mark.slow),
    pytest.param((1_000_000, 100_000), marks=pytest.mark.slow),
]
_SIZES = ("64", "IMIX", "1424")
#: Packets in a row that have one destination.
TRAINS = (1, 16, 64)
_ROUNDS = 1000
_SUITE = "aes128gcm16"
_HERE, _THERE = "192.0.2.1", "192.0.2.2"
_PORT = 4500


def _aim(arena: Octets, packets: Rows, train: int, random: np.random.Generator, routes: int) -> None:
    """Write destinations behind routes at random. UDP checksums are nothing that a forwarder looks at."""
    starts = random.integers(0, routes, -(-len(packets) // train), dtype=np.uint32) * np.uint32(256)
    every = np.repeat(starts, train)[: len(packets)]
    addresses = (every + np.uint32(FIRST_PREFIX + 10)).astype(">u4").view(np.uint8).reshape(-1, 4)
    arena[packets[:, 0].astype(np.int64)[:, None] + 16 + np.arange(4)] = addresses


class Encapsulation:
    """A forwarder whose packets go to routes at random."""

    def __init__(self, routes: int, peers: int) -> None:
        self._pair = Pair(_SUITE, routes=routes, peers=peers, far=False)
        self._routes = routes
        self._random = np.random.default_rng(routes)

    def aim(self, arena: Octets, packets: Rows, train: int) -> None:
        """Give every train of packets another destination."""
        _aim(arena, packets, train, self._random, self._routes)

    def run(self, arena: Octets, packets: Rows, output: Octets) -> None:
        """One vector, all of it."""
        assert self._pair.encap(arena, packets, output).consumed == len(packets)

    def sent(self) -> int:
        """Packets that left."""
        return self._pair.sender.counters()["underlay_tx_packets"]


class Decapsulation:
    """A receiver with an inbound SA for each peer, and who seals for it."""

    def __init__(self, peers: int) -> None:
        self._peers = peers
        self._random = np.random.default_rng(peers)
        self._sender, self._receiver = dsvpn_native.MemoryForwarder(), dsvpn_native.MemoryForwarder()
        self._there, here = self._sender.add_tunnel(), self._receiver.add_tunnel()
        for peer in range(peers):
            # All behind one address: a receiver looks peers up by their SPI.
            self._sender.set_adjacency(peer, self._there, "udp", _HERE, _THERE, _PORT, MTU)
            self._receiver.set_adjacency(peer, here, "udp", _THERE, _HERE, _PORT, MTU)
            spi = self._receiver.allocate_spi()
            self._receiver.add_inbound_sa(spi, _SUITE, keymat(_SUITE, peer), [peer], False, 1024)
            self._sender.set_outbound_sa(spi, _SUITE, keymat(_SUITE, peer), [peer], False)
            self._sender.set_next_hop(peer, peer, False)
            self._sender.set_route(self._there, f"{IPv4Address(FIRST_PREFIX + peer * 256)}/24", peer)
        self._sender.commit()
        self._receiver.commit()
        self._endpoint = self._receiver.add_endpoints(_THERE, _PORT, _HERE, _PORT)
        self._now = 0

    def seal(self, arena: Octets, packets: Rows, output: Octets, train: int) -> Rows:
        """Datagrams in trains of peers at random, in `output`, as a socket would give them."""
        _aim(arena, packets, train, self._random, self._peers)
        self._now += 1000
        messages = self._sender.encap(self._there, arena, packets, output, self._now).messages
        rows = np.zeros((len(messages), 5), dtype=np.uint32)
        rows[:, 0], rows[:, 1], rows[:, 4] = messages[:, 4], messages[:, 5], self._endpoint
        rows[:, 2] = np.where(messages[:, 7] > 1, messages[:, 6], 0)
        return rows

    def run(self, output: Octets, datagrams: Rows) -> None:
        """One vector."""
        self._now += 1000
        self._receiver.decap(output, datagrams, self._now)

    def delivered(self) -> int:
        """Packets that came out."""
        counters = self._receiver.counters()
        assert not {name: count for name, count in counters.items() if name.startswith("drop_") and count}
        return counters["underlay_rx_packets"]


@pytest.fixture(scope="module")
def encapsulations() -> Callable[[tuple[int, int]], Encapsulation]:
    """By routes and peers, each made once."""
    return cache(lambda scale: Encapsulation(*scale))


@pytest.fixture(scope="module")
def decapsulations() -> Callable[[int], Decapsulation]:
    """By peers, each made once."""
    return cache(Decapsulation)


class Turns:
    """Times of the small side, taken between the vectors of the large one."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def median(self) -> float:
        """Seconds of one."""
        return statistics.median(self.seconds)

    def time(self, work: Callable[[], None]) -> None:
        """One vector of the small side."""
        begun = time.perf_counter()
        work()
        self.seconds.append(time.perf_counter() - begun)


def _describe(benchmark: Any, group: str, size: str, scale: tuple[int, int], train: int) -> None:
    # The worst case has the plain name, by which its target is found.
    kind = "" if train == 1 else f", trains of {train}"
    benchmark.group = f"{group} by table size, {case_name(size)}{kind}"
    octets = sum(lengths(size, COUNT)) / COUNT
    against = f"{SMALL[0]} routes, {SMALL[1]} peers"
    case = f"{scale[0]} routes, {scale[1]} peers"
    benchmark.extra_info.update(case=case, packets=COUNT, octets=octets, against=against)


@pytest.mark.parametrize("scale", LARGE)
@pytest.mark.parametrize("train", TRAINS)
@pytest.mark.parametrize("size", _SIZES)
def test_encap(benchmark: Any, encapsulations: Any, size: str, train: int, scale: tuple[int, int]) -> None:
    _describe(benchmark, "encap", size, scale, train)
    small, large = encapsulations(SMALL), encapsulations(scale)
    arena, packets = udp_vector(size, COUNT, [IPv4Address(FIRST_PREFIX + 10)])
    output, turns = Pair.output(arena, packets), Turns()
    before = large.sent()

    def turn() -> None:
        small.aim(arena, packets, train)
        turns.time(lambda: small.run(arena, packets, output))
        large.aim(arena, packets, train)

    benchmark.pedantic(large.run, (arena, packets, output), setup=turn, rounds=_ROUNDS, warmup_rounds=20)
    assert large.sent() - before == (_ROUNDS + 20) * COUNT
    benchmark.extra_info["against_seconds"] = turns.median()


@pytest.mark.parametrize("scale", LARGE)
@pytest.mark.parametrize("train", TRAINS)
@pytest.mark.parametrize("size", _SIZES)
def test_decap(benchmark: Any, decapsulations: Any, size: str, train: int, scale: tuple[int, int]) -> None:
    _describe(benchmark, "decap", size, scale, train)
    small, large = decapsulations(SMALL[1]), decapsulations(scale[1])
    arena, packets = udp_vector(size, COUNT, [IPv4Address(FIRST_PREFIX + 10)])
    output, turns = Pair.output(arena, packets), Turns()
    before = large.delivered()

    def turn() -> tuple[tuple[Octets, Rows], dict[str, Any]]:
        datagrams = small.seal(arena, packets, output, train)
        turns.time(lambda: small.run(output, datagrams))
        return (output, large.seal(arena, packets, output, train)), {}

    benchmark.pedantic(large.run, setup=turn, rounds=_ROUNDS, warmup_rounds=20)
    assert large.delivered() - before == (_ROUNDS + 20) * COUNT
    benchmark.extra_info["against_seconds"] = turns.median()
