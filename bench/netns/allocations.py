"""Heap allocations of the worker threads of a running data plane, per packet, once it is warm.

`allocations.c` is preloaded into both gateways and counts by thread, so that what is counted is the whole path of a
real process: reading and writing the TUN, tables, encapsulation and decapsulation, sockets.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench import null_native
from bench.environment import ROOT, python
from bench.netns.bed import LEFT_HOST, RIGHT_HOST, Bed
from bench.netns.traffic import Ends, iperf_tcp, udp_at
from bench.netns.updates import Remote
from bench.peers.dataplane import StaticDataplane
from dsvpn.errors import HostError
from dsvpn.lab.measure import iperf_server
from dsvpn.lab.run import Run, command
from dsvpn.lab.topology import Namespace

#: A record of `allocations.c`.
SLOT = np.dtype([("thread", "i8"), ("allocations", "u8"), ("octets", "u8")])
#: What the names of threads that carry packets begin with.
_WORKERS = "dsvpn-"
_UDP_RATE = 20_000.0


def build(directory: Path) -> Path:
    """Compile the counter into `directory`. HostError says why it could not be."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise HostError("cc is needed to count allocations and not installed: apt-get install build-essential")
    directory.mkdir(parents=True, exist_ok=True)
    library = directory / "allocations.so"
    source = Path(__file__).with_suffix(".c")
    command([compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(source)])
    return library


class Counted(StaticDataplane):
    """A static data plane under the eyes of the counter.

    It runs the benchmarks' own module, which takes the system's allocator: nothing can get between the installed one
    and the allocator that is built into it.
    """

    def __init__(self) -> None:
        super().__init__(suite="aes128gcm16")
        self.library = Path()

    def install(self) -> None:
        """Compile the counter besides."""
        null_native.build()
        self.library = build(ROOT / "build" / "bench")

    def _spawn(self, bed: Bed, namespace: Namespace, argv: Sequence[str], side: str) -> subprocess.Popen[bytes]:
        # Behind `env`, which the command begins with.
        settings = [f"LD_PRELOAD={self.library}", f"COUNT_ALLOCATIONS={self.counts(bed, side)}"]
        return super()._spawn(bed, namespace, [argv[0], *settings, *argv[1:]], side)

    def _python(self) -> list[str]:
        return python(null_native.DIRECTORY)

    @staticmethod
    def counts(bed: Bed, side: str) -> Path:
        """The file that one side counts in."""
        return bed.directory / f"{side}.allocations"


def read(file: Path, pid: int) -> dict[str, tuple[int, int]]:
    """Allocations and octets so far of each worker of a process. A worker that never allocated has zeros."""
    slots = np.fromfile(file, dtype=SLOT)
    if slots["thread"][-1] != 0:
        raise HostError(f"{file.name}: more threads than records")
    names = {int(task.name): (task / "comm").read_text().strip() for task in Path(f"/proc/{pid}/task").iterdir()}
    found = {name: (0, 0) for name in names.values() if name.startswith(_WORKERS)}
    if not found:
        raise HostError("the gateway has no worker threads")
    for slot in slots:
        if (name := names.get(int(slot["thread"]))) in found:
            found[str(name)] = (int(slot["allocations"]), int(slot["octets"]))
    return found


def measure(run: Run, *, seconds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Allocations by worker while traffic of every kind runs, and the packets that the gateways carried meanwhile."""
    peer = Counted()
    peer.install()
    bed = Bed(run, "allocations")
    bed.build()
    with ExitStack() as stack:
        stack.callback(peer.stop_if_started)
        peer.start(bed)
        bed.wait_for_answers(peer.left_address, peer.right_address)
        for end in (bed.right, bed.right_lan):
            stack.enter_context(iperf_server(run, end))
        sides = ("left", "right")
        remotes = [Remote(bed.directory / f"{side}.agent") for side in sides]
        for remote in remotes:
            stack.callback(remote.close)
        files = [Counted.counts(bed, side) for side in sides]
        ends = Ends(bed.left, peer.left_address, bed.right, peer.right_address)
        lans = Ends(bed.left_lan, LEFT_HOST, bed.right_lan, RIGHT_HOST)

        def traffic() -> None:
            iperf_tcp(ends, seconds)
            iperf_tcp(ends, seconds, streams=4, reverse=True)
            iperf_tcp(lans, seconds)
            udp_at(ends, size=64, rate=_UDP_RATE, seconds=1.0)
            time.sleep(0.2)

        def state() -> tuple[list[dict[str, tuple[int, int]]], int]:
            packets = 0
            for remote in remotes:
                counters = remote("counters")
                packets += counters["underlay_tx_packets"] + counters["underlay_rx_packets"]
            read_all = zip(files, peer.processes, strict=True)
            return [read(file, process.pid) for file, process in read_all], packets

        # What grows to its size, grows now.
        traffic()
        before, packets_before = state()
        traffic()
        after, packets_after = state()
    rows: list[dict[str, Any]] = []
    for index, side in enumerate(sides):
        for name in sorted(after[index]):
            (count, octets), (then, octets_then) = after[index][name], before[index][name]
            rows.append({"side": side, "thread": name, "allocations": count - then, "octets": octets - octets_then,
                         "while_warming": then})  # fmt: skip
    packets = packets_after - packets_before
    total = sum(row["allocations"] for row in rows)
    say(f"allocations of the workers: {total} in {packets} packets")
    return {"rows": rows, "packets": packets, "allocations": total, "allocations_per_packet": total / packets}
