"""Where and with what a result was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dsvpn.errors import HostError
from dsvpn.lab.run import command

ROOT = Path(__file__).parent.parent
#: Share of the machine that others may use before a run counts as disturbed.
BUSY_LIMIT = 0.05


def commit() -> str:
    """The checkout's commit, with "+" when files differ from it."""
    try:
        name = command(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]).strip()
        changed = command(["git", "-C", str(ROOT), "status", "--porcelain"]).strip()
    except HostError:
        return "unknown"
    return name + ("+" if changed else "")


def cpu_model() -> str:
    """The processor by name; where a hypervisor hides it, family and model number."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name", "unknown")
    return f"{name} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds since boot that all cores together spent busy, idle and stolen by the hypervisor."""

    busy: float
    idle: float
    stolen: float

    @classmethod
    def read(cls) -> CpuTimes:
        """The times at this moment."""
        ticks = os.sysconf("SC_CLK_TCK")
        values = [int(text) / ticks for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        user, nice, system, idle, iowait, irq, softirq, steal = values
        return cls(user + nice + system + irq + softirq, idle + iowait, steal)

    def since(self, earlier: CpuTimes) -> CpuTimes:
        """What was spent between two readings."""
        return CpuTimes(self.busy - earlier.busy, self.idle - earlier.idle, self.stolen - earlier.stolen)


def busy_share(seconds: float = 1.0) -> float:
    """Share of all cores that is in use or stolen while this process sleeps for `seconds`."""
    before = CpuTimes.read()
    time.sleep(seconds)
    spent = CpuTimes.read().since(before)
    total = spent.busy + spent.idle + spent.stolen
    return (spent.busy + spent.stolen) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Native:
    """The data plane under test. `missing` says why there is none."""

    profile: str | None
    version: str | None
    aead: str | None
    missing: str | None
    older_than_sources: bool = False


def native() -> Native:
    """What `dsvpn_native` says about itself."""
    try:
        import dsvpn_native

        made = max(file.stat().st_mtime for file in Path(dsvpn_native.__file__).parent.glob("*.so"))
        older = any(file.stat().st_mtime > made for file in (ROOT / "native").glob("*/src/**/*.rs"))
        backend = dsvpn_native.Dataplane().aead_backend
        return Native(dsvpn_native.BUILD_PROFILE, dsvpn_native.__version__, backend, None, older)
    except (ImportError, AttributeError, OSError, ValueError) as error:
        return Native(None, None, None, f"dsvpn_native: {error}")


def python(*first: Path) -> list[str]:
    """The beginning of a command that runs Python with the modules of `first`, this checkout, and the `dsvpn` and the
    `dsvpn_native` of this process."""
    import dsvpn

    path = [*first, ROOT, Path(dsvpn.__file__).parent.parent]
    if (found := find_spec("dsvpn_native")) is not None and found.origin is not None:
        path.append(Path(found.origin).parent.parent)
    return ["env", f"PYTHONPATH={os.pathsep.join(dict.fromkeys(map(str, path)))}", sys.executable, "-P"]


def interpreter() -> str:
    """Python's version, and whether it lacks the optimization that distributions build it with."""
    options = sysconfig.get_config_var("CONFIG_ARGS") or ""
    plain = "" if "--enable-optimizations" in options else " (built without profile-guided optimization)"
    return platform.python_version() + plain


def require_release(*, allow_debug: bool) -> None:
    """Refuse to measure a debug build: nobody should ever see its figures by mistake. Raises HostError."""
    if native().profile == "debug" and not allow_debug:
        raise HostError("dsvpn_native is a debug build; run `make setup`, or say --allow-debug to see its figures")


def describe() -> dict[str, Any]:
    """Everything that a figure depends on, with warnings about what blurs it."""
    found = native()
    share = busy_share()
    warnings = []
    if share > BUSY_LIMIT:
        warnings.append(f"the machine was busy before the run: {share:.0%} of its cores in use by others")
    if found.profile == "debug":
        warnings.append("dsvpn_native is a debug build: its figures mean nothing")
    if found.older_than_sources:
        warnings.append("dsvpn_native is older than its sources: run `make setup`")
    if found.missing:
        warnings.append(f"dsvpn was not measured: {found.missing}")
    return {
        "commit": commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "python": interpreter(),
        "iperf3": _first_line(["iperf3", "--version"]),
        "load_before": list(os.getloadavg()),
        "busy_before": share,
        "native_version": found.version,
        "build_profile": found.profile,
        "aead_backend": found.aead,
        "warnings": warnings,
    }


def _first_line(argv: list[str]) -> str | None:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()[0]
    except (OSError, IndexError):
        return None
