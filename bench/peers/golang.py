"""Programs built from Go modules: the newest version that the module proxy gives and the installed Go builds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dsvpn.errors import HostError
from dsvpn.lab.run import command

#: Versions that are tried, newest first, before giving up.
_TRIES = 5
_BUILD_SECONDS = 900.0


def cache() -> Path:
    """Where built programs are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dsvpn-bench"


@dataclass(frozen=True, slots=True)
class Built:
    """A built module. `skipped` lists newer versions and why they are not the one."""

    directory: Path
    version: str
    go: str
    skipped: tuple[str, ...]

    def program(self, name: str) -> str:
        """Path of one of its programs."""
        return str(self.directory / name)


def install(module: str, packages: tuple[str, ...]) -> Built:
    """Build `packages` (paths below `module`, "" for itself) unless the cache has them. HostError says why not.

    The Go toolchain is the installed one: a module that asks for a newer one is skipped for its predecessor.
    """
    directory = cache() / re.sub(r"[^a-z0-9.]+", "-", module)
    note = directory / "built.json"
    if note.exists():
        known = json.loads(note.read_text())
        return Built(directory, known["version"], known["go"], tuple(known["skipped"]))
    go = shutil.which("go")
    if go is None:
        raise HostError(f"Go is needed to build {module} and not installed")
    directory.mkdir(parents=True, exist_ok=True)
    skipped: list[str] = []
    for version in _versions(go, module)[:_TRIES]:
        wanted = [f"{module}{'/' + package if package else ''}@{version}" for package in packages]
        environment = os.environ | {"GOBIN": str(directory)}
        done = subprocess.run(
            [go, "install", *wanted],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_BUILD_SECONDS,
            check=False,
        )
        if done.returncode == 0:
            toolchain = command([go, "env", "GOVERSION"]).strip()
            note.write_text(json.dumps({"version": version, "go": toolchain, "skipped": skipped}))
            return Built(directory, version, toolchain, tuple(skipped))
        skipped.append(f"{version} {_reason(done.stderr)}")
    raise HostError(f"no version of {module} could be built; " + "; ".join(skipped))


def _reason(said: str) -> str:
    """Why a version did not build, without the paths and hosts that Go's message has."""
    if wanted := re.search(r"requires (go >= [\d.]+)", said):
        return f"requires {wanted[1]}"
    if refused := re.search(r"(\S+@v\S+): reading \S+: (\d{3} [A-Za-z ]+)", said):
        return f"needs {refused[1]}, which the module proxy refuses ({refused[2].strip()})"
    return "does not build"


def _versions(go: str, module: str) -> list[str]:
    """Newest first. A module without tags has its latest commit alone."""
    tagged = command([go, "list", "-m", "-versions", f"{module}@latest"], timeout=120).split()[1:]
    releases = [version for version in tagged if "-" not in version]
    if releases:
        return releases[::-1]
    return [command([go, "list", "-m", f"{module}@latest"], timeout=120).split()[1]]
