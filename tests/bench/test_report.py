"""Results as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.statistics import summarize

_ENVIRONMENT = {
    "commit": "abc",
    "time": "2026-01-01T00:00:00Z",
    "kernel": "6",
    "cores": 2,
    "cpu": "cpu",
    "native_version": "0.1.0",
    "build_profile": "release",
    "aead_backend": "ring",
    "iperf3": "iperf 3",
    "load_before": [0.5, 0, 0],
    "busy_before": 0.5,
    "warnings": ["the machine was busy"],
}


def result(samples: dict[str, dict[str, list[float | None]]]) -> dict[str, Any]:
    peer = {"title": "t", "version": "1", "cipher": "c", "mtu": 1420, "notes": ["tunnel mode"]}
    return {
        "kind": "netns",
        "rounds": 3,
        "rounds_dropped": 1,
        "reference": "wireguard-go",
        "environment": _ENVIRONMENT,
        "contestants": {"dsvpn": peer, "wireguard-go": peer, "nebula": {"title": "n", "missing": "no Go"}},
        "samples": samples,
        "summary": summarize(samples, "wireguard-go"),
    }


def test_page_says_medians_ratios_warnings_and_who_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "netns-quick.json"
    # No plots: matplotlib is no package of the tests. The figure is one that has none.
    samples: dict[str, dict[str, list[float | None]]] = {
        "rtt_idle_p50_seconds": {"dsvpn": [0.0001, 0.0002], "wireguard-go": [0.0004, None]}
    }
    file.write_text(json.dumps(result(samples)))
    text = report.write([file], tmp_path)
    assert "| RTT idle p50, ms | 0.150 (0.25) | 0.400 [1 of 2 rounds] |" in text
    assert "**Warning:** the machine was busy." in text
    assert "**nebula was not measured:** no Go" in text
    assert "tunnel mode" in text
    assert (tmp_path / "report.md").read_text() == text


def test_a_file_that_holds_no_results_is_named(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text("[]")
    with pytest.raises(ValueError, match=r"other\.json holds no results"):
        report.write([file], tmp_path)
