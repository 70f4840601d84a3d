"""The benchmark of a hub's NHRP, on a small scale."""

from __future__ import annotations

from typing import Any

import pytest

from bench import report
from bench.control import nhrp
from bench.targets import Verdict, verdicts


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return {"kind": "nhrp", **nhrp.figures(rounds=1, packets=40, sizes=(10, 40))}


def test_every_figure_is_there(result: dict[str, Any]) -> None:
    assert {(row["case"], row["spokes"]) for row in result["rows"]} == {
        (case, spokes) for case in ("registration", "resolution") for spokes in (10, 40)
    }
    assert all(0 < row["p50"] <= row["p99"] for row in result["rows"])
    assert 500 < result["memory_per_spoke"] < 20_000


def test_the_hub_knows_everybody() -> None:
    hub = nhrp.registered(20)
    snapshot = hub.engine.snapshot(hub.now)
    assert {mapping.holder for mapping in snapshot.mappings} == {f"spoke{n}.example.net" for n in range(20)}
    assert snapshot.denials == ()


def test_targets(result: dict[str, Any]) -> None:
    found = {verdict.figure: verdict for verdict in verdicts({"nhrp": result | {"growth": {"registration": 1.3}}})}
    assert found["cost of one registration, 10,000 spokes / 100"].met is False
    assert found["cost of one resolution, 10,000 spokes / 100"].met is None
    memory = found["memory of the hub's NHRP for one spoke"]
    assert memory == Verdict(memory.figure, "at most 5 kB", memory.measured, True)


def test_report(result: dict[str, Any]) -> None:
    text = "\n".join(report._BODIES["nhrp"](result))
    assert "| registration | 40 |" in text
    assert "octets of the hub's NHRP" in text
