"""Table updates and rekeys while a data plane forwards at full rate: what they cost, and whether a packet suffers.

Two data planes with static keys in a bed, native workers, AES-128-GCM, ESP in UDP. In turn, round after round, the
first dropped: the same traffic in peace, with updates at the left gateway, and with a rekey of both directions again
and again.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.netns.bed import Bed
from bench.netns.traffic import Ends, iperf_tcp, udp_at, udp_search
from bench.peers.dataplane import StaticDataplane
from dsvpn.errors import HostError
from dsvpn.ike.child_sa import LINGER
from dsvpn.lab.measure import iperf_server
from dsvpn.lab.run import Run, wait_until
from dsvpn.lab.topology import Namespace

#: What is done while traffic runs; the first is what the others are against.
KINDS = ("in peace", "updates", "updates by hundreds", "rekeys")
UPDATES_PER_SECOND = 10_000
#: Updates of one commit, by kind: what a gateway gathers in one turn of its event loop. A thousand turns a second wake
#: the control plane a thousand times; a hundred turns have the same updates without that.
BATCHES = {"updates": 10, "updates by hundreds": 100}
PEERS = 1000
REKEYS = 100
#: Share of the best rate without loss that the numbered stream is sent at.
_UDP_SHARE = 0.7
_UDP_SIZE = 64
#: What a kernel sends into a new device by itself, and no packet of the traffic meets.
_CHATTER = ("drop_no_multicast",)
#: How long packets may be in queues after the last one was sent, seconds.
_SETTLE = 0.3


class Remote:
    """The agent of one gateway."""

    def __init__(self, path: Path) -> None:
        wait_until(path.exists, 20, f"the agent's socket {path.name}")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rw")

    def __call__(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Do it and give the answer. HostError says what went wrong."""
        self._lines.write(json.dumps({"do": do, **arguments}) + "\n")
        self._lines.flush()
        answer: dict[str, Any] = json.loads(self._lines.readline() or '{"error": "the gateway has ended"}')
        if "error" in answer:
            raise HostError(f"{do}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Leave."""
        self._lines.close()
        self._socket.close()


@dataclass
class Updates:
    """Result: figure -> kind -> one value for each round that counts; sums over all rounds of what must be 0."""

    samples: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    totals: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, kind: str, figures: dict[str, float], totals: dict[str, float]) -> None:
        """Keep what one turn found."""
        for name, value in figures.items():
            self.samples.setdefault(name, {}).setdefault(kind, []).append(value)
        for name, value in totals.items():
            by_kind = self.totals.setdefault(name, {})
            by_kind[kind] = by_kind.get(kind, 0) + value


@dataclass
class Keys:
    """The SAs of a run, left and right. Replaced inbound SAs go as a gateway lets them go: late packets still open."""

    spis: tuple[int, ...]
    generation: int = 0
    replaced: deque[tuple[float, tuple[int, ...]]] = field(default_factory=deque)


class Disturbance(threading.Thread):
    """Does updates or rekeys for `seconds` in a thread of its own; `figures` when it has ended."""

    def __init__(self, kind: str, remotes: list[Remote], seconds: float, keys: Keys) -> None:
        super().__init__()
        self._kind, self._remotes, self._keys = kind, remotes, keys
        self._seconds = seconds
        self.figures: dict[str, float] = {}
        self.error: Exception | None = None

    def run(self) -> None:
        """The thread."""
        try:
            if batch := BATCHES.get(self._kind):
                done = self._remotes[0](
                    "churn", rate=UPDATES_PER_SECOND, seconds=self._seconds, batch=batch, peers=PEERS
                )
                self.figures["update_cores"] = done["processor_seconds"] / done["seconds"]
                self.figures["updates_per_second"] = done["updates"] / done["seconds"]
                self.figures["commits_per_second"] = done["commits"] / done["seconds"]
            elif self._kind == "rekeys":
                self._rekeys()
        except (HostError, OSError, ValueError) as error:
            self.error = error

    def _rekeys(self) -> None:
        begun = time.perf_counter()
        for number in range(REKEYS):
            due = begun + self._seconds * number / REKEYS
            time.sleep(max(0.0, due - time.perf_counter()))
            self._rekey()
        took = time.perf_counter() - begun
        self.figures["rekeys_per_second"] = REKEYS / took

    def _rekey(self) -> None:
        keys, (left, right) = self._keys, self._remotes
        keys.generation += 1
        spis = tuple(remote("accept", generation=keys.generation)["spi"] for remote in self._remotes)
        left("send", spi=spis[1], generation=keys.generation)
        right("send", spi=spis[0], generation=keys.generation)
        keys.replaced.append((time.monotonic() + LINGER, keys.spis))
        keys.spis = spis
        while keys.replaced and keys.replaced[0][0] <= time.monotonic():
            for remote, spi in zip(self._remotes, keys.replaced.popleft()[1], strict=True):
                remote("retire", spi=spi)


def measure(run: Run, *, rounds: int, seconds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """All of it. The caller owns `run` and takes it down. HostError or TimeoutError says what did not work."""
    peer = StaticDataplane(suite="aes128gcm16")
    peer.install()
    bed = Bed(run, "updates")
    bed.build()
    found = Updates()
    with ExitStack() as stack:
        stack.callback(peer.stop_if_started)
        peer.start(bed)
        bed.wait_for_answers(peer.left_address, peer.right_address)
        stack.enter_context(iperf_server(run, bed.right))
        sides = [Remote(bed.directory / f"{side}.agent") for side in ("left", "right")]
        for remote in sides:
            stack.callback(remote.close)
        ends = Ends(bed.left, peer.left_address, bed.right, peer.right_address)
        best = udp_search(ends, size=_UDP_SIZE, seconds=0.3)
        if best is None:
            raise HostError("not even the lowest UDP rate came through without loss")
        rate = best["received"] / best["seconds"] * _UDP_SHARE
        keys = Keys(tuple(int((bed.directory / f"{side}.spi").read_text()) for side in ("left", "right")))
        for number in range(rounds):
            for kind in KINDS:
                figures, totals = _turn(kind, ends, sides, seconds, rate, keys)
                if number > 0:
                    found.add(kind, figures, totals)
                mark = "" if number > 0 else " (dropped)"
                say(
                    f"round {number}{mark} {kind}: TCP {figures['tcp_bits_per_second'] / 1e9:.2f} Gb/s, back "
                    f"{figures['tcp_reverse_bits_per_second'] / 1e9:.2f} Gb/s, UDP lost {totals['udp_lost']:.0f} of "
                    f"{totals['udp_sent']:.0f}, reordered {totals['udp_reordered']:.0f}"
                )
    return {
        "contestant": {"title": peer.title, "version": peer.version(), "cipher": peer.cipher},
        "parameters": {
            "updates_per_second": UPDATES_PER_SECOND,
            "updates_per_commit": list(BATCHES.values()),
            "peers": PEERS,
            "rekeys": REKEYS,
            "udp_rate": rate,
            "udp_size": _UDP_SIZE,
            "tcp_seconds": seconds,
        },
        "samples": found.samples,
        "totals": found.totals,
    }


def _turn(
    kind: str, ends: Ends, sides: list[Remote], seconds: int, rate: float, keys: Keys
) -> tuple[dict[str, float], dict[str, float]]:
    """TCP there, TCP back, numbered UDP, each with the disturbance from its beginning to its end."""
    figures: dict[str, float] = {}
    totals: dict[str, float] = {}

    def disturbed(work: Callable[[], None], duration: float) -> None:
        thread = Disturbance(kind, sides, duration, keys)
        thread.start()
        try:
            work()
        finally:
            thread.join()
        if thread.error is not None:
            raise HostError(f"{kind}: {thread.error}")
        figures.update(thread.figures)

    before, queued = (
        [remote("counters") for remote in sides],
        [_out_of_order(end) for end in (ends.source, ends.target)],
    )

    def tcp(name: str, *, reverse: bool) -> None:
        figures[f"{name}_bits_per_second"], again = iperf_tcp(ends, seconds, reverse=reverse)
        totals["tcp_retransmits"] = totals.get("tcp_retransmits", 0.0) + again

    disturbed(lambda: tcp("tcp", reverse=False), seconds)
    disturbed(lambda: tcp("tcp_reverse", reverse=True), seconds)
    time.sleep(_SETTLE)
    after = [remote("counters") for remote in sides]
    totals["tcp_out_of_order"] = float(
        sum(_out_of_order(end) - was for end, was in zip((ends.source, ends.target), queued, strict=True))
    )
    totals |= _lost(before, after, "tcp")

    def numbered() -> None:
        trial = udp_at(ends, size=_UDP_SIZE, rate=rate, seconds=float(seconds))
        figures["udp_packets_per_second"] = trial["received"] / trial["seconds"]
        totals["udp_sent"] = float(trial["sent"])
        totals["udp_lost"] = float(trial["sent"] - trial["received"])
        totals["udp_reordered"] = float(trial["reordered"])

    disturbed(numbered, seconds)
    totals |= _lost(after, [remote("counters") for remote in sides], "udp")
    return figures, totals


def _lost(before: list[dict[str, int]], after: list[dict[str, int]], name: str) -> dict[str, float]:
    """Packets between the gateways that did not arrive, and those that a gateway dropped by a named reason."""

    def grown(side: int, counter: str) -> int:
        return after[side].get(counter, 0) - before[side].get(counter, 0)

    missing = sum(grown(here, "underlay_tx_packets") - grown(1 - here, "underlay_rx_packets") for here in (0, 1))
    found = {f"{name}_underlay_lost": float(missing)}
    for side in (0, 1):
        for counter in after[side]:
            if counter.startswith("drop_") and counter not in _CHATTER and (count := grown(side, counter)):
                found[f"{name}_{counter}"] = found.get(f"{name}_{counter}", 0.0) + count
    found[f"{name}_dropped"] = sum(value for key, value in found.items() if key.startswith(f"{name}_drop_"))
    return found


def _out_of_order(end: Namespace) -> int:
    """TCP segments that this namespace has ever received behind a gap."""
    heads, values = [
        line.split() for line in end.command(["cat", "/proc/net/netstat"]).splitlines() if line.startswith("TcpExt:")
    ]
    return int(values[heads.index("TCPOFOQueue")])
