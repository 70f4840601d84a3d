"""docs/interoperability.md from the results of a run: `python -m tests.interop.report [RESULTS] [FILE]`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import dsvpn
from tests.interop.packages import cache
from tests.interop.results import PEERS

_ROOT = Path(__file__).parents[2]
_DIRECTIONS = {"ours": "we call", "theirs": "they call", "": ""}

_HEAD = """\
# Interoperability

What works with implementations that are not ours, as a run of {date} found it. This page is made from the run: do not
edit it. To repeat it, as root, on Debian 12 with 2 GB of memory to spare:

    make test-interop        # downloads the peers' packages once; a quarter of an hour on two quiet cores
    make interop-report      # writes this page from build/interop/results.json

**How.** Each peer runs in a User-Mode Linux guest with the ESP and the GRE of the Linux kernel, behind two routers that
can be NAT boxes; `dsvpn up` runs in a network namespace as it does anywhere. The boxes let the calls of one end
through alone, so that it is known who is the initiator ("we call": dsvpn is). Nearly every row ends with pings of two
sizes from both ends through GRE over ESP, every one of them answered, while the routers count that nothing but ESP (or
ESP in UDP) crosses. Where traffic goes on during a rekey, 50 pings a second go each way meanwhile and none may be lost.
A ping without an answer fails the test with every drop counter on the way that has risen. [Testing](testing.md) says
where the code is.

**Words.** "yes": the test passed. "not tested": it was skipped; the reason is at the end. An empty field: the run has
no such test.

| who | version |
|---|---|
{versions}

{passed} of {tests} tests passed, {failed} failed, {skipped} were skipped.
"""

_NOTES = """\

## Why not

{notes}

## What is not tested

- nhrpd's own use of IPsec (`tunnel protection vici`): it needs a strongSwan with FRR's patches, which no distribution
  has. strongSwan with policies of its own for GRE does without, and is tested.
- IKEv1: dsvpn does not have it (RFC 9395).
- Crash tokens (RFC 6290) from a peer: strongSwan has none. Between dsvpn's own gateways they are tested.
"""


def _versions(entries: list[dict[str, Any]], used: list[str]) -> dict[str, str]:
    """What ran, by name."""
    found = {entry["release"]: entry["version"] for entry in entries if entry["version"]}
    versions = {"dsvpn": dsvpn.__version__}
    for release in used:
        versions[PEERS[release]] = found.get(release, "") or (_frr_version() if release == "frr" else "")
    if kernel := _said(["linux.uml", "--version"]):
        versions["Linux of the guests: ESP and GRE of the peers"] = kernel
    return versions


def _frr_version() -> str:
    root = cache() / "frr"
    libraries = root / "usr/lib/x86_64-linux-gnu"
    environment = {"LD_LIBRARY_PATH": f"{libraries}:{libraries / 'frr'}"}
    return _said([str(root / "usr/lib/frr/nhrpd"), "--version"], environment).removeprefix("nhrpd version ")


def _said(argv: list[str], environment: dict[str, str] | None = None) -> str:
    """The first line that a program prints; empty without it."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.partition("\n")[0].strip()


def markdown(results: dict[str, Any]) -> str:
    """The page."""
    entries = sorted(results.values(), key=lambda entry: entry["place"])
    dates = sorted({entry["date"] for entry in entries})
    outcomes = [entry["outcome"] for entry in entries]
    used = [release for release in PEERS if any(entry["release"] == release for entry in entries)]
    versions = _versions(entries, used)
    labels = {release: f"{PEERS[release].split()[0]} {versions[PEERS[release]]}".strip() for release in used}
    text = _HEAD.format(
        date=" to ".join(dict.fromkeys((dates[0], dates[-1]))),
        versions="\n".join(f"| {who} | {version} |" for who, version in versions.items()),
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
    return text + _NOTES.format(notes="\n".join(notes) or "- Nothing was refused or skipped.")


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
