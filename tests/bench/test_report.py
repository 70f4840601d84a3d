"""Results as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.__main__ import main
from bench.statistics import summarize

_RESULTS = Path(__file__).with_name("results")
_ENVIRONMENT = {
    "commit": "abc",
    "time": "2026-01-01T00:00:00Z",
    "kernel": "6",
    "cores": 2,
    "cpu": "cpu",
    "native_version": "0.1.0",
    "build_profile": "release",
    "aead_backend": "ring",
    "python": "3.11.2",
    "iperf3": "iperf 3",
    "load_before": [0.5, 0, 0],
    "busy_before": 0.5,
    "warnings": ["the machine was busy"],
}


def result(samples: dict[str, dict[str, list[float | None]]], **more: object) -> dict[str, Any]:
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
        **more,
    }


def test_page_says_medians_ratios_warnings_and_who_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "netns-quick.json"
    samples: dict[str, dict[str, list[float | None]]] = {
        "rtt_idle_p50_seconds": {"dsvpn": [0.0001, 0.0002], "wireguard-go": [0.0004, None]}
    }
    file.write_text(json.dumps(result(samples)))
    text = report.write([file], tmp_path)
    assert "| RTT idle p50, ms | 0.150 (0.25) | 0.400 [1 of 2 rounds] |" in text
    assert "**Warning:** the machine was busy." in text
    assert "- netns: the machine was busy" in text
    assert "**nebula was not measured:** no Go" in text
    assert "tunnel mode" in text
    assert "| RTT idle, p50: dsvpn / wireguard-go | at most 0.6 x | 0.25 x | met |" in text
    assert (tmp_path / "report.md").read_text() == text


def test_a_file_that_holds_no_results_is_named(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    for content in ("[]", "{}", '{"kind": "netns"}', "no JSON"):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"other\.json holds no results"):
            report.write([file], tmp_path)


def test_every_kind_has_its_part(tmp_path: Path) -> None:
    text = report.write(sorted(_RESULTS.glob("*.json")), tmp_path)
    for heading in ("## Targets", "## netns", "## updates", "## allocations", "## micro", "## control"):
        assert heading in text
    assert "| dsvpn-uvloop / dsvpn | driven by the event loop against native workers |" in text
    assert "| TCP 1 stream there, Gb/s |" in text
    assert "compiled is faster by" in text
    assert "with 10 routes, 10 peers |" in text
    for image in ("tcp", "udp", "rtt", "cores"):
        assert (tmp_path / f"netns-{image}.png").stat().st_size < 60_000
    assert (tmp_path / "micro-memory.png").stat().st_size < 60_000


def test_published_page_keeps_its_text_and_changes_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n\n{report._BEGIN}\n\nold\n\n{report._END}\n\nafter\n")
    files = sorted(_RESULTS.glob("*.json"))
    report.publish(files, page)
    first = page.read_text()
    assert first.startswith("before\n")
    assert first.endswith("\nafter\n")
    assert "old" not in first
    assert "### Targets" in first
    for image in ("tcp", "udp", "rtt", "cores", "memory"):
        assert f"(performance/{image}.png)" in first
        assert (tmp_path / "performance" / f"{image}.png").stat().st_size < 60_000
    report.publish(files, page)
    assert page.read_text() == first


def test_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("mine\n")
    with pytest.raises(ValueError, match="between which results go"):
        report.publish([_RESULTS / "control.json"], page)
    assert page.read_text() == "mine\n"


def test_the_published_page_has_its_marks() -> None:
    page = Path(__file__).parents[2] / "docs" / "performance.md"
    assert page.read_text().count(report._BEGIN) == page.read_text().count(report._END) == 1


def test_a_newer_result_counts_and_a_full_one_before_a_quick_one() -> None:
    def made(time: str, plan: str) -> dict[str, Any]:
        return result({}, plan=plan, environment={**_ENVIRONMENT, "time": time})

    old, new = made("2026-01-01T00:00:00Z", "full"), made("2026-01-02T00:00:00Z", "full")
    quick = made("2026-01-03T00:00:00Z", "quick")
    control = json.loads((_RESULTS / "control.json").read_text())
    chosen = report.newest([quick, new, control, old])
    assert chosen == {"netns": new, "control": control}


def test_command_line_takes_the_page_before_the_files(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"{report._BEGIN}\n{report._END}\n")
    file = _RESULTS / "control.json"
    assert main(["report", "--output", str(tmp_path), "--publish", str(page), str(file)]) == 0
    assert "### Control plane" in page.read_text()
    assert main(["report", str(file), "--output", str(tmp_path)]) == 0
    assert (tmp_path / "report.md").exists()
