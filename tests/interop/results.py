"""What a run found: one entry for each test, from which `report` makes the table."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

#: What the peers are called in the table, by the parameter of the fixture `lab`.
PEERS = {
    "bookworm": "strongSwan of Debian 12",
    "trixie": "strongSwan of Debian 13",
    "forky": "strongSwan of Debian 14",
    "frr": "FRR of Debian 12",
}


#: Name of the property of a test's report that carries its entry from process to process.
PROPERTY = "interoperability"


def entry_of(item: pytest.Function, report: pytest.TestReport, version: str) -> dict[str, Any] | None:
    """What to remember of a test that has a `feature` mark, whose text may use the test's parameters.

    `place` orders the rows; `direction` is who called, "" if that is no question; `outcome` is "passed", "failed" or
    "skipped".
    """
    mark = item.get_closest_marker("feature")
    if mark is None:
        return None
    callspec = getattr(item, "callspec", None)
    values = {} if callspec is None else dict(callspec.params)
    group, row = mark.args
    note = next((str(value) for name, value in item.user_properties if name == "note"), "")
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        note = report.longrepr[2].removeprefix("Skipped: ")
    indices = {} if callspec is None else dict(callspec.indices)
    return {
        # Where its row stands among the others: as the tests stand in their files.
        "place": [
            item.path.name,
            item.function.__code__.co_firstlineno,
            *(index for name, index in sorted(indices.items()) if name not in ("lab", "initiator")),
        ],
        "group": group,
        "row": row.format(**values),
        "release": str(values.get("lab", "frr")),
        "direction": str(values.get("initiator", "")),
        "outcome": report.outcome,
        "note": note,
        "seconds": round(report.duration, 1),
        "version": version,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


@dataclass(slots=True)
class Results:
    """The entries of a session, by test."""

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, test: str, entry: dict[str, Any]) -> None:
        """Take the outcome of a test. What fails behind its call has failed."""
        self.entries[test] = entry

    def write(self, file: Path) -> None:
        """Write all of it, as JSON, over what earlier runs found of the same tests."""
        file.parent.mkdir(parents=True, exist_ok=True)
        known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(known | self.entries, indent=1) + "\n")
