"""A User-Mode Linux guest: a kernel and a root of its own, its network card a tap device of ours.

The root is the host's, read-only, with a peer's packages laid over it, under an overlay in the guest's memory.
"""

from __future__ import annotations

import itertools
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from dsvpn.io import echo
from dsvpn.lab.measure import Pings, parse_pings, ping_command
from dsvpn.lab.run import Run, wait_until

_SCRIPTS = Path(__file__).parent / "scripts"
#: Where the guest sees `Guest.boot`.
_BOOT_DIRECTORY = Path("/boot.d")
#: Seconds that a guest may take to boot; 2 to 5 are usual.
_BOOT = 90.0


class Guest:
    """A guest that boots with `tree` over its root and runs `scripts/SCRIPT.sh`. The run ends it."""

    def __init__(self, run: Run, name: str, tree: Path, script: str, *, memory: int = 192) -> None:
        self.name = name
        self.boot = run.directory / f"guest-{name}" / "boot"
        self.control = run.directory / f"guest-{name}" / "control"
        self._run = run
        self._tree = tree
        self._script = script
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._jobs = itertools.count(1)
        for directory in (self.boot, self.control / "queue", self.control / "jobs"):
            directory.mkdir(parents=True)
        self.control.chmod(0o777)  # daemons write their logs there under users of their own

    def start(self, tap: str, namespace: str, environment: Mapping[str, str]) -> None:
        """Boot with the tap device of a namespace as card, and wait until the script is done.

        `environment` are the variables that the script reads.
        """
        assert shutil.which("linux.uml"), "user-mode-linux is missing: apt-get install user-mode-linux"
        stage1 = (_SCRIPTS / "stage1.sh").read_text()
        for mark, path in (("@TREE@", self._tree), ("@CTL@", self.control), ("@BOOT@", self.boot)):
            stage1 = stage1.replace(mark, str(path))
        (self.boot / "stage1.sh").write_text(stage1)
        (self.boot / "stage1.sh").chmod(0o755)
        for script in _SCRIPTS.glob("*.sh"):
            if script.name != "stage1.sh":
                shutil.copy(script, self.boot)
        shutil.copy(_SCRIPTS / f"{self._script}.sh", self.boot / "main.sh")
        shutil.copy(echo.__file__, self.boot)
        text = "".join(f"{key}={shlex.quote(value)}\n" for key, value in environment.items())
        (self.boot / "environment").write_text(text)
        log = self.boot.parent / "console.log"
        self._process = process = self._run.spawn(
            [
                *("linux.uml", f"mem={self._memory}M", "rootfstype=hostfs", "rootflags=/", "ro"),
                *(f"init={self.boot}/stage1.sh", "quiet", "con=null", "con0=null,fd:1", "ssl=null"),
                *(f"uml_dir={self.boot.parent}/uml", "umid=guest"),
                f"vec0:transport=tap,ifname={tap},depth=128,gro=0",
            ],
            log,
            namespace=namespace,
        )

        def ready() -> bool:
            assert process.poll() is None, f"the guest died: {log.read_text(errors='replace')[-2000:]}"
            return (self.control / "ready").exists()

        wait_until(ready, _BOOT, "the guest to boot", interval=0.1)
        failed = self.control / "failed"
        assert not failed.exists(), f"the guest is not whole: {failed.read_text()}"

    def run(self, command: str, timeout: float = 30.0, *, check: bool = False) -> str:
        """Run a shell command in the guest and give its output. `check` asserts that it succeeds."""
        job = self.begin(command)
        wait_until(job.with_suffix(".status").exists, timeout, f"the guest to run {command!r}", interval=0.02)
        output = job.with_suffix(".output").read_text(errors="replace")
        status = int(job.with_suffix(".status").read_text())
        assert not check or status == 0, f"{command!r} failed in the guest with status {status}: {output[-2000:]}"
        return output

    def begin(self, command: str) -> Path:
        """Start a shell command in the guest; its output and status appear beside the path that this gives."""
        # The guest lists the queue all the time: what is done stays elsewhere.
        job = self.control / "jobs" / str(next(self._jobs))
        job.with_suffix(".new").write_text(command + "\n")
        job.with_suffix(".new").rename(self.control / "queue" / job.name)
        return job

    def ping(self, target: IPv4Address, count: int, **options: Any) -> list[Pings]:
        """Ping from inside the guest, as `dsvpn.lab.measure.ping_command` has it; one series for each size."""
        job = self.begin_ping(target, count, **options)
        wait_until(job.with_suffix(".status").exists, 120.0, f"the guest to ping {target}")
        return self.pings(job)

    def begin_ping(self, target: IPv4Address, count: int, **options: Any) -> Path:
        """Begin to ping from inside the guest; `pings` gives what came of it."""
        return self.begin(shlex.join(ping_command(_BOOT_DIRECTORY / "echo.py", target, count, **options)))

    def pings(self, job: Path) -> list[Pings]:
        """The result of `begin_ping`, when its status is there."""
        return parse_pings(job.with_suffix(".output").read_text())

    def stop(self) -> None:
        """Power it off."""
        process, self._process = self._process, None
        if process is not None:
            (self.control / "ready").unlink(missing_ok=True)
            wait_until(lambda: process.poll() is not None, _BOOT, "the guest to end")
