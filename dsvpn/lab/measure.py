"""Ping and iperf3 between LAN hosts, as values."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from dsvpn.errors import HostError
from dsvpn.io import echo
from dsvpn.lab.run import Run, wait_until
from dsvpn.lab.topology import Namespace

#: What pings are filled with.
PLAINTEXT = echo.PLAINTEXT


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

    @property
    def missing(self) -> list[int]:
        """The sequence numbers, from 1, of those without an answer."""
        return sorted(set(range(1, self.transmitted + 1)) - {echo.sequence for echo in self.echoes})


def parse_pings(text: str) -> list[Pings]:
    """What `echo` printed: one series of pings a line."""
    series = []
    for line in text.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            raise HostError(f"the pings ended with {line[-200:]!r}") from None
        echoes = tuple(Echo(*echo) for echo in said["echoes"])
        series.append(Pings(said["transmitted"], len(echoes), said["duplicates"], echoes))
    return series


def ping_command(
    script: str | Path,
    target: IPv4Address,
    count: int,
    *,
    interval: float = 0.02,
    sizes: Sequence[int] = (56,),
    wait: float = 1.0,
    bind: IPv4Address | None = None,
) -> list[str]:
    """The command whose output `parse_pings` reads; `script` is where `echo` is."""
    python = str(Path(sys.executable).resolve())
    series = [str(target), str(count), ",".join(map(str, sizes)), f"{interval:g}", f"{wait:g}"]
    return [python, "-I", "-S", str(script), *series, *([] if bind is None else [str(bind)])]


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
    argv = ping_command(echo.__file__, target, count, interval=interval, sizes=(size,), wait=wait, bind=bind)
    (pings,) = parse_pings(source.command(argv, timeout=count * interval * 3 + wait + 30))
    return pings


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
