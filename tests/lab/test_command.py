"""`dsvpn lab` as a command: its refusals, and that an interrupted one leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import dsvpn
from dsvpn.lab.run import end_stale, wait_until

PACKAGE = Path(dsvpn.__file__).parent.parent


@pytest.fixture
def name() -> Iterator[str]:
    given = f"dsvpn-ct{os.getpid()}"
    yield given
    if os.geteuid() == 0:
        end_stale(given)


def lab(*arguments: str, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, "-P", "-m", "dsvpn", "lab", *arguments],
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def left_behind(name: str) -> list[str]:
    """Everything of a lab that this machine still has: namespaces, directories, processes."""
    found = [str(path) for path in (*Path("/run/netns").glob(f"{name}-*"), *Path("/tmp").glob(f"{name}-*"))]
    found += [str(path) for path in Path("/run/dsvpn-lab").glob(f"{name}*")]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_text()
        except OSError:
            continue  # it ended meanwhile
        if f"{name}-" in command:
            found.append(command.replace("\0", " "))
    return found


def test_a_name_that_cannot_be_is_refused() -> None:
    with lab("--name", "a/b") as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 70
    assert output.startswith("dsvpn: error: 'a/b' cannot begin the name of a namespace")
    assert len(output.splitlines()) == 1


@pytest.mark.root
def test_without_root_it_says_so_in_one_line() -> None:
    # In a user namespace of its own the process is nobody, but may still read what root may.
    with lab(before=["unshare", "--user"]) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 71
    assert output == "dsvpn: error: the lab makes network namespaces, which needs root; run it with sudo\n"


@pytest.mark.root
@pytest.mark.netns
def test_there_is_nothing_to_end(name: str) -> None:
    with lab("--end", "--name", name) as process:
        output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "there is no lab to take down\n")


@pytest.mark.root
@pytest.mark.netns
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("moment", ["at once", "with gateways", "in the middle"])
def test_an_interrupted_lab_leaves_nothing(name: str, number: signal.Signals, moment: str) -> None:
    run_file = Path(f"/run/dsvpn-lab/{name}.json")
    with lab("--name", name, "--no-compare", "--duration", "60") as process:
        assert process.stdout is not None
        if moment == "at once":
            wait_until(run_file.exists, 30, "the lab to begin")
        else:
            awaited = "Starting the gateways" if moment == "with gateways" else "no ping lost"
            while awaited not in process.stdout.readline():
                assert process.poll() is None, "the lab ended by itself"
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert left_behind(name) == []


@pytest.mark.root
@pytest.mark.netns
def test_a_killed_lab_is_cleaned_up_by_name(name: str) -> None:
    with lab("--name", name, "--no-compare", "--duration", "60") as process:
        assert process.stdout is not None
        while "Starting the gateways" not in process.stdout.readline():
            assert process.poll() is None, "the lab ended by itself"
        process.kill()
        process.wait()
    assert left_behind(name)
    with lab("--end", "--name", name) as ending:
        output, _ = ending.communicate(timeout=60)
    assert (ending.returncode, output) == (0, "the lab is taken down\n")
    assert left_behind(name) == []
