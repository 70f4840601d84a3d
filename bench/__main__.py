"""`python -m bench COMMAND`: run benchmarks, write their results and make a report of them. See bench/README.md."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bench import environment, null_native, report
from bench.control import flood, handshakes, held, storm, wire
from bench.netns import allocations, updates
from bench.netns.suite import FULL, QUICK, SMOKE, play, reference
from bench.peers import registry
from bench.statistics import summarize
from dsvpn.errors import HostError
from dsvpn.lab.run import Run

#: Prefix of every namespace that a run makes.
PREFIX = "dsvpn-bench"


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, run, and give the exit status: 1 if a part failed. A missing contestant is a warning."""
    # Intermixed: files may stand behind options.
    options = _parser().parse_intermixed_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    try:
        if options.command == "report":
            return _report(options, output)
        if options.command == "build":
            null_native.build()
            return 0
        environment.require_release(allow_debug=options.allow_debug)
        made = [_step(step, options, output) for step in _COMMANDS[options.command]]
        options.files = [file for file in made if file is not None]
        return _report(options, output) or int(None in made)
    except (HostError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; what it had made is taken down", file=sys.stderr)
        return 130


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Run benchmarks, write their results and make a report of them."
    )
    parser.add_argument("command", choices=(*_COMMANDS, "report", "build"))
    parser.add_argument("files", nargs="*", type=Path, help="report: results to show (default: all of --output)")
    parser.add_argument("--output", type=Path, default=environment.ROOT / "build" / "bench", help="where results go")
    parser.add_argument("--publish", type=Path, metavar="PAGE", help="report: put the newest results into this page")
    parser.add_argument("--peers", help="contestants, separated by commas (default: all; quick: a few)")
    parser.add_argument("--rounds", type=int, help="rounds, the first of which is dropped")
    parser.add_argument("--seconds", type=int, help="seconds of one TCP stream")
    parser.add_argument("--allow-debug", action="store_true", help="measure a debug build nevertheless")
    return parser


def _save(output: Path, kind: str, found: dict[str, Any]) -> Path:
    file = output / f"{kind}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"results: {file}")
    return file


def _step(name: str, options: argparse.Namespace, output: Path) -> Path | None:
    """One kind of benchmark. What fails is said, and the others go on."""
    try:
        return _STEPS[name](options, output)
    except (HostError, OSError) as error:
        print(f"bench: {name} failed: {error}", file=sys.stderr)
        return None


def _say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def _run() -> Iterator[Run]:
    run = Run(PREFIX)
    run.open()
    try:
        yield run
    finally:
        run.close()


def _netns(options: argparse.Namespace, output: Path) -> Path:
    plan = _PLANS.get(options.command, FULL)
    if options.rounds is not None:
        if options.rounds < 2:
            raise ValueError(f"--rounds {options.rounds}: the first is dropped, so it takes at least 2")
        plan = replace(plan, rounds=options.rounds)
    if options.seconds is not None:
        if options.seconds < 1:
            raise ValueError(f"--seconds {options.seconds}: a stream takes at least 1")
        plan = replace(plan, tcp_seconds=options.seconds)
    names = tuple(options.peers.split(",")) if options.peers else (registry.QUICK if plan.name == "quick" else None)
    peers = registry.make(names)
    described = environment.describe()
    for warning in described["warnings"]:
        print(f"WARNING: {warning}")
    with _run() as run:
        outcome = play(run, peers, plan, _say)
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


def _updates(options: argparse.Namespace, output: Path) -> Path:
    described = environment.describe()
    smoke = options.command == "smoke"
    rounds, seconds = options.rounds or (2 if smoke else 9), options.seconds or (1 if smoke else 3)
    with _run() as run:
        found = updates.measure(run, rounds=rounds, seconds=seconds, say=_say)
    return _save(output, "updates", {"schema": 1, "kind": "updates", "environment": described, **found})


def _allocations(options: argparse.Namespace, output: Path) -> Path:
    described = environment.describe()
    with _run() as run:
        found = allocations.measure(run, seconds=options.seconds or 2, say=_say)
    return _save(output, "allocations", {"schema": 1, "kind": "allocations", "environment": described, **found})


def _micro(options: argparse.Namespace, output: Path) -> Path | None:
    quick = options.command in ("quick", "smoke")
    described = environment.describe()
    raw = output / "micro.pytest-benchmark"
    raw.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "pytest", str(environment.ROOT / "bench" / "micro"), "-q", "--benchmark-disable-gc"]
    argv += [f"--benchmark-json={raw}", "--benchmark-columns=median,iqr", "-p", "no:cacheprovider"]
    argv += ["-m", "not slow", "--benchmark-max-time=0.05"] if quick else []
    done = subprocess.run(argv, cwd=environment.ROOT, check=False)
    if done.returncode != 0 or not raw.exists():
        print(f"bench: the micro benchmarks failed (pytest's status {done.returncode})", file=sys.stderr)
        return None
    rows = [
        {
            "name": row["name"],
            "group": row["group"],
            "seconds": row["stats"]["median"],
            "fastest_seconds": row["stats"]["min"],
            **row["extra_info"],
        }
        for row in json.loads(raw.read_text())["benchmarks"]
    ]
    raw.unlink()
    return _save(output, "micro", {"schema": 1, "kind": "micro", "environment": described, "rows": rows})


def _control(options: argparse.Namespace, output: Path) -> Path:
    smoke = options.command == "smoke"
    compiled = wire.build()
    found = {"schema": 1, "kind": "control", "environment": environment.describe(), **wire.measure(compiled)}
    with _run() as run:
        rounds = options.rounds or (2 if smoke else 6)
        count = 40 if smoke else handshakes.COUNT
        found["handshakes"] = handshakes.measure(run, rounds=rounds, say=_say, compiled=compiled, count=count)
        found["held"] = held.measure(run, say=_say, compiled=compiled, peers=300 if smoke else held.PEERS)
        seconds = 2 if smoke else flood.SECONDS
        found["flood"] = flood.measure(run, say=_say, compiled=compiled, rate=flood.RATE, seconds=seconds)
    found["storms"] = storm.measure(compiled, _say, 200 if smoke else storm.SPOKES)
    return _save(output, "control", found)


def _nhrp(options: argparse.Namespace, output: Path) -> Path:
    from bench.control import nhrp

    rounds, packets = (1, 500) if options.command == "smoke" else (options.rounds or 5, nhrp.PACKETS)
    found = nhrp.measure(wire.build(), rounds, packets)
    return _save(output, "nhrp", {"schema": 1, "kind": "nhrp", "environment": environment.describe(), **found})


def _report(options: argparse.Namespace, output: Path) -> int:
    files = options.files or sorted(output.glob("*.json"))
    if not files:
        print(f"bench: there are no results in {output}; run `python -m bench quick` first", file=sys.stderr)
        return 1
    if options.publish is not None:
        report.publish(files, options.publish)
        print(f"results are in {options.publish}")
    else:
        print(report.write(files, output))
    return 0


_PLANS = {plan.name: plan for plan in (QUICK, FULL, SMOKE)}
_STEPS: dict[str, Callable[[argparse.Namespace, Path], Path | None]] = {
    "netns": _netns,
    "updates": _updates,
    "allocations": _allocations,
    "micro": _micro,
    "nhrp": _nhrp,
    "control": _control,
}
_COMMANDS = {
    "quick": ("netns", "allocations", "micro"),
    "full": tuple(_STEPS),
    "smoke": tuple(_STEPS),
    **{step: (step,) for step in _STEPS},
}


if __name__ == "__main__":
    sys.exit(main())
