"""What a lab owns on this machine, so that nothing of it stays behind.

Everything that a lab makes (namespaces, processes, a directory) is written to a run file before or as it is made. A
lab that ends takes it all down; a lab that was killed is taken down from its run file by the next one. A process is
ended only if its id still belongs to the process that was recorded: an id is reused, with its start time it is not.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from dsvpn.errors import HostError

#: Where run files are kept; it empties itself at a reboot, as the namespaces do.
RUN_DIRECTORY = Path("/run/dsvpn-lab")
#: Directories where `ip netns` mounts its namespaces.
_NETNS_DIRECTORY = Path("/run/netns")
#: What ends a lab early.
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: How long a process may take to end after SIGTERM, seconds.
_TERM_WAIT = 5.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, told apart from a later one that reuses its id. `started` is in clock ticks since boot."""

    pid: int
    started: int

    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        return _started(self.pid) == self.started

    def end(self, wait: float = _TERM_WAIT) -> None:
        """SIGTERM, then SIGKILL after `wait` seconds. Does nothing if the id belongs to another process."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self.alive():
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: not self.alive(), wait, "a process to end")


def _started(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command name may hold spaces and parentheses; the fields after its last parenthesis do not.
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def process_id(pid: int) -> ProcessId | None:
    """The process that has this id at the moment."""
    started = _started(pid)
    return None if started is None else ProcessId(pid, started)


def wait_until(condition: Callable[[], T | None], seconds: float, what: str, *, interval: float = 0.02) -> T:
    """Poll until `condition` gives something true, and give that. TimeoutError says what was waited for."""
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() >= deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(interval)


class Run:
    """The bookkeeping of one lab. `prefix` begins the name of everything that it makes."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.directory = Path()
        self._file = RUN_DIRECTORY / f"{prefix}.json"
        self._lock: IO[str] | None = None
        self._namespaces: list[str] = []
        self._processes: list[tuple[ProcessId, subprocess.Popen[bytes] | None]] = []

    def open(self) -> None:
        """Take the name, clean up after a killed run that had it, and make the working directory.

        Raises HostError when a lab of this name is running. One that was kept gives way.
        """
        self._lock = _lock(self.prefix)
        _end_recorded(self.prefix)
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.prefix}-"))
        self._write()

    def add_namespace(self, name: str) -> None:
        """Make a network namespace. It is recorded first, so that no moment leaves it unknown."""
        self._namespaces.append(name)
        self._write()
        # An interrupt between fork and the parent's knowing of it would leave nobody to wait for the child, which could
        # make the namespace after everything has been taken down.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
        try:
            command(["ip", "netns", "add", name])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def spawn(
        self, argv: Sequence[str], log: Path | None = None, *, namespace: str | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a recorded process, its output in `log`. It does not see this terminal's Ctrl-C: the lab ends it."""
        full = [*(["ip", "netns", "exec", namespace] if namespace else []), *argv]
        with (log or Path(os.devnull)).open("ab") as output:
            try:
                process = subprocess.Popen(
                    full, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            except FileNotFoundError:
                raise HostError(f"{full[0]} is not installed") from None
        identity = process_id(process.pid)
        if identity is not None:
            self._processes.append((identity, process))
            self._write()
        return process

    def end(self, process: subprocess.Popen[bytes], wait: float = _TERM_WAIT) -> int:
        """End one spawned process and give its exit status (negative: the signal that killed it)."""
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return process.returncode

    def keep(self) -> None:
        """Leave everything as it is: `dsvpn lab --end` takes it down by the run file."""
        self._release()

    def close(self) -> None:
        """Take everything down. Safe to call at any moment, also before or in the middle of the set-up."""
        if self._lock is None:
            return
        for _, process in reversed(self._processes):
            if process is not None and process.poll() is None:
                process.terminate()
        for _, process in reversed(self._processes):
            if process is not None:
                self.end(process)
        _take_down([], self._namespaces, self.directory if self.directory != Path() else None)
        self._processes.clear()
        self._namespaces.clear()
        self._file.unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            _unlock(self.prefix, self._lock)
            self._lock = None

    def _write(self) -> None:
        state = {
            "namespaces": self._namespaces,
            "processes": [[identity.pid, identity.started] for identity, _ in self._processes],
            "directory": str(self.directory),
        }
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(state))
        fresh.replace(self._file)


def end_stale(prefix: str) -> bool:
    """Take down what a killed or kept lab of this name left. True if there was one.

    Raises HostError when that lab is running.
    """
    lock = _lock(prefix)
    try:
        return _end_recorded(prefix)
    finally:
        _unlock(prefix, lock)


def _lock(prefix: str) -> IO[str]:
    path = RUN_DIRECTORY / f"{prefix}.lock"
    while True:
        RUN_DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = path.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise HostError(f'a lab "{prefix}" is running; wait for its end or stop it') from None
        # Whoever held it may have removed it between our open and our lock: then nobody else would see ours.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(lock.fileno()).st_ino == path.stat().st_ino:
                return lock
        lock.close()


def _unlock(prefix: str, lock: IO[str]) -> None:
    (RUN_DIRECTORY / f"{prefix}.lock").unlink(missing_ok=True)
    lock.close()
    with contextlib.suppress(OSError):
        RUN_DIRECTORY.rmdir()


def _end_recorded(prefix: str) -> bool:
    file = RUN_DIRECTORY / f"{prefix}.json"
    try:
        state: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return False
    directory = Path(state["directory"])
    ours = directory if directory.name.startswith(f"{prefix}-") else None
    names = [name for name in state["namespaces"] if name.startswith(f"{prefix}-")]
    _take_down([ProcessId(*pair) for pair in state["processes"]], names, ours)
    file.unlink(missing_ok=True)
    return True


def _take_down(processes: Sequence[ProcessId], namespaces: Sequence[str], directory: Path | None) -> None:
    for process in reversed(processes):
        if process.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
    for process in processes:
        process.end()
    for name in namespaces:
        if not (_NETNS_DIRECTORY / name).exists():
            continue
        # A namespace lives on while a process is in it, deleted or not: what runs in ours is ours.
        listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
        for pid in listed.split():
            if stray := process_id(int(pid)):
                stray.end(1.0)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)


def command(argv: Sequence[str], *, stdin: str | None = None, timeout: float = 60.0) -> str:
    """Run a command to its end and give its output. HostError names the command and what it said."""
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=timeout, check=False, start_new_session=True
        )
    except FileNotFoundError:
        raise HostError(f"{argv[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"`{' '.join(argv)}` did not end in {timeout:g} s") from None
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        said = next((line for line in lines if "error" in line.lower()), lines[-1])
        raise HostError(f"`{' '.join(argv)}` failed with status {done.returncode}: {said}")
    return done.stdout
