"""Nothing of a lab stays behind: not after an end, not after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsvpn.errors import HostError
from dsvpn.lab import run as run_module
from dsvpn.lab.run import ProcessId, Run, end_stale, process_id, wait_until

pytestmark = [pytest.mark.root, pytest.mark.netns]


@pytest.fixture
def prefix() -> Iterator[str]:
    name = f"dsvpn-rt{os.getpid()}"
    yield name
    end_stale(name)


def namespaces(prefix: str) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith(prefix)]


def test_close_takes_everything_down(prefix: str) -> None:
    run = Run(prefix)
    run.open()
    run.add_namespace(f"{prefix}-a")
    process = run.spawn(["sleep", "1000"], namespace=f"{prefix}-a")
    identity = process_id(process.pid)
    directory = run.directory
    assert identity is not None
    assert identity.alive()
    run.close()
    assert not identity.alive()
    assert namespaces(prefix) == []
    assert not directory.exists()
    assert not list(Path("/run").glob(f"dsvpn-lab/{prefix}*"))


def test_an_unrecorded_process_in_a_namespace_of_ours_is_ended(prefix: str) -> None:
    run = Run(prefix)
    run.open()
    run.add_namespace(f"{prefix}-a")
    with subprocess.Popen(["ip", "netns", "exec", f"{prefix}-a", "sleep", "1000"]) as stray:
        wait_until(lambda: namespaces_of(stray.pid) != namespaces_of(os.getpid()), 5, "the process to enter")
        run.close()
        assert stray.wait(5) == -signal.SIGTERM


def namespaces_of(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())


def test_the_next_run_cleans_up_after_a_killed_one(prefix: str, tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from dsvpn.lab.run import Run
        run = Run({prefix!r})
        run.open()
        run.add_namespace({prefix!r} + "-a")
        child = run.spawn(["sleep", "1000"], namespace={prefix!r} + "-a")
        Path({str(tmp_path)!r}, "pid").write_text(f"{{child.pid}} {{run.directory}}")
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    package = Path(run_module.__file__).parents[2]
    killed = subprocess.run([sys.executable, "-P", "-c", script], env={**os.environ, "PYTHONPATH": str(package)})
    assert killed.returncode == -signal.SIGKILL
    pid, directory = (tmp_path / "pid").read_text().split()
    left = process_id(int(pid))
    assert left is not None
    assert namespaces(prefix) == [f"{prefix}-a"]
    run = Run(prefix)
    run.open()
    try:
        assert not left.alive()
        assert namespaces(prefix) == []
        assert not Path(directory).exists()
    finally:
        run.close()


def test_a_kept_run_stays_until_it_is_ended(prefix: str) -> None:
    run = Run(prefix)
    run.open()
    run.add_namespace(f"{prefix}-a")
    run.keep()
    assert namespaces(prefix) == [f"{prefix}-a"]
    assert end_stale(prefix)
    assert namespaces(prefix) == []
    assert not end_stale(prefix)


def test_two_at_once_are_refused(prefix: str) -> None:
    first, second = Run(prefix), Run(prefix)
    first.open()
    try:
        first.add_namespace(f"{prefix}-a")
        with pytest.raises(HostError, match="is running"):
            second.open()
        second.close()
        with pytest.raises(HostError, match="is running"):
            end_stale(prefix)
        assert namespaces(prefix) == [f"{prefix}-a"]
    finally:
        first.close()


def test_a_reused_process_id_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "1000"]) as other:
        identity = process_id(other.pid)
        assert identity is not None
        ProcessId(other.pid, identity.started - 1).end(0.1)
        assert other.poll() is None
        identity.end()
        assert other.wait(5) == -signal.SIGTERM


def test_waiting_has_an_end() -> None:
    with pytest.raises(TimeoutError, match="for what never comes"):
        wait_until(lambda: False, 0.05, "what never comes")
