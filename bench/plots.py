"""Results as PNG plots, a few and small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]

_OURS, _OTHERS = ("#2563eb", "#93c5fd"), ("#64748b", "#cbd5e1")
#: File, title, factor, and the figures whose bars stand beside each other with their names.
_NETNS: tuple[tuple[str, str, float, tuple[tuple[str, str], ...]], ...] = (
    (
        "tcp",
        "TCP goodput, Gb/s (more is better)",
        1e-9,
        (("tcp_1_bits_per_second", "1 stream"), ("tcp_4_bits_per_second", "4 streams")),
    ),
    ("udp", "UDP 64 B without loss, thousand packets/s (more is better)", 1e-3, (("udp_64_packets_per_second", ""),)),
    (
        "rtt",
        "RTT under 4 TCP streams, ms (less is better)",
        1e3,
        (("rtt_loaded_p50_seconds", "p50"), ("rtt_loaded_p99_seconds", "p99")),
    ),
    (
        "cores",
        "gateway cores per Gb/s (less is better)",
        1.0,
        (("tcp_1_cores_per_gbps", "1 stream"), ("tcp_4_cores_per_gbps", "4 streams")),
    ),
)


def netns(result: Result, directory: Path, prefix: str = "") -> list[Path]:
    """Bars of the main figures by contestant, with the spread as error bars. Gives the files."""
    running = [name for name, found in result["contestants"].items() if "missing" not in found]
    files = []
    for name, title, factor, figures in _NETNS:
        summary = [(result["summary"].get(figure, {}), words) for figure, words in figures]
        names = [name for name in running if any(name in by_name for by_name, _ in summary)]
        if not names:
            continue
        series = [
            (
                words,
                [by_name.get(name, {}).get("median", 0.0) * factor for name in names],
                [by_name.get(name, {}).get("mad", 0.0) * factor for name in names],
            )
            for by_name, words in summary
        ]
        files.append(_bars(directory / f"{prefix}{name}.png", title, names, series))
    return files


def micro(result: Result, directory: Path, prefix: str = "") -> list[Path]:
    """Rate by packet size of the whole encap and decap at the largest vector."""
    rates: dict[str, dict[str, float]] = {}
    for row in result["rows"]:
        if row["group"] in ("encap", "decap") and row["packets"] == 256:
            rates.setdefault(row["case"], {})[row["group"]] = row["packets"] / row["seconds"] / 1e6
    if not rates:
        return []
    series = [(way, [by_way.get(way, 0.0) for by_way in rates.values()], None) for way in ("encap", "decap")]
    title = "AES-128-GCM, memory to memory on one core, vectors of 256, million packets/s"
    return [_bars(directory / f"{prefix}memory.png", title, list(rates), series, ours=True)]


def _bars(
    file: Path,
    title: str,
    names: Sequence[str],
    series: Sequence[tuple[str, Sequence[float], Sequence[float] | None]],
    *,
    ours: bool = False,
) -> Path:
    import matplotlib

    # No display is needed, or there.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = 0.8 / len(series)
    figure, axes = pyplot.subplots(figsize=(7.5, 0.8 + (0.22 + 0.2 * len(series)) * len(names)))
    for index, (words, values, spreads) in enumerate(series):
        places = [place + (index - (len(series) - 1) / 2) * height for place in range(len(names))]
        mine = [ours or name.startswith(("dsvpn", "dataplane")) for name in names]
        colors = [(_OURS if own else _OTHERS)[index] for own in mine]
        bars = axes.barh(places, values, height, xerr=spreads, color=colors, label=words)
        axes.bar_label(bars, fmt=f"%.3g {words}".strip(), padding=4, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.margins(x=0.18)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    pyplot.close(figure)
    return file
