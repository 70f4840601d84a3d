from __future__ import annotations

import json

import pytest
import structlog

from dsvpn.observe.log import configure_log


def test_json_lines_carry_level_event_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_log("info", "json")
    log = structlog.get_logger("dsvpn")
    log.debug("not told")
    log.warning("10.0.0.12 is silent", name="nhs_down", tries=3)
    try:
        raise ValueError("odd")
    except ValueError:
        log.exception("unexpected")
    first, second = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert first.pop("timestamp").endswith("Z")
    assert first == {"level": "warning", "event": "10.0.0.12 is silent", "name": "nhs_down", "tries": 3}
    assert "ValueError: odd" in second["exception"]


def test_console_lines_are_single_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_log("warning", "console")
    log = structlog.get_logger("dsvpn")
    log.info("not told")
    log.warning("10.0.0.12 is silent", name="nhs_down")
    (line,) = capsys.readouterr().err.splitlines()
    assert "10.0.0.12 is silent" in line
    assert "name=nhs_down" in line
