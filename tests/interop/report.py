"""docs/interoperability.md from the results of a run: `python -m tests.interop.report [RESULTS] [FILE]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.interop.results import PEERS

_ROOT = Path(__file__).parents[2]
_DIRECTIONS = {"ours": "we call", "theirs": "they call", "": ""}

_HEAD = """\
# Interoperability

What `make test-interop` found on {date}. This page is made of the run by `make interop-report`; do not edit it.

Each peer runs in a User-Mode Linux guest with the Linux kernel's own ESP and GRE, at the other end of two routers that
can be NAT boxes. `dsvpn up` runs as it does anywhere. Nearly every row ends with pings of two sizes from both ends
through GRE over ESP, all of them answered, while the routers count that nothing but ESP (or ESP in UDP) crosses.
"We call": dsvpn is the initiator of the IKE SA.

| peer | version |
|---|---|
{versions}

{passed} of {tests} tests passed, {failed} failed, {skipped} were skipped.
"""

_NOTES = """\

## What does not work, and why

{notes}
"""


def markdown(results: dict[str, Any]) -> str:
    """The page."""
    entries = sorted(results.values(), key=lambda entry: entry["place"])
    dates = sorted({entry["date"] for entry in entries})
    outcomes = [entry["outcome"] for entry in entries]
    found = {entry["release"]: entry["version"] for entry in entries if entry["version"]}
    used = [release for release in PEERS if any(entry["release"] == release for entry in entries)]
    versions = "\n".join(f"| {PEERS[release]} | {found.get(release, '')} |" for release in used)
    labels = {release: found.get(release, PEERS[release]) for release in used}
    text = _HEAD.format(
        date=" to ".join(dict.fromkeys((dates[0], dates[-1]))),
        versions=versions,
        tests=len(entries),
        passed=outcomes.count("passed"),
        failed=outcomes.count("failed"),
        skipped=outcomes.count("skipped"),
    )
    for group in dict.fromkeys(entry["group"] for entry in entries):
        of_group = [entry for entry in entries if entry["group"] == group]
        columns = list(dict.fromkeys((e["release"], e["direction"]) for e in of_group))
        columns.sort(key=lambda column: (used.index(column[0]), column[1]))
        heads = [", ".join(filter(None, (labels[release], _DIRECTIONS[who]))) for release, who in columns]
        text += f"\n## {group}\n\n| | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}\n"
        for row in dict.fromkeys(entry["row"] for entry in of_group):
            cells = [_cell([e for e in of_group if e["row"] == row and _column(e) == column]) for column in columns]
            text += f"| {row} | {' | '.join(cells)} |\n"
    notes = dict.fromkeys(f"- {e['group']}, {e['row']}: {e['note']}" for e in entries if e["note"])
    return text + (_NOTES.format(notes="\n".join(notes)) if notes else "")


def _column(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["release"], entry["direction"]


def _cell(entries: list[dict[str, Any]]) -> str:
    outcomes = {entry["outcome"] for entry in entries}
    for outcome, word in (("failed", "**failed**"), ("skipped", "not tested"), ("passed", "yes")):
        if outcome in outcomes:
            return word
    return ""


def main(arguments: list[str]) -> int:
    """Write the page."""
    source = Path(arguments[0]) if arguments else _ROOT / "build" / "interop" / "results.json"
    target = Path(arguments[1]) if len(arguments) > 1 else _ROOT / "docs" / "interoperability.md"
    if not source.exists():
        print(f"{source} is missing: run `make test-interop` first", file=sys.stderr)
        return 1
    target.write_text(markdown(json.loads(source.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
