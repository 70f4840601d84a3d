"""`python -m bench quick|full|netns|micro|control|report`: run benchmarks and write their results."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bench import environment, report
from bench.control import wire
from bench.netns.suite import FULL, QUICK, Plan, play, reference
from bench.peers import registry
from bench.statistics import summarize
from dsvpn.errors import HostError
from dsvpn.lab.run import Run

#: Prefix of every namespace that a run makes.
PREFIX = "dsvpn-bench"


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, run, and give the exit status: 1 if a part failed. A missing contestant is a warning."""
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    try:
        if options.command == "report":
            return _report(options.files or sorted(output.glob("*.json")), output)
        environment.require_release(allow_debug=options.allow_debug)
        files: list[Path | None] = []
        if options.command in ("quick", "full", "netns"):
            files.append(_netns(options, output))
        if options.command in ("quick", "full", "micro"):
            files.append(_micro(output, quick=options.command == "quick"))
        if options.command in ("full", "control"):
            files.append(_control(output))
        return _report([file for file in files if file is not None], output) or int(None in files)
    except (HostError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; what it had made is taken down", file=sys.stderr)
        return 130


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").split(": ", 1)[1])
    parser.add_argument("command", choices=("quick", "full", "netns", "micro", "control", "report"))
    parser.add_argument("files", nargs="*", type=Path, help="report: results to show (default: all of --output)")
    parser.add_argument("--output", type=Path, default=environment.ROOT / "build" / "bench", help="where results go")
    parser.add_argument("--peers", help="contestants, separated by commas (default: all; quick: a few)")
    parser.add_argument("--rounds", type=int, help="rounds, the first of which is dropped")
    parser.add_argument("--allow-debug", action="store_true", help="measure a debug build nevertheless")
    return parser


def _save(output: Path, kind: str, found: dict[str, Any]) -> Path:
    file = output / f"{kind}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"results: {file}")
    return file


def _netns(options: argparse.Namespace, output: Path) -> Path:
    plan = QUICK if options.command == "quick" else FULL
    if options.rounds is not None:
        if options.rounds < 2:
            raise ValueError(f"--rounds {options.rounds}: the first is dropped, so it takes at least 2")
        plan = Plan(**{**{name: getattr(plan, name) for name in Plan.__slots__}, "rounds": options.rounds})
    names = tuple(options.peers.split(",")) if options.peers else (registry.QUICK if plan.name == "quick" else None)
    peers = registry.make(names)
    described = environment.describe()
    for warning in described["warnings"]:
        print(f"WARNING: {warning}")
    run = Run(PREFIX)
    run.open()
    try:
        outcome = play(run, peers, plan, lambda text: print(text, flush=True))
    finally:
        run.close()
    described["warnings"] += outcome.warnings
    against = reference(outcome)
    found = {
        "schema": 1,
        "kind": "netns",
        "plan": plan.name,
        "rounds": plan.rounds,
        "rounds_dropped": 1,
        "environment": described,
        "contestants": outcome.contestants,
        "reference": against,
        "samples": outcome.samples,
        "summary": summarize(outcome.samples, against),
    }
    return _save(output, f"netns-{plan.name}", found)


def _micro(output: Path, *, quick: bool) -> Path | None:
    described = environment.describe()
    raw = output / "micro-raw.json"
    raw.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "pytest", str(environment.ROOT / "bench" / "micro"), "-q", "--benchmark-disable-gc"]
    argv += [f"--benchmark-json={raw}", "--benchmark-columns=median,iqr", "-p", "no:cacheprovider"]
    argv += ["-m", "not slow", "--benchmark-max-time=0.05"] if quick else []
    done = subprocess.run(argv, cwd=environment.ROOT, check=False)
    if done.returncode != 0 or not raw.exists():
        print(f"bench: the micro benchmarks failed (pytest's status {done.returncode})", file=sys.stderr)
        return None
    rows = [
        {"name": row["name"], "group": row["group"], "seconds": row["stats"]["median"], **row["extra_info"]}
        for row in json.loads(raw.read_text())["benchmarks"]
    ]
    raw.unlink()
    return _save(output, "micro", {"schema": 1, "kind": "micro", "environment": described, "rows": rows})


def _control(output: Path) -> Path:
    found = {"schema": 1, "kind": "control", "environment": environment.describe(), **wire.measure()}
    return _save(output, "control", found)


def _report(files: list[Path], output: Path) -> int:
    if not files:
        print(f"bench: there are no results in {output}; run `python -m bench quick` first", file=sys.stderr)
        return 1
    text = report.write(files, output)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
