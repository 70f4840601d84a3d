"""The report of the lab: what failed is what it says failed."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from dsvpn.lab.report import Report


def test_failures_are_told_apart_from_figures(tmp_path: Path) -> None:
    output = io.StringIO()
    report = Report(Console(file=output, width=100))
    assert report.check("it works", True, "3 of 3")
    assert not report.check("it is fast", False, "0.1 Gb/s [slow]")
    report.note("RTT", "1 ms")
    report.figures["rtt_seconds"] = 0.001
    assert [check.name for check in report.failed] == ["it is fast"]
    report.print_table()
    assert "0.1 Gb/s [slow]" in output.getvalue()
    assert "1 of 2 checks failed" in output.getvalue()
    report.write_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == {
        "checks": [
            {"name": "it works", "passed": True, "found": "3 of 3"},
            {"name": "it is fast", "passed": False, "found": "0.1 Gb/s [slow]"},
            {"name": "RTT", "passed": None, "found": "1 ms"},
        ],
        "figures": {"rtt_seconds": 0.001},
    }


def test_figures_alone_are_no_verdict() -> None:
    output = io.StringIO()
    report = Report(Console(file=output, width=100))
    report.check("it works", True, "yes")
    report.note("RTT", "1 ms")
    report.print_table()
    assert not report.failed
    assert "all 1 checks passed" in output.getvalue()
