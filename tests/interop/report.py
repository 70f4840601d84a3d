"""docs/interoperability.md from the results of a run: `python -m tests.interop.report [RESULTS] [FILE]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.interop.results import PEERS

_ROOT = Path(__file__).parents[2]
_DIRECTIONS = {"ours": "we call", "theirs": "they call", "": "runs"}

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
    entries = results["entries"]
    outcomes = [entry["outcome"] for entry in entries]
    labels = {release: _label(release, results["versions"]) for release in PEERS}
    used = [release for release in (*PEERS, "") if any(entry["release"] == release for entry in entries)]
    versions = "\n".join(f"| {PEERS[r]} | {results['versions'].get(r, '?')} |" for r in used if r in PEERS)
    if "" in used and "frr" in results["versions"]:
        versions += f"\n| FRR of Debian 12 | {results['versions']['frr']} |"
    text = _HEAD.format(
        date=results["date"],
        versions=versions,
        tests=len(entries),
        passed=outcomes.count("passed"),
        failed=outcomes.count("failed"),
        skipped=outcomes.count("skipped"),
    )
    for group in dict.fromkeys(entry["group"] for entry in entries):
        of_group = [entry for entry in entries if entry["group"] == group]
        columns = list(dict.fromkeys((e["release"], e["direction"]) for e in of_group))
        columns.sort(key=lambda column: (list(PEERS).index(column[0]) if column[0] in PEERS else 9, column[1]))
        heads = [f"{labels.get(release, 'FRR')}, {_DIRECTIONS[who]}" for release, who in columns]
        text += f"\n## {group}\n\n| | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}\n"
        for row in dict.fromkeys(entry["row"] for entry in of_group):
            cells = [_cell([e for e in of_group if e["row"] == row and _column(e) == column]) for column in columns]
            text += f"| {row} | {' | '.join(cells)} |\n"
    notes = dict.fromkeys(f"- {e['group']}, {e['row']}: {e['note']}" for e in entries if e["note"])
    return text + (_NOTES.format(notes="\n".join(notes)) if notes else "")


def _column(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["release"], entry["direction"]


def _label(release: str, versions: dict[str, str]) -> str:
    return versions.get(release, PEERS[release])


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
