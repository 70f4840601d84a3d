"""The bench of the control plane: its initiators against a dsvpn gateway, its verdicts and its page."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.control import storm
from bench.control.bed import SUITES, ControlBed
from bench.control.handshakes import start, turn
from bench.control.responders import Dsvpn, Secrets
from bench.targets import verdicts
from dsvpn.lab.run import Run

_CASE = "ECDSA, X25519, ML-KEM-768"


def found(ours: float, theirs: float) -> dict[str, Any]:
    samples = {
        figure: {f"dsvpn, {_CASE}": [ours, ours], f"charon-14, {_CASE}": [theirs, theirs]}
        for figure in ("per_processor_second", "per_second", "latency_seconds")
    }
    versions = {"dsvpn": "dsvpn up, 1", "charon-14": "strongSwan, 6"}
    return {
        "rows": [],
        "handshakes": {"samples": samples, "missing": {"charon, PSK, X25519": "none"}, "versions": versions},
    }


@pytest.mark.parametrize(("ours", "met"), [(100.0, True), (99.0, False)])
def test_handshakes_are_judged_against_the_same_case(ours: float, met: bool) -> None:
    judged = [verdict for verdict in verdicts({"control": found(ours, 100.0)}) if "handshakes" in verdict.figure]
    assert len(judged) > len(SUITES)
    assert [verdict.met for verdict in judged if _CASE in verdict.figure] == [met]
    assert {verdict.met for verdict in judged if _CASE not in verdict.figure} == {None}


def test_the_page_says_what_is_missing() -> None:
    text = "\n".join(report._control(found(50.0, 100.0)))
    assert "| 0.50 |" in text
    assert "**charon, PSK, X25519 was not measured:** none" in text


def test_a_storm_ends_with_everybody_registered() -> None:
    found = storm.simulate(30, 0.5)
    assert 0.5 <= found["seconds"] < storm.PATIENCE
    assert found["work"]["NHRP"]["count"] >= 30
    assert found["work"]["IKE"]["count"] >= 60
    assert 0 < found["wait_p50_seconds"] <= found["wait_p99_seconds"]
    assert found["ike"]["half_open"] == 0
    text = "\n".join(report._storms([found]))
    assert "| 0.5 |" in text


@pytest.mark.parametrize(("seconds", "met"), [(59.9, True), (60.1, False)])
def test_a_rush_is_over_within_a_minute(seconds: float, met: bool) -> None:
    result = {"rows": [], "storms": [{"spread_seconds": 1.0, "spokes": 10_000, "seconds": seconds}]}
    judged = {
        verdict.figure: verdict.met for verdict in verdicts({"control": result}) if "spokes return" in verdict.figure
    }
    assert sorted(judged.values(), key=str) == sorted([met, None], key=str)


@pytest.mark.root
@pytest.mark.netns
def test_initiators_bring_up_a_gateway(tmp_path: Path) -> None:
    run = Run("dsvpn-test-control")
    run.open()
    try:
        with ExitStack() as stack:
            secrets = Secrets(tmp_path / "secrets")
            one = start(stack, ControlBed(run, "bed"), secrets, Dsvpn(), _CASE)
            assert turn(one, 5)["per_processor_second"] > 0
            assert one.initiators("connect", count=3, in_flight=2)["up"] == 3
            for step in ("rekey_children", "rekey_ike_sas"):
                assert one.initiators(step, in_flight=2)["count"] == 3
            assert one.initiators("disconnect", in_flight=2)["up"] == 0
    finally:
        run.close()
