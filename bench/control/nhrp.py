"""What a hub's NHRP costs for one spoke, by the number of spokes: time on one processor, and memory."""

from __future__ import annotations

import gc
import json
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import dsvpn.wire.nhrp
from bench.environment import ROOT
from dsvpn.addresses import Address
from dsvpn.errors import HostError
from dsvpn.lab.run import command
from dsvpn.nhrp import Claim, NhrpConfig, NhrpEngine, Route
from dsvpn.wire.nhrp import NhrpMessage, PacketType, decode, encode
from dsvpn.wire.nhrp_cie import AddressFamily, Cie, ProtocolType
from dsvpn.wire.nhrp_extensions import CieExtension, Extension

#: Numbers of spokes; the cost of the last is compared with that of the first.
SPOKES = (100, 1000, 10_000)
#: Packets that are timed for each figure.
PACKETS = 4000
_HOLDING_TIME = 7200
_TUNNEL = int(IPv4Address("10.0.0.0"))
_PUBLIC = int(IPv4Address("100.64.0.0"))
_LANS = int(IPv4Address("172.16.0.0"))
_HUB = IPv4Address(_TUNNEL + 1)


class Hub:
    """A hub with spokes 0, 1, …, each with a peer of its number, two addresses and a /28 behind it."""

    def __init__(self, spokes: int) -> None:
        self.spokes = spokes
        self.now = 1000.0
        rng = random.Random(1)
        config = NhrpConfig((IPv4Interface("10.0.0.1/16"),), IPv4Address("192.0.2.1"), redirect=True)
        self.engine = NhrpEngine(config, rng.randbytes, self._lookup)

    def _lookup(self, destination: Address) -> Route | None:
        # A table of the kernel's is looked up elsewhere, at a cost that is not NHRP's.
        value = int(destination)
        if _TUNNEL <= value < _TUNNEL + 65536:
            return Route(_TUNNEL_NETWORK, True)
        base = value & ~15
        return Route(IPv4Network((base, 28)), True, tunnel_address((base - _LANS) // 16))

    def connect(self) -> None:
        """The IPsec peers of all spokes come up."""
        for spoke in range(self.spokes):
            self.engine.peer_up(public_address(spoke), spoke, self.now, Claim(f"spoke{spoke}.example.net"))

    def drain(self) -> None:
        """What the owner does after each input."""
        while self.engine.next_event() is not None:
            pass
        self.engine.packets_to_send(self.now)
        self.engine.get_timer()

    def receive(self, spoke: int, data: bytes) -> float:
        """Seconds that one packet takes; 0.05 s of the engine's time pass."""
        self.now += 0.05
        nbma = public_address(spoke)
        # Of this thread: what else the machine does is no cost of NHRP.
        start = time.thread_time()
        self.engine.receive_packet(data, spoke, nbma, self.now)
        self.drain()
        return time.thread_time() - start


_TUNNEL_NETWORK = IPv4Network("10.0.0.0/16")


def tunnel_address(spoke: int) -> IPv4Address:
    """The tunnel address of a spoke."""
    return IPv4Address(_TUNNEL + 16 + spoke)


def public_address(spoke: int) -> IPv4Address:
    """The public address of a spoke."""
    return IPv4Address(_PUBLIC + spoke)


def _request(kind: PacketType, spoke: int, destination: Address, flags: int, request_id: int) -> bytes:
    extensions: list[Extension] = [CieExtension(4), CieExtension(5), CieExtension(3), CieExtension(9, False)]
    hops = 1 if kind == PacketType.REGISTRATION_REQUEST else 64
    return encode(
        NhrpMessage(
            kind,
            AddressFamily.IPV4,
            ProtocolType.IPV4,
            hops,
            flags,
            request_id,
            public_address(spoke),
            tunnel_address(spoke),
            destination,
            [Cie(prefix_length=32, holding_time=_HOLDING_TIME)],
            extensions,
        )
    )


def registration(spoke: int, request_id: int) -> bytes:
    """A Registration Request."""
    return _request(PacketType.REGISTRATION_REQUEST, spoke, _HUB, 0x0002, request_id)


def resolution(spoke: int, target: int, request_id: int) -> bytes:
    """A Resolution Request for an address behind another spoke."""
    return _request(PacketType.RESOLUTION_REQUEST, spoke, IPv4Address(_LANS + 16 * target + 5), 0xC802, request_id)


def reply(request: bytes, target: int) -> bytes:
    """The answer of that other spoke."""
    message = decode(request)
    assert isinstance(message, NhrpMessage)
    message.type = PacketType.RESOLUTION_REPLY
    message.cies = [
        Cie(
            prefix_length=28,
            holding_time=_HOLDING_TIME,
            nbma=public_address(target),
            protocol=tunnel_address(target),
        )
    ]
    return encode(message)


def registered(spokes: int) -> Hub:
    """A hub with all its spokes registered."""
    hub = Hub(spokes)
    hub.connect()
    for spoke in range(spokes):
        hub.receive(spoke, registration(spoke, spoke + 1))
    return hub


def measure_registrations(hub: Hub, packets: int) -> list[float]:
    """Seconds of each of many refreshes, of spokes in no order."""
    rng = random.Random(2)
    data = [(spoke, registration(spoke, rng.getrandbits(32))) for spoke in rng.choices(range(hub.spokes), k=packets)]
    return [hub.receive(spoke, packet) for spoke, packet in data]


def measure_resolutions(hub: Hub, packets: int) -> list[float]:
    """Seconds of each of many resolutions: the request is passed on, and so is its answer."""
    rng = random.Random(3)
    found = []
    for number in range(packets):
        one, other = rng.sample(range(hub.spokes), 2)
        request = resolution(one, other, number)
        answer = reply(request, other)
        found.append(hub.receive(one, request) + hub.receive(other, answer))
    counters = hub.engine.snapshot(hub.now).counters
    if counters.get("forwarded", 0) < 2 * packets:
        raise AssertionError(f"the hub has not passed on everything: {counters}")
    return found


def memory_per_spoke(spokes: int) -> float:
    """Octets of the heap that a registered spoke takes, its peer in the NHRP engine included."""
    hub = Hub(spokes)
    packets = [registration(spoke, spoke + 1) for spoke in range(spokes)]
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    hub.connect()
    for spoke, packet in enumerate(packets):
        hub.receive(spoke, packet)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / spokes


def measure(compiled: Path, rounds: int = 3, packets: int = PACKETS) -> dict[str, Any]:
    """What `figures` finds in a process of its own, with dsvpn/wire compiled as it is when installed."""
    argv = ["env", f"PYTHONPATH={compiled}:{ROOT}", sys.executable, "-P", "-m", __name__, str(rounds), str(packets)]
    found: dict[str, Any] = json.loads(command(argv, timeout=900))
    if not found["compiled"]:
        raise HostError(f"dsvpn/wire is not compiled in {compiled}")
    return found


def figures(rounds: int = 3, packets: int = PACKETS, sizes: tuple[int, ...] = SPOKES) -> dict[str, Any]:
    """Rows of "case", "spokes", "per_second" (of one processor), "p50" and "p99" in seconds, and "growth" and
    "memory_per_spoke". What disturbs can only add: the best of the rounds counts, and sizes take turns."""
    cases: dict[str, Callable[[Hub, int], list[float]]] = {
        "registration": measure_registrations,
        "resolution": measure_resolutions,
    }
    hubs = {size: registered(size) for size in sizes}
    # A collection of the garbage collector walks the table of spokes: it belongs to the process, not to a packet.
    gc.collect()
    gc.freeze()
    best: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for case, work in cases.items():
            for size, hub in hubs.items():
                times = sorted(work(hub, packets))
                found = [statistics.fmean(times), times[len(times) // 2], times[len(times) * 99 // 100]]
                known = best.get((case, size))
                best[case, size] = found if known is None else [min(pair) for pair in zip(known, found, strict=True)]
    gc.unfreeze()
    rows = [
        {"case": case, "spokes": size, "per_second": 1 / mean, "p50": p50, "p99": p99}
        for (case, size), (mean, p50, p99) in best.items()
    ]
    growth = {case: best[case, sizes[-1]][0] / best[case, sizes[0]][0] for case in cases}
    return {
        "compiled": not str(dsvpn.wire.nhrp.__file__).endswith(".py"),
        "rows": rows,
        "growth": growth,
        "sizes": list(sizes),
        "memory_per_spoke": memory_per_spoke(sizes[-1]),
    }


if __name__ == "__main__":
    print(json.dumps(figures(int(sys.argv[1]), int(sys.argv[2]))))
