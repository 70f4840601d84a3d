"""The systemd unit names what there is: the command, the exit code that starting anew does not cure, the privileges."""

from __future__ import annotations

import configparser
from pathlib import Path

from dsvpn.errors import ConfigurationError
from dsvpn.io.host import _CAPABILITIES
from tests.cli.command import dsvpn

UNIT = Path(__file__).parents[2] / "examples/systemd/dsvpn@.service"


def test_the_unit_fits_the_program(tmp_path: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    service = unit["Service"]
    program, *arguments = service["ExecStart"].split()
    assert program.endswith("/bin/dsvpn")
    assert arguments == ["up", "/etc/dsvpn/%i.toml"]
    assert service["RestartPreventExitStatus"] == str(ConfigurationError.exit_code)
    assert set(service["CapabilityBoundingSet"].split()) == set(_CAPABILITIES.values())

    file = tmp_path / "hub.toml"
    file.write_text("rubbish")
    done = dsvpn(*[argument.replace("/etc/dsvpn/%i.toml", str(file)) for argument in arguments])
    assert done.returncode == int(service["RestartPreventExitStatus"])
