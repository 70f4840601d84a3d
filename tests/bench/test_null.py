"""The null cipher belongs to benchmarks: no gateway can name it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import dsvpn_native
from bench import null_native
from bench.environment import python
from dsvpn.config import load_config
from dsvpn.errors import ConfigurationError

_CONFIGURATION = """\
[gateway]
name = "gateway"

[tunnel.dsvpn0]
address = ["10.99.0.1/24"]
source = "eth0"

[tunnel.dsvpn0.nhrp]

[ipsec.default]
esp = ["{suite}"]

[ipsec.default.auth]
psk = {{ file = "psk" }}
"""


@pytest.mark.parametrize("suite", ["null", "null (benchmarks only)", "NullForBenchmarks", "none", ""])
def test_the_installed_module_has_none(suite: str) -> None:
    plane = dsvpn_native.Dataplane()
    for take in (
        lambda: plane.set_outbound_sa(256, suite, bytes(4), [1], True),
        lambda: plane.add_inbound_sa(plane.allocate_spi(), suite, bytes(4), [1], True, 64),
        lambda: dsvpn_native.Cipher(suite, bytes(4)),
        lambda: dsvpn_native.MemoryForwarder().set_outbound_sa(256, suite, bytes(4), [1], True),
    ):
        with pytest.raises(ValueError, match="is none of"):
            take()


def test_no_configuration_names_it(tmp_path: Path) -> None:
    (tmp_path / "psk").touch(mode=0o600)
    (tmp_path / "psk").write_text("a key for a test")
    file = tmp_path / "gateway.toml"
    file.write_text(_CONFIGURATION.format(suite="aes128gcm16"))
    load_config(file)
    file.write_text(_CONFIGURATION.format(suite="null"))
    with pytest.raises(ConfigurationError, match="null"):
        load_config(file)


def test_nothing_of_a_gateway_knows_where_it_is() -> None:
    directory = Path(__file__).parents[2] / "dsvpn"
    for file in directory.rglob("*.py"):
        text = file.read_text()
        assert "null_native" not in text
        assert "build/bench" not in text


def test_the_module_of_the_benchmarks_has_it() -> None:
    if not null_native.is_built():
        pytest.skip("the module for benchmarks is not built from these sources: python -m bench build")
    code = "import dsvpn_native as n; n.Cipher('null', bytes(4)); print(n.__file__)"
    argv = [*python(null_native.DIRECTORY), "-c", code]
    said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    assert Path(said.strip()).is_relative_to(null_native.DIRECTORY)
