"""Results (JSON) as a Markdown page and PNG plots: `python -m bench report [FILE...]`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = dict[str, Any]

#: Figure, heading, how its value is written, whether more is better.
_FIGURES: tuple[tuple[str, str, Callable[[float], str], bool], ...] = (
    ("tcp_1_bits_per_second", "TCP 1 stream, Gb/s", lambda v: f"{v / 1e9:.2f}", True),
    ("tcp_4_bits_per_second", "TCP 4 streams, Gb/s", lambda v: f"{v / 1e9:.2f}", True),
    ("tcp_1_reverse_bits_per_second", "TCP 1 stream, other direction, Gb/s", lambda v: f"{v / 1e9:.2f}", True),
    ("tcp_4_reverse_bits_per_second", "TCP 4 streams, other direction, Gb/s", lambda v: f"{v / 1e9:.2f}", True),
    ("tcp_1_both_bits_per_second", "TCP both directions at once, sum, Gb/s", lambda v: f"{v / 1e9:.2f}", True),
    ("tcp_1_routed_bits_per_second", "TCP 1 stream, routed, no GSO, Gb/s", lambda v: f"{v / 1e9:.2f}", True),
    ("quic_bits_per_second", "UDP 1200 B with UDP_SEGMENT, loss at most 1 %, Gb/s", lambda v: f"{v / 1e9:.2f}", True),
    ("udp_64_packets_per_second", "UDP 64 B, no loss, kpps", lambda v: f"{v / 1e3:.0f}", True),
    ("tcp_1_cores_per_gbps", "gateway cores per Gb/s, 1 stream", lambda v: f"{v:.3f}", False),
    ("tcp_4_cores_per_gbps", "gateway cores per Gb/s, 4 streams", lambda v: f"{v:.3f}", False),
    ("tcp_1_machine_cores_per_gbps", "all cores per Gb/s, 1 stream", lambda v: f"{v:.3f}", False),
    ("rtt_idle_p50_seconds", "RTT idle p50, ms", lambda v: f"{v * 1e3:.3f}", False),
    ("rtt_idle_p99_seconds", "RTT idle p99, ms", lambda v: f"{v * 1e3:.3f}", False),
    ("rtt_loaded_p50_seconds", "RTT under 4 streams p50, ms", lambda v: f"{v * 1e3:.2f}", False),
    ("rtt_loaded_p99_seconds", "RTT under 4 streams p99, ms", lambda v: f"{v * 1e3:.2f}", False),
    ("tcp_1_retransmits", "TCP 1 stream, retransmissions", lambda v: f"{v:.0f}", False),
    ("tcp_4_retransmits", "TCP 4 streams, retransmissions", lambda v: f"{v:.0f}", False),
    ("udp_64_reordered", "UDP 64 B, datagrams reordered", lambda v: f"{v:.0f}", False),
)
#: Figures that get a plot.
_PLOTTED = ("tcp_1_bits_per_second", "tcp_4_bits_per_second", "udp_64_packets_per_second", "rtt_loaded_p99_seconds")


def write(files: list[Path], output: Path) -> str:
    """Write report.md and the plots into `output` and give the page's text. ValueError names a file that is none."""
    parts = []
    for file in files:
        try:
            result: Result = json.loads(file.read_text())
            kind = result["kind"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} holds no results ({error}); give a file that `python -m bench` wrote") from None
        parts.append("\n".join([f"## {kind}: {file.stem}", "", *_environment(result), "", *_BODIES[kind](result)]))
        if kind == "netns":
            parts.append("\n".join(f"![{path.stem}]({path.name})" for path in plot(result, output, file.stem)))
        elif kind == "micro":
            parts.append("\n".join(f"![{path.stem}]({path.name})" for path in plot_micro(result, output, file.stem)))
    text = "\n\n".join(part for part in parts if part) + "\n"
    (output / "report.md").write_text(text)
    return text


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
        f"AEAD {found['aead_backend'] or 'unknown'}. {found['iperf3'] or 'No iperf3'}. "
        f"Load before the run {found['load_before'][0]:.2f}, {found['busy_before']:.0%} of the cores in use by others.",
    ]
    return lines + [f"**Warning:** {warning}." for warning in found["warnings"]]


def _running(result: Result) -> dict[str, Result]:
    return {name: found for name, found in result["contestants"].items() if "missing" not in found}


def _netns(result: Result) -> list[str]:
    running, summary = _running(result), result["summary"]
    kept = result["rounds"] - result["rounds_dropped"]
    against = result["reference"]
    ratios = (
        f"in parentheses the ratio to {against} within the same rounds." if against else "the reference is missing."
    )
    lines = [f"Medians of {kept} rounds, in turn, the first of {result['rounds']} dropped; {ratios}"]
    rows = []
    for figure, heading, text, _ in _FIGURES:
        if figure not in summary:
            continue
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
    who = [
        [name, found["title"], found["version"], found["cipher"], str(found["mtu"] or "-"), "; ".join(found["notes"])]
        for name, found in running.items()
    ]
    lines += table(["contestant", "", "version", "cipher", "MTU", "notes"], who)
    missing = [(name, found["missing"]) for name, found in result["contestants"].items() if "missing" in found]
    return lines + [""] * bool(missing) + [f"- **{name} was not measured:** {reason}" for name, reason in missing]


def _micro(result: Result) -> list[str]:
    lines: list[str] = []
    groups: dict[str, list[Result]] = {}
    for row in result["rows"]:
        groups.setdefault(row["group"], []).append(row)
    for group, rows in groups.items():
        lines += [f"### {group}", ""]
        body = []
        for row in rows:
            each = row["seconds"] / row["packets"]
            rate = f"{row['octets'] * 8 / each / 1e9:.1f}" if row.get("octets") else ""
            ratio = f"{row['raw_seconds'] / each:.2f}" if row.get("raw_seconds") else ""
            note = row.get("note", "")
            body.append(
                [row["case"], str(row["packets"]), f"{each * 1e9:.1f}", f"{1e-6 / each:.2f}", rate, ratio, note]
            )
        heads = ["case", "per call", "ns each", "M/s", "Gb/s", "of raw ring", "note"]
        # Columns that no row of this group fills say nothing.
        kept = [i for i in range(len(heads)) if any(line[i] for line in body)]
        lines += [*table([heads[i] for i in kept], [[line[i] for i in kept] for line in body]), ""]
    return lines


def _control(result: Result) -> list[str]:
    rows = [
        [row["case"], f"{row['interpreted'] * 1e6:.2f}", f"{row['compiled'] * 1e6:.2f}",
         f"{row['interpreted'] / row['compiled']:.2f}"]
        for row in result["rows"]
    ]  # fmt: skip
    return table(["dsvpn/wire", "interpreted, µs", "compiled, µs", "compiled is faster by"], rows)


_BODIES: dict[str, Callable[[Result], list[str]]] = {"netns": _netns, "micro": _micro, "control": _control}


def plot(result: Result, output: Path, stem: str) -> list[Path]:
    """Bars of the main figures, one PNG each, with the spread as error bars. Gives the files."""
    figures = {figure: (heading, better) for figure, heading, _, better in _FIGURES}
    files = []
    for figure in _PLOTTED:
        by_name = {name: found for name, found in result["summary"].get(figure, {}).items() if name in _running(result)}
        if not by_name:
            continue
        heading, more = figures[figure]
        scale = {"Gb/s": 1e-9, "kpps": 1e-3, "ms": 1e3}[heading.rpartition(", ")[2]]
        file = output / f"{stem}-{figure.removesuffix('_bits_per_second')}.png"
        values = [found["median"] * scale for found in by_name.values()]
        spreads = [found["mad"] * scale for found in by_name.values()]
        _bars(file, f"{heading} ({'more' if more else 'less'} is better)", list(by_name), values, spreads)
        files.append(file)
    return files


def plot_micro(result: Result, output: Path, stem: str) -> list[Path]:
    """Rate by packet size for the whole encap and decap at the largest vector."""
    rows = [row for row in result["rows"] if row["group"] in ("encap", "decap") and row.get("packets") == 256]
    if not rows:
        return []
    file = output / f"{stem}-packets.png"
    names = [f"{row['group']} {row['case']}" for row in rows]
    values = [row["packets"] / row["seconds"] / 1e6 for row in rows]
    _bars(file, "memory to memory, one core, M packets/s, vectors of 256", names, values, [0.0] * len(rows))
    return [file]


def _bars(file: Path, title: str, names: list[str], values: list[float], spreads: list[float]) -> None:
    import matplotlib

    # No display is needed, or there.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.5 + 0.4 * len(names)))
    bars = axes.barh(
        names, values, xerr=spreads, color=["#2563eb" if n.startswith("dsvpn") else "#94a3b8" for n in names]
    )
    axes.bar_label(bars, fmt="%.3g", padding=4)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
