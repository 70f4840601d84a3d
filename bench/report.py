"""Results (JSON) as a Markdown page and PNG plots: `python -m bench report [--publish PAGE] [FILE...]`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import plots, targets
from bench.statistics import summarize

Result = dict[str, Any]

#: Figure, heading, how its value is written.
_FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("tcp_1_bits_per_second", "TCP 1 stream, Gb/s", lambda v: f"{v / 1e9:.2f}"),
    ("tcp_4_bits_per_second", "TCP 4 streams, Gb/s", lambda v: f"{v / 1e9:.2f}"),
    ("tcp_1_reverse_bits_per_second", "TCP 1 stream, other direction, Gb/s", lambda v: f"{v / 1e9:.2f}"),
    ("tcp_4_reverse_bits_per_second", "TCP 4 streams, other direction, Gb/s", lambda v: f"{v / 1e9:.2f}"),
    ("tcp_1_both_bits_per_second", "TCP both directions at once, sum, Gb/s", lambda v: f"{v / 1e9:.2f}"),
    ("tcp_1_routed_bits_per_second", "TCP 1 stream, routed, no GSO, Gb/s", lambda v: f"{v / 1e9:.2f}"),
    ("quic_bits_per_second", "UDP 1200 B with UDP_SEGMENT, loss at most 1 %, Gb/s", lambda v: f"{v / 1e9:.2f}"),
    ("udp_64_packets_per_second", "UDP 64 B, no loss, kpps", lambda v: f"{v / 1e3:.0f}"),
    ("tcp_1_cores_per_gbps", "gateway cores per Gb/s, 1 stream", lambda v: f"{v:.3f}"),
    ("tcp_4_cores_per_gbps", "gateway cores per Gb/s, 4 streams", lambda v: f"{v:.3f}"),
    ("tcp_1_machine_cores_per_gbps", "all cores per Gb/s, 1 stream", lambda v: f"{v:.3f}"),
    ("rtt_idle_p50_seconds", "RTT idle p50, ms", lambda v: f"{v * 1e3:.3f}"),
    ("rtt_idle_p99_seconds", "RTT idle p99, ms", lambda v: f"{v * 1e3:.3f}"),
    ("rtt_loaded_p50_seconds", "RTT under 4 streams p50, ms", lambda v: f"{v * 1e3:.2f}"),
    ("rtt_loaded_p99_seconds", "RTT under 4 streams p99, ms", lambda v: f"{v * 1e3:.2f}"),
    ("tcp_1_retransmits", "TCP 1 stream, retransmissions", lambda v: f"{v:.0f}"),
    ("tcp_4_retransmits", "TCP 4 streams, retransmissions", lambda v: f"{v:.0f}"),
    ("udp_64_reordered", "UDP 64 B, datagrams reordered", lambda v: f"{v:.0f}"),
)
_UPDATE_FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("tcp_bits_per_second", "TCP 1 stream there, Gb/s", lambda v: f"{v / 1e9:.2f}"),
    ("tcp_reverse_bits_per_second", "TCP 1 stream back, Gb/s", lambda v: f"{v / 1e9:.2f}"),
    ("udp_packets_per_second", "numbered UDP, k packets/s", lambda v: f"{v / 1e3:.0f}"),
    ("updates_per_second", "updates per second", lambda v: f"{v:.0f}"),
    ("update_cores", "processors that make them", lambda v: f"{v:.3f}"),
    ("commits_per_second", "commits per second", lambda v: f"{v:.0f}"),
    ("rekeys_per_second", "rekeys per second", lambda v: f"{v:.0f}"),
)
#: The order of kinds in a page.
_KINDS = ("netns", "updates", "allocations", "micro", "nhrp", "control")
#: Between these lines of a published page the results stand.
_BEGIN, _END = "<!-- results: written by `python -m bench report --publish` -->", "<!-- end of results -->"


def load(files: list[Path]) -> list[tuple[Path, Result]]:
    """Results and their files. ValueError names a file that holds none."""
    found = []
    for file in files:
        try:
            result: Result = json.loads(file.read_text())
            if result["kind"] not in _BODIES or not isinstance(result["environment"]["warnings"], list):
                raise KeyError("kind")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} holds no results ({error}); give a file that `python -m bench` wrote") from None
        found.append((file, result))
    return found


def newest(results: list[Result]) -> dict[str, Result]:
    """One of each kind: the newest, and of the runs between gateways a full one before a quick one."""
    chosen: dict[str, Result] = {}
    for result in sorted(results, key=lambda result: (result.get("plan") == "full", result["environment"]["time"])):
        chosen[result["kind"]] = result
    return {kind: chosen[kind] for kind in _KINDS if kind in chosen}


def write(files: list[Path], output: Path) -> str:
    """Write report.md and the plots into `output` and give the page's text. ValueError names a file that is none."""
    loaded = load(files)
    parts = ["## Targets", "", *_targets(newest([result for _, result in loaded])), ""]
    for file, result in loaded:
        kind = result["kind"]
        parts += [f"## {kind}: {file.stem}", "", *_environment(result), "", *_BODIES[kind](result), ""]
        parts += [f"![{path.stem}]({path.name})" for path in _plots(result, output, f"{file.stem}-")] + [""]
    text = "\n".join(parts).rstrip() + "\n"
    (output / "report.md").write_text(text)
    return text


def publish(files: list[Path], page: Path) -> None:
    """Put the newest results of each kind into a page, between its two marks, and plots into the directory beside it.

    ValueError: a file holds no results, or the page has no marks.
    """
    results = newest([result for _, result in load(files)])
    text = page.read_text()
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the lines {_BEGIN!r} and {_END!r}, between which results go")
    images = page.with_suffix("")
    images.mkdir(exist_ok=True)
    parts = ["### Targets", "", *_targets(results), ""]
    for kind, result in results.items():
        body = _micro(result, largest=True) if kind == "micro" else _BODIES[kind](result)
        plots = [f"![{path.stem}]({images.name}/{path.name})" for path in _plots(result, images, "")]
        parts += [f"### {_TITLES[kind]}", "", *_environment(result), "", *body, "", *plots, ""]
    page.write_text(f"{before}{_BEGIN}\n\n" + "\n".join(parts).rstrip() + f"\n\n{_END}{after}")


def _plots(result: Result, directory: Path, prefix: str) -> list[Path]:
    draw = {"netns": plots.netns, "micro": plots.micro}.get(result["kind"])
    return draw(result, directory, prefix) if draw else []


def _targets(results: Mapping[str, Result]) -> list[str]:
    verdicts = targets.verdicts(results)
    lines = table(targets.HEADS, [verdict.cells() for verdict in verdicts])
    counts = {state: sum(verdict.met is state for verdict in verdicts) for state in (True, False, None)}
    said = f"{counts[True]} met, {counts[False]} missed, {counts[None]} not measured"
    warned = [f"{kind}: {warning}" for kind, result in results.items() for warning in result["environment"]["warnings"]]
    return [f"{said}. Computed from the results below.", "", *lines, *[""] * bool(warned), *[f"- {w}" for w in warned]]


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _environment(result: Result) -> list[str]:
    found = result["environment"]
    lines = [
        f"Commit {found['commit']}, {found['time']}. "
        f"Linux {found['kernel']}, {found['cores']} cores of {found['cpu']}.",
        f"dsvpn_native {found['native_version'] or 'missing'}, {found['build_profile'] or 'no'} build, "
        f"AEAD {found['aead_backend'] or 'unknown'}. Python {found['python']}. {found['iperf3'] or 'No iperf3'}. "
        f"Load before the run {found['load_before'][0]:.2f}, {found['busy_before']:.0%} of the cores in use by others.",
    ]
    return lines + [f"**Warning:** {warning}." for warning in found["warnings"]]


def _running(result: Result) -> dict[str, Result]:
    return {name: found for name, found in result["contestants"].items() if "missing" not in found}


def _netns(result: Result) -> list[str]:
    running, summary = _running(result), result["summary"]
    counted = result["rounds"] - result["rounds_dropped"]
    against = result["reference"]
    ratios = (
        f"in parentheses the ratio to {against} within the same rounds." if against else "the reference is missing."
    )
    lines = [f"Medians of {counted} rounds, in turn, the first of {result['rounds']} dropped; {ratios}"]
    rows = []
    for figure, heading, text in _FIGURES:
        if figure not in summary:
            continue
        # Some figures are not measured in every round.
        kept = max(int(found["count"]) for found in summary[figure].values())
        cells = []
        for name in running:
            found = summary[figure].get(name)
            cell = "-" if found is None else text(found["median"])
            if found is not None and "ratio" in found and name != against:
                cell += f" ({found['ratio']:.2f})"
            if found is not None and found["count"] < kept:
                cell += f" [{found['count']:.0f} of {kept} rounds]"
            cells.append(cell)
        rows.append([heading, *cells])
    lines += ["", *table(["", *running], rows), ""]
    lines += [*_comparisons(result), ""]
    who = [
        [name, found["title"], found["version"], found["cipher"], str(found["mtu"] or "-"), "; ".join(found["notes"])]
        for name, found in running.items()
    ]
    lines += table(["contestant", "", "version", "cipher", "MTU", "notes"], who)
    missing = [(name, found["missing"]) for name, found in result["contestants"].items() if "missing" in found]
    return lines + [""] * bool(missing) + [f"- **{name} was not measured:** {reason}" for name, reason in missing]


#: What a reader wants to see against each other besides the reference.
_COMPARISONS = (
    ("dsvpn", "plain", "the tunnel against no tunnel"),
    ("dsvpn-uvloop", "dsvpn", "driven by the event loop against native workers"),
    ("dsvpn-2threads", "dsvpn", "two worker threads against as many as serve the machine"),
    ("dsvpn", "dataplane", "with the control plane against the data plane alone"),
    ("dataplane", "dataplane-null", "AES-128-GCM against the null cipher"),
    ("dsvpn-chacha20", "dsvpn", "ChaCha20-Poly1305 against AES-128-GCM"),
    ("dsvpn-esp", "dsvpn", "raw ESP against ESP in UDP"),
)
_COMPARED = (
    ("tcp_1_bits_per_second", "TCP 1 stream"),
    ("tcp_4_bits_per_second", "TCP 4 streams"),
    ("udp_64_packets_per_second", "UDP 64 B"),
    ("tcp_1_cores_per_gbps", "cores per Gb/s"),
    ("rtt_idle_p50_seconds", "RTT idle p50"),
    ("rtt_loaded_p99_seconds", "RTT loaded p99"),
)


def _comparisons(result: Result) -> list[str]:
    """Ratios between contestants, within the same rounds."""
    rows = []
    for ours, theirs, words in _COMPARISONS:
        ratios = [targets.ratio(result, figure, ours, theirs) for figure, _ in _COMPARED]
        if any(ratio is not None for ratio in ratios):
            cells = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
            rows.append([f"{ours} / {theirs}", words, *cells])
    return table(["ratio", "", *(heading for _, heading in _COMPARED)], rows) if rows else []


def _micro(result: Result, *, largest: bool = False) -> list[str]:
    """A table for each group; with `largest`, each case at its largest vector alone."""
    lines: list[str] = []
    groups: dict[str, list[Result]] = {}
    for row in result["rows"]:
        groups.setdefault(row["group"], []).append(row)
    for group, rows in groups.items():
        by_case = {row["case"]: row for row in sorted(rows, key=lambda row: row["packets"])}
        lines += [f"### {group}" if not largest else f"**{group}**", ""]
        body = []
        for row in by_case.values() if largest else rows:
            each = row["seconds"] / row["packets"]
            rate = f"{row['octets'] * 8 / each / 1e9:.1f}" if row.get("octets") else ""
            of_ring = f"{row['raw_seconds'] / each:.2f}" if row.get("raw_seconds") else ""
            note = row.get("note", "")
            if row.get("against_seconds"):
                note = f"takes {row['seconds'] / row['against_seconds']:.2f} x as long as with {row['against']}"
            body.append(
                [row["case"], str(row["packets"]), f"{each * 1e9:.1f}", f"{1e-6 / each:.2f}", rate, of_ring, note]
            )
        heads = ["case", "per call", "ns each", "M/s", "Gb/s", "of raw ring", "note"]
        # Columns that no row of this group fills say nothing.
        kept = [i for i in range(len(heads)) if any(line[i] for line in body)]
        lines += [*table([heads[i] for i in kept], [[line[i] for i in kept] for line in body]), ""]
    return lines


def _updates(result: Result) -> list[str]:
    summary = summarize(result["samples"], "in peace")
    kinds = list(result["samples"]["tcp_bits_per_second"])
    given = result["parameters"]
    rows = []
    for figure, heading, text in _UPDATE_FIGURES:
        if by_kind := summary.get(figure):
            cells = []
            for kind in kinds:
                found = by_kind.get(kind)
                cell = "-" if found is None else text(found["median"])
                cells.append(
                    cell + (f" ({found['ratio']:.2f})" if found and "ratio" in found and kind != kinds[0] else "")
                )
            rows.append([heading, *cells])
    for name, by_kind in sorted(result["totals"].items()):
        rows.append([f"{_words(name)}, all rounds", *(f"{by_kind.get(kind, 0):.0f}" for kind in kinds)])
    counted = max(len(values) for values in result["samples"]["tcp_bits_per_second"].values())
    contestant = result["contestant"]
    to_a_commit = " or ".join(map(str, given["updates_per_commit"]))
    return [
        f"{contestant['title']} ({contestant['version']}), medians of {counted} rounds in turn, the first of "
        f"{counted + 1} dropped; in parentheses the ratio to the same traffic in peace within the same rounds.",
        f"Updates: {given['updates_per_second']} a second wanted at the left gateway, {to_a_commit} to "
        f"a commit, over {given['peers']} peers.",
        f"Rekeys: {given['rekeys']} of both directions in each of the three streams, make before break.",
        f"TCP runs of {given['tcp_seconds']} s; the numbered UDP stream has {given['udp_size']} B at "
        f"{given['udp_rate'] / 1e3:.0f} k packets/s.",
        "",
        *table(["", *kinds], rows),
    ]


def _words(name: str) -> str:
    protocol, _, rest = name.partition("_")
    return f"{protocol.upper()}: {rest.replace('_', ' ')}"


def _allocations(result: Result) -> list[str]:
    rows = [
        [row["side"], row["thread"], str(row["allocations"]), str(row["octets"]), str(row["while_warming"])]
        for row in result["rows"]
    ]
    heads = ["gateway", "thread", "allocations", "octets", "allocations before, while warming up"]
    each = f"{result['allocations_per_packet']:.6f}"
    return [f"{result['allocations']} allocations in {result['packets']} packets: {each} per packet.", "",
            *table(heads, rows)]  # fmt: skip


def _control(result: Result) -> list[str]:
    rows = [
        [row["case"], f"{row['interpreted'] * 1e6:.2f}", f"{row['compiled'] * 1e6:.2f}",
         f"{row['interpreted'] / row['compiled']:.2f}"]
        for row in result["rows"]
    ]  # fmt: skip
    lines = table(["dsvpn/wire", "interpreted, µs", "compiled, µs", "compiled is faster by"], rows)
    for name, body in (("handshakes", _handshakes), ("held", _held), ("flood", _flood), ("storms", _storms)):
        if name in result:
            lines += ["", *body(result[name])]
    return lines


_HANDSHAKE_FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("per_processor_second", "per second of the responder's processor", lambda v: f"{v:.0f}"),
    ("per_second", "per second", lambda v: f"{v:.0f}"),
    ("latency_seconds", "from first datagram to SAs, median, ms", lambda v: f"{v * 1e3:.1f}"),
)


def _handshakes(found: Result) -> list[str]:
    summary = summarize(found["samples"], None)
    rows = []
    for name in found["samples"].get("per_processor_second", {}):
        cells = [text(summary[figure][name]["median"]) for figure, _, text in _HANDSHAKE_FIGURES]
        who, _, case = name.partition(", ")
        ours = targets.ratio(found, "per_processor_second", f"dsvpn, {case}", name)
        rows.append([case, found["versions"][who], *cells, "" if who == "dsvpn" or ours is None else f"{ours:.2f}"])
    rows.sort(key=lambda row: row[0])
    heads = ["handshakes", "responder", *(heading for _, heading, _ in _HANDSHAKE_FIGURES), "dsvpn / it"]
    missing = [f"- **{name} was not measured:** {reason}" for name, reason in found["missing"].items()]
    return [*table(heads, rows), *[""] * bool(missing), *missing]


def _held(found: Result) -> list[str]:
    empty, full = (min(found[f"latency_{kind}_seconds"]) * 1e3 for kind in ("empty", "full"))
    rows = [
        ["memory of an IKE SA with its CHILD_SA, KiB", f"{found['octets_each'] / 1024:.1f}"],
        ["handshake in an empty responder, ms", f"{empty:.2f}"],
        [f"handshake among {found['peers']}, ms", f"{full:.2f}"],
        ["DPD exchanges a second", f"{found['dpd_per_second']:.0f}"],
        ["share of a processor for them", f"{found['dpd_processor_share']:.2f}"],
        *([f"processor time of one {name}, ms", f"{seconds * 1e3:.2f}"]
          for name, seconds in found["processor_seconds"].items()),
    ]  # fmt: skip
    return table([f"{found['peers']} IKE SAs held", ""], rows)


def _flood(found: Result) -> list[str]:
    rows = [
        ["requests a second from spoofed addresses", f"{found['rate']:.0f}"],
        ["seconds", f"{found['seconds']:.1f}"],
        ["live peers, and how many lost their SAs", f"{found['live']}, {found['live_lost']}"],
        ["pings through a live tunnel, and how many were lost", f"{found['pings']['sent']}, {found['pings']['lost']}"],
        ["legitimate handshakes meanwhile, one by one", str(found["handshakes"])],
        ["the slowest of them, s", f"{found['slowest_seconds']:.3f}"],
        ["growth of memory, MiB", f"{found['memory_growth_octets'] / 2**20:.1f}"],
        ["share of a processor", f"{found['processor_share']:.2f}"],
        *([name, str(count)] for name, count in sorted(found["counters"].items()) if count),
    ]
    return table(["flood", ""], rows)


def _storms(storms: list[Result]) -> list[str]:
    rows = [
        [
            f"{storm['spread_seconds']:g}",
            f"{storm['seconds']:.1f}",
            f"{storm['wait_p50_seconds']:.2f}",
            f"{storm['wait_p99_seconds']:.2f}",
            f"{storm['processor_seconds']:.1f}",
            ", ".join(f"{kind} {work['seconds']:.1f} in {work['count']}" for kind, work in storm["work"].items()),
            str(storm["longest_queue"]),
            str(storm["lost"]),
        ]
        for storm in storms
    ]
    heads = ["all call within, s", "all registered after, s", "one waits, median, s", "p99, s",
             "hub's processor, s", "of that, s, in how many", "longest queue", "lost"]  # fmt: skip
    said = (
        f"{storms[0]['spokes']} spokes return to a hub that has started anew: IKE with {storms[0]['suite']}, then NHRP."
    )
    return [said, "", *table(heads, rows)]


def _nhrp(result: Result) -> list[str]:
    rows = [
        [row["case"], str(row["spokes"]), f"{row['per_second']:.0f}", f"{row['p50'] * 1e6:.0f}",
         f"{row['p99'] * 1e6:.0f}"]
        for row in result["rows"]
    ]  # fmt: skip
    memory = f"A registered spoke takes {result['memory_per_spoke']:.0f} octets of the hub's NHRP."
    return [memory, "", *table(["", "spokes", "per second of one processor", "median, µs", "p99, µs"], rows)]


_BODIES: dict[str, Callable[[Result], list[str]]] = {
    "netns": _netns,
    "updates": _updates,
    "allocations": _allocations,
    "micro": _micro,
    "nhrp": _nhrp,
    "control": _control,
}
_TITLES = {
    "netns": "Between gateways",
    "updates": "Updates and rekeys while forwarding",
    "allocations": "Heap allocations",
    "micro": "Within the data plane",
    "nhrp": "NHRP of a hub",
    "control": "Control plane",
}
