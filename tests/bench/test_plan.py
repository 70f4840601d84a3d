"""What is measured when."""

from __future__ import annotations

from dataclasses import replace

from bench.netns.suite import FULL, QUICK, SMOKE, Plan


def rounds(plan: Plan) -> list[int]:
    return [number for number in range(plan.rounds) if plan.measures_more(number)]


def test_more_is_never_measured_in_the_round_that_is_dropped() -> None:
    assert rounds(FULL) == [2, 4]
    assert rounds(QUICK) == []
    assert rounds(SMOKE) == [1]
    assert rounds(replace(FULL, rounds=2)) == [1]
