"""Medians and ratios of the benchmarks."""

from __future__ import annotations

from bench.statistics import summarize


def test_median_spread_and_ratio_within_rounds() -> None:
    # Within the rounds: 3, 2 and 2.5.
    summary = summarize({"rate": {"ours": [30.0, 10.0, 20.0], "theirs": [10.0, 5.0, 8.0]}}, "theirs")
    ours = summary["rate"]["ours"]
    assert (ours["median"], ours["mad"], ours["count"]) == (20.0, 10.0, 3.0)
    assert ours["ratio"] == 2.5
    assert summary["rate"]["theirs"]["ratio"] == 1.0


def test_round_without_value_counts_for_nothing() -> None:
    summary = summarize({"rate": {"ours": [None, 12.0], "theirs": [3.0, 4.0], "none": [None, None]}}, "theirs")
    assert summary["rate"]["ours"]["ratio"] == 3.0
    assert summary["rate"]["ours"]["count"] == 1.0
    assert "none" not in summary["rate"]


def test_no_ratio_without_reference() -> None:
    assert "ratio" not in summarize({"rate": {"ours": [1.0]}}, None)["rate"]["ours"]
    assert "ratio" not in summarize({"rate": {"ours": [1.0]}}, "theirs")["rate"]["ours"]
