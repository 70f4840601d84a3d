"""Running `dsvpn` as its users do: as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]

SPOKE = """\
[gateway]
name = "spoke1"
control_socket = "{directory}/spoke1.sock"
state_directory = "{directory}/spoke1.state"

[tunnel.dsvpn0]
address = ["10.0.0.11/24"]
source = "lo"
key = 42
ipsec = "default"

[tunnel.dsvpn0.nhrp]
holding_time = "2h"
shortcut = true
nhs = [{{ protocol = "10.0.0.1", nbma = "192.0.2.1" }}]

[ipsec.default.auth]
psk = {{ file = "psk" }}
"""


def command(*arguments: str | Path) -> list[str]:
    """The command line of `dsvpn ARGUMENTS`."""
    return [sys.executable, "-m", "dsvpn", *map(str, arguments)]


def environment() -> dict[str, str]:
    """An environment in which the checkout's dsvpn is found and its output is plain."""
    path = os.pathsep.join(filter(None, (str(_CHECKOUT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}


def dsvpn(*arguments: str | Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run `dsvpn ARGUMENTS` to its end, below the command `before`."""
    return subprocess.run(
        [*before, *command(*arguments)], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


def fails(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Assert that a command failed as it should: exit code, one line on standard error. Gives the line's text."""
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert done.returncode == code, done.stderr
    assert lines[0].startswith("dsvpn: error: "), lines[0]
    return lines[0].removeprefix("dsvpn: error: ")


def write_spoke(directory: Path, text: str = SPOKE) -> Path:
    """A spoke's configuration and its key in a directory."""
    (directory / "psk").write_text("a secret of some length\n")
    file = directory / "spoke1.toml"
    file.write_text(text.format(directory=directory))
    return file
