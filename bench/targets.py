"""What this project wants to reach, and whether results show it. Every verdict is computed here, from them alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]

OURS, CHACHA, RAW_ESP, STATIC, NULL = "dsvpn", "dsvpn-chacha20", "dsvpn-esp", "dataplane", "dataplane-null"
THEIRS = "wireguard-go"
_VECTOR = 256
_LARGEST = "1000000 routes, 100000 peers"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target. `measured` "" and `met` None: the results have nothing to judge it by."""

    figure: str
    target: str
    measured: str = ""
    met: bool | None = None

    def cells(self) -> list[str]:
        """Its line in a table."""
        words = {True: "met", False: "**missed**", None: "not measured"}
        return [self.figure, self.target, self.measured or "-", words[self.met]]


HEADS = ["figure", "target", "measured", ""]


@dataclass(frozen=True, slots=True)
class _Limit:
    """A bound and how values are written."""

    bound: float
    at_least: bool
    unit: str = " x"
    digits: int = 2

    def text(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.bound:.3g}{self.unit}"

    def judge(self, figure: str, value: float | None, note: str = "") -> Verdict:
        if value is None:
            return Verdict(figure, self.text())
        met = value >= self.bound if self.at_least else value <= self.bound
        text = f"{value:.{self.digits}f}"
        for digits in range(self.digits + 1, 10):
            # Rounding must not hide the verdict.
            if (float(text) >= self.bound if self.at_least else float(text) <= self.bound) == met:
                break
            text = f"{value:.{digits}f}"
        return Verdict(figure, self.text(), f"{text}{self.unit}{note}", met)


def ratio(result: Result, figure: str, ours: str, theirs: str) -> float | None:
    """Median of the ratios within each round; None where no round has both."""
    by_name = result["samples"].get(figure, {})
    pairs = zip(by_name.get(ours, ()), by_name.get(theirs, ()), strict=False)
    ratios = [a / b for a, b in pairs if a is not None and b]
    return statistics.median(ratios) if ratios else None


def verdicts(results: Mapping[str, Result]) -> list[Verdict]:
    """Every target in turn; `results` by kind, one of each."""
    found: list[Verdict] = []
    for kind, judge in _JUDGES:
        found += judge(results.get(kind, _NOTHING))
    return found


#: Stands for results that there are none of.
_NOTHING: Result = {"samples": {}, "rows": [], "totals": {}}


def _between_gateways(result: Result) -> Iterator[Verdict]:
    def compare(name: str, figure: str, ours: str, theirs: str, limit: _Limit) -> Verdict:
        return limit.judge(f"{name}: {ours} / {theirs}", ratio(result, figure, ours, theirs))

    streams = (("1 stream", "tcp_1"), ("4 streams", "tcp_4"))
    for words, figure in streams:
        goodput = f"{figure}_bits_per_second"
        yield compare(f"TCP {words}, AES-128-GCM", goodput, OURS, THEIRS, _Limit(3, True))
    for words, figure in streams:
        goodput = f"{figure}_bits_per_second"
        for ours in (STATIC, OURS):
            yield compare(f"TCP {words}, against the null cipher", goodput, ours, NULL, _Limit(0.85, True))
    for words, figure in streams:
        goodput = f"{figure}_bits_per_second"
        yield compare(f"TCP {words}, ChaCha20-Poly1305", goodput, CHACHA, THEIRS, _Limit(2, True))
    yield compare("TCP 1 stream, raw ESP", "tcp_1_bits_per_second", RAW_ESP, THEIRS, _Limit(1.2, True))
    for words, figure in streams:
        cores = f"{figure}_cores_per_gbps"
        yield compare(f"gateway cores per Gb/s, {words}", cores, OURS, THEIRS, _Limit(1 / 3, False))
    for words, when in (("idle", "idle"), ("under 4 streams", "loaded")):
        for share in ("p50", "p99"):
            rtt = f"rtt_{when}_{share}_seconds"
            yield compare(f"RTT {words}, {share}", rtt, OURS, THEIRS, _Limit(0.6, False))
    yield compare("UDP 64 B, no loss", "udp_64_packets_per_second", OURS, THEIRS, _Limit(3, True))


def _row(result: Result, group: str, case: str) -> Result | None:
    for row in result["rows"]:
        if row["group"] == group and row["case"] == case and row["packets"] == _VECTOR:
            return dict(row)
    return None


def _rate(row: Result, seconds: float, unit: str) -> float:
    """Packets of a vector in Mpps, or their bits in Gb/s."""
    rate: float = row["packets"] / seconds
    return rate / 1e6 if unit == " Mpps" else rate * row["octets"] * 8 / 1e9


def _in_memory(result: Result) -> Iterator[Verdict]:
    for suite in ("aes128gcm16", "chacha20poly1305"):
        for way in ("seal", "open"):
            for case, bound in (("1424 B", 0.95), ("64 B", 0.75)):
                row = _row(result, f"{way}, {suite}", case)
                value = row["raw_seconds"] / (row["seconds"] / row["packets"]) if row else None
                yield _Limit(bound, True).judge(f"{way} over a vector, {suite}, {case}: of raw ring", value)
    for way in ("encap", "decap"):
        for case, bound, unit in (("64 B", 8, " Mpps"), ("IMIX", 5, " Mpps"), ("1424 B", 36, " Gb/s")):
            row = _row(result, way, case)
            value, note = None, ""
            if row:
                # No ratio to what ran beside it: another guest of the same processor can only make it slower.
                value, median = (_rate(row, seconds, unit) for seconds in (row["fastest_seconds"], row["seconds"]))
                note = f" (median {median:.2f})"
            yield _Limit(bound, True, unit).judge(f"whole {way}, one core, {case}, fastest call", value, note)
    for way in ("encap", "decap"):
        for case in ("64 B", "IMIX", "1424 B"):
            row = _row(result, f"{way} by table size, {case}", _LARGEST)
            value = row["seconds"] / row["against_seconds"] if row else None
            figure = f"whole {way}, {case}: time with 1 M routes and 100 k peers / with 10 of each"
            yield _Limit(1.3, False).judge(figure, value)


def _disturbed(result: Result) -> Iterator[Verdict]:
    peace = "in peace"
    disturbances = (
        ("updates", "10 k updates per second", 0.9),
        ("updates by hundreds", "10 k updates per second, 100 to a commit", 0.9),
        ("rekeys", "100 rekeys in each run", 0.95),
    )
    for kind, words, bound in disturbances:
        for name, direction in (("tcp", "there"), ("tcp_reverse", "back")):
            value = ratio(result, f"{name}_bits_per_second", kind, peace)
            yield _Limit(bound, True).judge(f"{words}: TCP goodput {direction} / in peace", value)
        wanted = ["lost", "reordered"] if kind == "rekeys" else ["lost"]
        for what in wanted:
            value, quiet = (_total(result, what, which) for which in (kind, peace))
            note = "" if quiet is None else f" ({quiet:.0f} in peace)"
            limit = _Limit(0, False, "", digits=0)
            yield limit.judge(f"{words}: packets {what}", value, note)


def _total(result: Result, what: str, kind: str) -> float | None:
    """Packets of all rounds: lost of the numbered stream, between the gateways or by a named drop; or reordered."""
    parts = {
        "lost": ("udp_lost", "tcp_underlay_lost", "tcp_dropped", "udp_dropped"),
        "reordered": ("udp_reordered", "tcp_out_of_order"),
    }[what]
    totals = result["totals"]
    if "udp_sent" not in totals:
        return None
    # What a data plane dropped in the numbered stream is missing at its end as well: it counts once.
    found = {part: float(totals.get(part, {}).get(kind, 0)) for part in parts}
    if what == "lost":
        return max(found["udp_lost"], found["udp_dropped"]) + found["tcp_underlay_lost"] + found["tcp_dropped"]
    return sum(found.values())


def _heap(result: Result) -> Iterator[Verdict]:
    value = result.get("allocations_per_packet")
    note = f" ({result['allocations']} in {result['packets']} packets)" if value is not None else ""
    limit = _Limit(0, False, "", digits=6)
    yield limit.judge("heap allocations per packet, steady state, workers of a running data plane", value, note)


#: (how both ends prove themselves and exchange keys, against whom).
_HANDSHAKES = (
    ("PSK, X25519", "charon"),
    ("ECDSA, X25519", "charon"),
    ("PSK, X25519", "charon-14"),
    ("ECDSA, X25519", "charon-14"),
    ("ECDSA, X25519, ML-KEM-768", "charon-14"),
)


def _control(result: Result) -> Iterator[Verdict]:
    handshakes: Result = result.get("handshakes", _NOTHING)
    for case, theirs in _HANDSHAKES:
        value = ratio(handshakes, "per_processor_second", f"dsvpn, {case}", f"{theirs}, {case}")
        figure = f"handshakes per second of a processor as responder, {case}: dsvpn / {theirs}"
        yield _Limit(1, True).judge(figure, value)
    yield from _held(result.get("held"))
    yield from _flood(result.get("flood"), result.get("held"))
    yield from _storms(result.get("storms"))


def _held(held: Result | None) -> Iterator[Verdict]:
    peers = f"{held['peers']:,}" if held else "10,000"
    each = held["octets_each"] / 1024 if held else None
    yield _Limit(30, False, " KiB", 1).judge(f"{peers} IKE SAs with their CHILD_SAs: memory of each", each)
    # The best of each: what disturbs can only add.
    value = min(held["latency_full_seconds"]) / min(held["latency_empty_seconds"]) if held else None
    yield _Limit(1.5, False).judge(f"handshake latency among {peers} IKE SAs / in an empty responder", value)


def _flood(flood: Result | None, held: Result | None) -> Iterator[Verdict]:
    def number(*names: str) -> float | None:
        return None if flood is None else float(sum(flood[name] for name in names))

    name = "flood of spoofed IKE_SA_INIT"
    rate = None if flood is None else flood["rate"] / 1000
    yield _Limit(50, True, " k/s", 1).judge(f"{name}: rate sent", rate)
    yield _Limit(0, False, "", 0).judge(f"{name}: live peers that lost their SAs", number("live_lost"))
    lost = None if flood is None else 100 * flood["pings"]["lost"] / max(1, flood["pings"]["sent"])
    yield _Limit(1, False, " %").judge(f"{name}: pings lost through a live tunnel", lost)
    yield _Limit(2, False, " s").judge(f"{name}: slowest legitimate handshake", number("slowest_seconds"))
    growth = None
    if flood is not None:
        # Those who got in meanwhile stay, and take what an IKE SA takes.
        newcomers = flood["handshakes"] * held["octets_each"] if held else 0
        growth = 1 + (flood["memory_growth_octets"] - newcomers) / flood["memory_octets"]
    yield _Limit(1.2, False).judge(f"{name}: memory after / before, less the newcomers' IKE SAs", growth)


def _storms(storms: list[Result] | None) -> Iterator[Verdict]:
    """All are back within a minute, whether they call in a rush or one after the other."""
    by_spread = {storm["spread_seconds"]: storm for storm in storms or ()}
    for spread, bound, words in ((60.0, 62, "over a minute"), (1.0, 60, "within a second")):
        storm = by_spread.get(spread)
        spokes = 10_000 if storm is None else storm["spokes"]
        value = None if storm is None else storm["seconds"]
        figure = f"{spokes:,} spokes return {words}: the last is registered after"
        yield _Limit(bound, False, " s", 1).judge(figure, value)


def _next_hop_server(result: Result) -> Iterator[Verdict]:
    """RFC 2332 has no figures: these are what a hub of ten thousand spokes needs when it comes back."""
    largest = max(result.get("sizes", ()), default=0)
    rows = {row["case"]: row for row in result["rows"] if row.get("spokes") == largest}
    for case in ("registration", "resolution"):
        growth = result.get("growth", {}).get(case)
        yield _Limit(1.2, False).judge(f"cost of one {case}, 10,000 spokes / 100", growth)
        row = rows.get(case, {})
        thousands = None if not row else row["per_second"] / 1e3
        yield _Limit(1, True, " k/s").judge(f"{case}s of one processor, 10,000 spokes", thousands)
        p99 = None if not row else row["p99"] * 1e3
        yield _Limit(2, False, " ms").judge(f"{case}, p99, 10,000 spokes", p99)
    memory = result.get("memory_per_spoke")
    kilobytes = None if memory is None else memory / 1e3
    yield _Limit(5, False, " kB").judge("memory of the hub's NHRP for one spoke", kilobytes)


_JUDGES: tuple[tuple[str, Callable[[Result], Iterator[Verdict]]], ...] = (
    ("netns", _between_gateways),
    ("nhrp", _next_hop_server),
    ("micro", _in_memory),
    ("updates", _disturbed),
    ("allocations", _heap),
    ("control", _control),
)
