"""The counters' names and their documentation are one list."""

from __future__ import annotations

import re
from pathlib import Path

from dsvpn_native import Dataplane

_DOCUMENT = Path(__file__).parents[2] / "docs" / "data-plane.md"


def test_every_counter_is_documented_and_no_other() -> None:
    dataplane = Dataplane()
    counters = {*dataplane.counters(), *dataplane.kernel_drops()}
    rows = [line.split("|")[1] for line in _DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert documented == counters


def test_nothing_is_dropped_where_nothing_is_open() -> None:
    dataplane = Dataplane()
    assert set(dataplane.kernel_drops().values()) == {0}
    assert dataplane.offloads() == {"UDP GSO self-test": "not done: UDP GSO is off"}
