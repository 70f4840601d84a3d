"""What is sent through a contestant, and what it costs its gateways."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import numpy as np

from bench.environment import CpuTimes, python
from bench.peers.base import Peer
from dsvpn.errors import HostError
from dsvpn.lab.measure import Pings, ping
from dsvpn.lab.run import command
from dsvpn.lab.topology import Namespace

_TICKS = os.sysconf("SC_CLK_TCK")

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a stream begins and ends."""

    source: Namespace
    source_address: IPv4Address
    target: Namespace
    target_address: IPv4Address


def process_seconds(peer: Peer) -> float:
    """User and system time of a contestant's gateway processes since their start, all threads, seconds."""
    spent = 0
    for process in peer.processes:
        try:
            text = Path(f"/proc/{process.pid}/stat").read_text()
        except OSError:
            raise HostError(f"a gateway of {peer.name} has ended; see its log") from None
        fields = text[text.rindex(")") + 2 :].split()
        spent += int(fields[11]) + int(fields[12])
    return spent / _TICKS


def iperf_tcp(
    ends: Ends, seconds: int, *, streams: int = 1, reverse: bool = False, both: bool = False
) -> tuple[float, int]:
    """Bits per second that arrived (of both directions together if `both`) and retransmissions.

    HostError says what iperf3 complains about.
    """
    argv = ["iperf3", "-c", str(ends.target_address), "-B", str(ends.source_address), "-t", str(seconds), "-J"]
    argv += ["-P", str(streams)] + ["-R"] * reverse + ["--bidir"] * both
    # iperf3 tells of errors in its JSON, which its status would hide.
    text = ends.source.command(["sh", "-c", '"$@" || true', "sh", *argv], timeout=seconds + 60)
    result = json.loads(text)
    if error := result.get("error"):
        raise HostError(f"iperf3 from {ends.source.name} to {ends.target_address}: {error}")
    end = result["end"]
    rate, again = end["sum_received"]["bits_per_second"], end["sum_sent"].get("retransmits", 0)
    if both:
        rate += end["sum_received_bidir_reverse"]["bits_per_second"]
        again += end["sum_sent_bidir_reverse"].get("retransmits", 0)
    return float(rate), int(again)


def tcp(peer: Peer, ends: Ends, seconds: int, name: str, **options: Any) -> Figures:
    """Goodput with what it cost: cores per Gb/s of the gateway processes and of the whole machine."""
    machine, gateways = CpuTimes.read(), process_seconds(peer)
    rate, again = iperf_tcp(ends, seconds, **options)
    spent, all_cores = process_seconds(peer) - gateways, CpuTimes.read().since(machine)
    gigabits = rate * seconds / 1e9
    figures = {f"{name}_bits_per_second": rate, f"{name}_retransmits": float(again)}
    if gigabits > 0:
        figures[f"{name}_machine_cores_per_gbps"] = all_cores.busy / gigabits
        if peer.processes:
            figures[f"{name}_cores_per_gbps"] = spent / gigabits
    total = all_cores.busy + all_cores.idle + all_cores.stolen
    figures[f"{name}_stolen_share"] = all_cores.stolen / total if total else 0.0
    return figures


def loaded(peer: Peer, ends: Ends, seconds: int) -> Figures:
    """Four TCP streams, and pings among them."""
    interval = 0.005
    with ThreadPoolExecutor(1) as pool:
        # Half a second less, begun with the streams: the last pings still meet the load.
        count = int((seconds - 0.5) / interval)
        pings = pool.submit(ping, ends.source, ends.target_address, count, interval=interval, bind=ends.source_address)
        figures = tcp(peer, ends, seconds, "tcp_4", streams=4)
        return figures | round_trips(pings.result(), "rtt_loaded")


def idle(ends: Ends, count: int) -> Figures:
    """Pings and nothing else."""
    found = ping(ends.source, ends.target_address, count, interval=0.002, bind=ends.source_address)
    return round_trips(found, "rtt_idle")


def round_trips(pings: Pings, name: str) -> Figures:
    """p50 and p99 in seconds, and the share of pings that was lost."""
    figures = {f"{name}_lost_share": pings.lost / pings.transmitted if pings.transmitted else 1.0}
    if pings.echoes:
        times = np.array([echo.rtt for echo in pings.echoes])
        for share in (50, 99):
            figures[f"{name}_p{share}_seconds"] = float(np.percentile(times, share))
    return figures


def udp(ends: Ends, name: str, *, size: int, segments: int = 0, allowed: float = 0.0, seconds: float) -> Figures:
    """The highest rate whose loss is at most `allowed`. No figure where even the lowest rate lost."""
    best = udp_search(ends, size=size, segments=segments, allowed=allowed, seconds=seconds)
    if best is None:
        return {}
    arrived = best["received"] / best["seconds"]
    return {
        f"{name}_packets_per_second": arrived,
        f"{name}_bits_per_second": arrived * size * 8,
        f"{name}_reordered": float(best["reordered"]),
    }


def udp_search(
    ends: Ends, *, size: int, segments: int = 0, allowed: float = 0.0, seconds: float
) -> dict[str, Any] | None:
    """The trial (`bench.netns.udp.Trial`) of the highest rate whose loss is at most `allowed`."""
    found = _udp(ends, seconds, "--size", size, "--segments", segments, "--allowed", allowed)
    best: dict[str, Any] | None = found["best"]
    return best


def udp_at(ends: Ends, *, size: int, rate: float, seconds: float) -> dict[str, Any]:
    """One trial at one rate."""
    return _udp(ends, seconds, "--size", size, "--rate", rate)


def _udp(ends: Ends, seconds: float, *options: object) -> dict[str, Any]:
    # Not in a namespace: it enters both by itself.
    argv = [*python(), "-m", "bench.netns.udp", ends.source.name]
    argv += [ends.target.name, str(ends.target_address), "--seconds", str(seconds), *map(str, options)]
    found: dict[str, Any] = json.loads(command(argv, timeout=180 + seconds))
    return found
