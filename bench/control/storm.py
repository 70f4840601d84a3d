"""A registration storm: all spokes of a hub that has started anew come back, by IKE and NHRP.

The hub is a real `Gateway`, the spokes are a real `IkeEngine` with an address and an identity for each, and NHRP
packets. The network and the clock are simulated: a datagram takes `DELAY`, and the hub works on one at a time, for as
long as its code took on this machine's processor. So what is measured is the hub's own time, wherever the spokes run.
What the data plane does for an SA, and its cookie gate, which spares the hub most of a rush, are not in it.
"""

from __future__ import annotations

import gc
import heapq
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path as FilePath
from tempfile import TemporaryDirectory
from typing import Any

from bench.control.bed import RESPONDER, SUITES
from bench.control.nhrp import public_address, registration
from bench.control.responders import gateway_configuration
from bench.environment import ROOT
from dsvpn.addresses import Address, Endpoint, Path
from dsvpn.commands import AddInboundSa, RemoveInboundSa, SendNhrp
from dsvpn.config.load import load_config
from dsvpn.errors import HostError
from dsvpn.gateway import Gateway
from dsvpn.ike import events
from dsvpn.ike.engine import IkeEngine
from dsvpn.ike.identity import Identity
from dsvpn.ike.profile import IkeProfile
from dsvpn.lab.run import command
from dsvpn.policy import ike_profile

SPOKES = 10_000
#: Seconds within which all spokes call: one after the other, and in a rush.
SPREADS = (60.0, 1.0)
#: Seconds that a datagram takes.
DELAY = 0.02
#: IKE messages, and NHRP packets, that wait for the hub at most: more are lost. The data plane's bounds
#: (native/dataplane/src/punt.rs).
QUEUE = 2048
#: Seconds of the simulation after which a storm is given up, and after which a spoke registers again or calls again.
PATIENCE = 600.0
_AGAIN = 1.0
_SUITE = SUITES["PSK, X25519"]
_TUNNEL = "dsvpn0"


class Storm:
    """One hub, `spokes` spokes and the time of the simulation."""

    def __init__(self, directory: FilePath, spokes: int, spread: float) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._spis = count(0x1000)
        hub, spoke = _configurations(directory)
        self.hub = Gateway(
            hub,
            random=os.urandom,
            allocate_spi=lambda _: next(self._spis),
            release_spi=lambda _: None,
            route_lookup=lambda *_: None,
            wall_clock=time.time,
        )
        self._base = ike_profile("spoke", spoke.ipsec["default"], spoke.materials["default"])
        self._profiles = [self._profile(number) for number in range(spokes)]
        self._spokes = IkeEngine(
            self._profiles,
            random=os.urandom,
            allocate_spi=lambda _: next(self._spis),
            release_spi=lambda _: None,
        )
        self._called: dict[int, float] = {}
        self._calling: dict[int, int] = {}
        self._outbound: dict[int, int] = {}
        self._adjacencies: dict[int, tuple[int, ...]] = {}
        self._spoke_of: dict[int, int] = {}
        self._queue: deque[tuple[str, Callable[[float], None]]] = deque()
        self._waiting = {"IKE": 0, "NHRP": 0}
        self._free_at = 0.0
        self._armed: dict[str, float | None] = {"hub": None, "spokes": None}
        #: What came of it: when each spoke was registered, counted from its first call, and when in all.
        self.waits: dict[int, float] = {}
        self.last = 0.0
        self.longest_queue = 0
        self.lost = 0
        self.work: dict[str, list[float]] = {}
        self._serve("start", self.hub.start)
        self._serve("start", lambda now: self.hub.source_changed(_TUNNEL, RESPONDER, 1500, now))
        self.work.clear()
        for number in range(spokes):
            self._at(number * spread / spokes, partial(self._call, number))

    def _profile(self, number: int) -> IkeProfile:
        name = f"spoke{number}.example.net"
        return replace(self._base, name=name, local_identity=Identity.parse(name))

    # -- time ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until every spoke is registered. HostError when some are not in time."""
        spokes = len(self._profiles)
        while len(self.waits) < spokes:
            if not self._heap or self.now > PATIENCE:
                raise HostError(f"{len(self.waits)} of {spokes} spokes were registered after {self.now:.0f} s")
            self.now, _, work = heapq.heappop(self._heap)
            work()

    def _at(self, due: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (due, next(self._order), work))

    # -- spokes ----------------------------------------------------------------------------------------------

    def _call(self, number: int) -> None:
        self._called.setdefault(number, self.now)
        path = Path(Endpoint(public_address(number), 500), Endpoint(RESPONDER, 500))
        self._calling[self._spokes.initiate(self._profiles[number].name, path, self.now)] = number
        self._turn_spokes()

    def _turn_spokes(self) -> None:
        """Take what happened to the spokes, and send what they have to say."""
        for data, (local, remote) in self._spokes.datagrams_to_send(self.now):
            self._at(self.now + DELAY, partial(self._arrive, "IKE", self._ike(data, Path(remote, local))))
        while (event := self._spokes.next_event()) is not None:
            match event:
                case events.ChildSaEstablished():
                    number = self._calling[event.ike_sa]
                    self._outbound[number] = event.outbound_spi
                    self._register(number)
                case events.IkeSaFailed() | events.IkeSaDeleted():
                    number = self._calling.pop(event.ike_sa)
                    self._outbound.pop(number, None)
                    self._at(self.now + _AGAIN, partial(self._call, number))
        self._arm("spokes", self._spokes.get_timer(), self._spokes_timer)

    def _spokes_timer(self) -> None:
        self._spokes.handle_timer(self.now)
        self._turn_spokes()

    def _register(self, number: int) -> None:
        if number in self.waits or number not in self._outbound:
            return
        data = registration(number, number + 1)
        self._at(self.now + DELAY, partial(self._arrive, "NHRP", self._nhrp(number, self._outbound[number], data)))
        self._at(self.now + _AGAIN, partial(self._register, number))

    def _registered(self, number: int) -> None:
        if number not in self.waits:
            self.waits[number] = self.now - self._called[number]
            self.last = self.now

    # -- the hub ---------------------------------------------------------------------------------------------

    def _ike(self, data: bytes, path: Path) -> Callable[[float], None]:
        return lambda now: self.hub.receive_ike(data, path, now)

    def _nhrp(self, number: int, spi: int, data: bytes) -> Callable[[float], None]:
        def receive(now: float) -> None:
            remote: Address = public_address(number)
            # The data plane knows the adjacency by the SPI; without the SA there is nobody to give it to.
            for adjacency in self._adjacencies.get(spi, ()):
                self._spoke_of[adjacency] = number
                self.hub.receive_nhrp(_TUNNEL, adjacency, remote, data, now)

        return receive

    def _arrive(self, kind: str, work: Callable[[float], None]) -> None:
        if self._waiting[kind] >= QUEUE:
            self.lost += 1
            return
        self._waiting[kind] += 1
        self._queue.append((kind, work))
        self.longest_queue = max(self.longest_queue, len(self._queue))
        if len(self._queue) == 1:
            self._at(max(self.now, self._free_at), self._next)

    def _next(self) -> None:
        kind, work = self._queue[0]
        self._serve(kind, work)
        self._queue.popleft()
        self._waiting[kind] -= 1
        if self._queue:
            self._at(self._free_at, self._next)

    def _serve(self, kind: str, work: Callable[[float], None]) -> None:
        """The hub does one thing, and what it sends leaves when that is done."""
        hub, now = self.hub, max(self.now, self._free_at)
        began = time.thread_time()
        work(now)
        commands = hub.commands()
        datagrams = hub.datagrams_to_send(now)
        hub.keepalives_to_send(now)
        hub.cookie_gate(now)
        while hub.next_event() is not None:
            pass
        timer = hub.get_timer()
        spent = time.thread_time() - began
        self.work.setdefault(kind, []).append(spent)
        self._free_at = now + spent
        for one in commands:
            match one:
                case AddInboundSa():
                    self._adjacencies[one.spi] = one.adjacencies
                case RemoveInboundSa(spi):
                    self._adjacencies.pop(spi, None)
                case SendNhrp(adjacency):
                    self._at(self._free_at + DELAY, partial(self._registered, self._spoke_of[adjacency]))
        for data, (local, remote) in datagrams:
            self._at(self._free_at + DELAY, partial(self._answer, data, Path(remote, local)))
        self._arm("hub", timer, self._hub_timer)

    def _answer(self, data: bytes, path: Path) -> None:
        self._spokes.receive_datagram(data, path, self.now)
        self._turn_spokes()

    def _hub_timer(self) -> None:
        self._serve("timers", self.hub.handle_timer)

    def _arm(self, who: str, due: float | None, work: Callable[[], None]) -> None:
        """One timer for each, at the next millisecond as an event loop's; an outdated one does nothing."""
        if due is None or due == self._armed[who]:
            return
        self._armed[who] = due

        def fire() -> None:
            if self._armed[who] == due:
                self._armed[who] = None
                work()

        self._at(max(due, self.now, self._free_at if who == "hub" else 0.0) + 0.001, fire)


def _configurations(directory: FilePath) -> tuple[Any, Any]:
    """The hub's, and one that stands for all spokes."""
    psk = directory / "psk"
    psk.touch(mode=0o600)
    psk.write_text("a key for the bench only\n")
    found = []
    for name in ("hub", "spoke"):
        auth = f'psk = {{ file = "{psk}" }}\nlocal_identity = "{name}.example.net"'
        file = directory / f"{name}.toml"
        file.write_text(gateway_configuration(name, _SUITE, auth).replace("10.99.0.1/16", "10.0.0.1/16"))
        found.append(load_config(file))
    return found[0], found[1]


def simulate(spokes: int, spread: float) -> dict[str, Any]:
    """One storm. Times in seconds; "work" is processor time of the hub by what came in."""
    with TemporaryDirectory() as directory:
        storm = Storm(FilePath(directory), spokes, spread)
        # As the gateway does: what is there before the first peer is not looked at again, and less often.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000)
        storm.run()
    waits = sorted(storm.waits.values())
    return {
        "spokes": spokes,
        "spread_seconds": spread,
        "suite": _SUITE,
        "seconds": storm.last,
        "wait_p50_seconds": waits[len(waits) // 2],
        "wait_p99_seconds": waits[len(waits) * 99 // 100],
        "processor_seconds": sum(map(sum, storm.work.values())),
        "work": {kind: {"count": len(times), "seconds": sum(times)} for kind, times in storm.work.items()},
        "longest_queue": storm.longest_queue,
        "lost": storm.lost,
        "ike": storm.hub.ike.counters(),
    }


def measure(compiled: FilePath, say: Callable[[str], None], spokes: int = SPOKES) -> list[dict[str, Any]]:
    """A storm for each of `SPREADS`, in a process of its own with dsvpn/wire compiled."""
    found = []
    for spread in SPREADS:
        argv = ["env", f"PYTHONPATH={compiled}:{ROOT}", sys.executable, "-P", "-m", __name__, str(spokes), str(spread)]
        storm: dict[str, Any] = json.loads(command(argv, timeout=1800))
        say(f"{spokes} spokes come back within {spread:g} s: all are registered after {storm['seconds']:.1f} s")
        found.append(storm)
    return found


if __name__ == "__main__":
    print(json.dumps(simulate(int(sys.argv[1]), float(sys.argv[2]))))
