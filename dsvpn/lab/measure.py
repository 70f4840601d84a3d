"""Ping and iperf3 between LAN hosts, as values."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

from dsvpn.errors import HostError
from dsvpn.lab.run import Run, wait_until
from dsvpn.lab.topology import Namespace

#: What the pings of the lab are filled with (16 octets, the most that ping repeats): no underlay packet may hold it.
PLAINTEXT = b"dsvpn plain text"

_REPLY = re.compile(r"^\[(\d+\.\d+)\] \d+ bytes from .* icmp_seq=(\d+) ttl=(\d+) time=([\d.]+) ms( \(DUP!\))?", re.M)
_SUMMARY = re.compile(r"^(\d+) packets transmitted, (\d+) received", re.M)


@dataclass(frozen=True, slots=True)
class Echo:
    """One answered ping: when it was sent (wall clock, s), its round-trip time (s) and the reply's TTL."""

    sequence: int
    sent: float
    rtt: float
    ttl: int


@dataclass(frozen=True, slots=True)
class Pings:
    """A series of pings. `echoes` are the answered ones, each once."""

    transmitted: int
    received: int
    duplicates: int
    echoes: tuple[Echo, ...]

    @property
    def lost(self) -> int:
        """Pings without an answer."""
        return self.transmitted - self.received


def parse_pings(text: str) -> Pings:
    """The result of `ping -D -n` (iputils)."""
    summary = _SUMMARY.search(text)
    if summary is None:
        raise HostError(f"ping said no summary: {text.strip()[-200:]!r}")
    echoes: dict[int, Echo] = {}
    duplicates = 0
    for reply in _REPLY.finditer(text):
        rtt = float(reply[4]) / 1000
        duplicates += reply[5] is not None
        echoes.setdefault(int(reply[2]), Echo(int(reply[2]), float(reply[1]) - rtt, rtt, int(reply[3])))
    return Pings(int(summary[1]), int(summary[2]), duplicates, tuple(echoes.values()))


def ping(
    source: Namespace,
    target: IPv4Address,
    count: int,
    *,
    interval: float = 0.02,
    size: int = 56,
    wait: float = 1.0,
    bind: IPv4Address | None = None,
) -> Pings:
    """Ping `target` `count` times, `interval` seconds apart, with `size` octets of PLAINTEXT behind the ICMP header.

    Waits `wait` seconds for the last answers. Lost pings are part of the result, not an error.
    """
    argv = ["ping", "-D", "-n", "-i", f"{interval:g}", "-c", str(count), "-s", str(size), "-W", f"{wait:g}"]
    if bind is not None:
        argv += ["-I", str(bind)]
    # ping's exit status tells of lost answers, which the caller judges.
    shell = ["sh", "-c", '"$@" || [ $? -eq 1 ]', "sh", *argv, "-p", PLAINTEXT.hex(), str(target)]
    return parse_pings(source.command(shell, timeout=count * interval * 3 + wait + 30))


def median_rtt(echoes: list[Echo]) -> float | None:
    """Median round-trip time in seconds."""
    return statistics.median(echo.rtt for echo in echoes) if echoes else None


@dataclass(frozen=True, slots=True)
class Throughput:
    """One TCP stream: what arrived, in bits per second, and the sender's retransmissions."""

    bits_per_second: float
    retransmits: int


@contextmanager
def iperf_server(run: Run, host: Namespace) -> Iterator[None]:
    """An iperf3 server on every address of a LAN host."""
    log = run.directory / f"iperf3-{host.role}.log"
    server = run.spawn(["iperf3", "-s"], log, namespace=host.name)
    try:
        wait_until(lambda: host.command(["ss", "-Hltn", "sport", "=", ":5201"]).strip(), 10, "the iperf3 server")
        yield
    finally:
        run.end(server)


def iperf(source: Namespace, bind: IPv4Address, target: IPv4Address, seconds: float) -> Throughput:
    """Send one TCP stream for `seconds`. HostError says what iperf3 complains about."""
    text = source.command(
        ["sh", "-c", '"$@" || true', "sh", "iperf3", "-c", str(target), "-B", str(bind), "-t", f"{seconds:g}", "-J"],
        timeout=seconds + 60,
    )
    result = json.loads(text)
    if error := result.get("error"):
        raise HostError(f"iperf3 from {bind} to {target}: {error}")
    end = result["end"]
    return Throughput(end["sum_received"]["bits_per_second"], end["sum_sent"].get("retransmits", 0))
