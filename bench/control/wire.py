"""dsvpn/wire compiled against interpreted, in turn, on recorded packets."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.environment import ROOT
from dsvpn.errors import HostError
from dsvpn.lab.run import command

_ROUNDS = 3
_WORKER = Path(__file__).with_name("wire_worker.py")
_BUILD_SECONDS = 900.0


def build() -> Path:
    """Compile dsvpn/wire into build/bench/compiled, as `make setup` compiles it. HostError says what went wrong."""
    target = ROOT / "build" / "bench" / "compiled"
    environment = {name: value for name, value in os.environ.items() if name != "DSVPN_PURE"}
    argv = [sys.executable, "setup.py", "-q", "build", "--build-base", str(target.parent / "setuptools")]
    done = subprocess.run(
        [*argv, "--build-lib", str(target)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise HostError(f"dsvpn/wire does not compile: {done.stderr.strip()[-300:]}")
    return target


def measure(compiled: Path) -> dict[str, Any]:
    """Medians per packet, in seconds: "rows" of "case", "interpreted" and "compiled". `compiled`: from `build`."""
    paths = {"interpreted": ROOT, "compiled": compiled}
    times: dict[str, dict[str, list[float]]] = {}
    for _ in range(_ROUNDS):
        for kind, path in paths.items():
            # -P: not the working directory, which holds the interpreted sources.
            argv = ["env", f"PYTHONPATH={path}", sys.executable, "-P", str(_WORKER), str(ROOT / "tests" / "vectors")]
            found = json.loads(command(argv, timeout=120))
            if found["compiled"] != (kind == "compiled"):
                raise HostError(f"the {kind} run loaded {found['file']}")
            for case, seconds in found["seconds"].items():
                times.setdefault(case, {}).setdefault(kind, []).append(seconds)
    rows = [{"case": case, **{kind: statistics.median(values) for kind, values in by_kind.items()}}
            for case, by_kind in times.items()]  # fmt: skip
    return {"rows": rows}
