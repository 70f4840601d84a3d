"""What a run found: one entry for each test, from which `report` makes the table."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

#: What the peers are called in the table, by the parameter of the fixture `lab`.
PEERS = {"bookworm": "strongSwan of Debian 12", "trixie": "strongSwan of Debian 13", "forky": "strongSwan of Debian 14"}


@dataclass(frozen=True, slots=True)
class Entry:
    """The outcome of a test: "passed", "failed" or "skipped". `direction` is who called, "" if that is no question."""

    group: str
    row: str
    release: str
    direction: str
    outcome: str
    note: str
    seconds: float


@dataclass(slots=True)
class Results:
    """The entries of a session and the versions of the peers, by release."""

    versions: dict[str, str] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)

    def add(self, item: pytest.Function, report: pytest.TestReport) -> None:
        """Take the outcome of a test that has a `feature` mark; its name may use the test's parameters."""
        mark = item.get_closest_marker("feature")
        if mark is None:
            return
        callspec = getattr(item, "callspec", None)
        values = {} if callspec is None else dict(callspec.params)
        group, row = mark.args
        note = next((str(value) for name, value in item.user_properties if name == "note"), "")
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            note = report.longrepr[2].removeprefix("Skipped: ")
        self.entries[item.nodeid] = Entry(
            group,
            row.format(**values),
            str(values.get("lab", "")),
            str(values.get("initiator", "")),
            report.outcome,
            note,
            round(report.duration, 1),
        )

    def write(self, file: Path) -> None:
        """Write all of it, as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        entries = [asdict(entry) for entry in self.entries.values()]
        text = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "versions": self.versions, "entries": entries}
        file.write_text(json.dumps(text, indent=1) + "\n")
