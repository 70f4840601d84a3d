"""What `dsvpn check` doubts in a configuration that is good otherwise, and that it is silent on the others."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from dsvpn.config.advice import advice
from dsvpn.config.load import load_config, parse_config
from tests.cli.command import dsvpn, write_spoke

ROOT = Path(__file__).parents[2]

TWO = """
[gateway]
name = "spoke1"

[tunnel.dsvpn0]
address = "10.0.0.11/24"
source = "eth0"
key = 42
nhrp = { shortcut = true, nhs = [{ protocol = "10.0.0.1", nbma = "192.0.2.1" }] }

[tunnel.dsvpn1]
address = "10.9.0.11/24"
source = "eth0"
key = 43
nhrp = { shortcut = true, nhs = [{ protocol = "10.9.0.1", nbma = "192.0.2.1" }] }

[ipsec.default.auth]
psk = "a secret of some length"

[ipsec.other.auth]
psk = "another secret of some length"
"""


def doubts(tmp_path: Path, text: str) -> list[str]:
    return advice(parse_config(tomllib.loads(text), tmp_path / "gateway.toml"))


def test_tunnels_of_one_profile_that_go_to_one_hub_are_named(tmp_path: Path) -> None:
    (doubt,) = doubts(tmp_path, TWO)
    assert doubt.startswith("tunnel.dsvpn0 and tunnel.dsvpn1 share the profile default and both go to 192.0.2.1: ")
    assert "; if their networks must not trust each other, write a profile of its own" in doubt


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("key = 43\n", 'key = 43\nipsec = "other"\n'),
        ("key = 43\n", 'key = 43\nipsec = "none"\n'),
        ('protocol = "10.9.0.1", nbma = "192.0.2.1"', 'protocol = "10.9.0.1", nbma = "192.0.2.2"'),
    ],
)
def test_tunnels_that_share_no_sa_are_not(tmp_path: Path, before: str, after: str) -> None:
    assert before in TWO
    assert doubts(tmp_path, TWO.replace(before, after)) == []


ONE = TWO[: TWO.index("[tunnel.dsvpn1]")] + TWO[TWO.index("[ipsec.default") :]
SHORTCUT = "shortcut = true, "
NHS = ', nhs = [{ protocol = "10.0.0.1", nbma = "192.0.2.1" }]'


def test_direct_paths_that_nobody_has_switched_on_are_named_until_it_is_said_that_they_are_not_wanted(
    tmp_path: Path,
) -> None:
    assert doubts(tmp_path, ONE) == []
    (doubt,) = doubts(tmp_path, ONE.replace(SHORTCUT, ""))
    assert doubt.startswith(
        "tunnel.dsvpn0.nhrp.shortcut is not set: all traffic goes by the hub; write shortcut = true"
    )
    assert doubts(tmp_path, ONE.replace(SHORTCUT, "shortcut = false, ")) == []
    # A regional hub: spoke of another, and hub of its own.
    assert doubts(tmp_path, ONE.replace(SHORTCUT, "redirect = true, ")) == []

    (doubt,) = doubts(tmp_path, ONE.replace(NHS, ""))
    assert doubt.startswith("tunnel.dsvpn0.nhrp names no nhs, which makes this gateway a hub, and redirect is not set")
    for value in ("true", "false"):
        assert doubts(tmp_path, ONE.replace(NHS, f", redirect = {value}")) == []
    assert doubts(tmp_path, ONE.replace("nhs =", "map =").replace(SHORTCUT, "")) == []


def test_a_route_that_leads_the_tunnel_into_itself_is_named(tmp_path: Path) -> None:
    def with_route(prefix: str) -> str:
        return ONE.replace("key = 42\n", f'key = 42\nroutes = [{{ prefix = "{prefix}", via = "10.0.0.1" }}]\n')

    assert doubts(tmp_path, with_route("172.16.0.0/12")) == []
    (doubt,) = doubts(tmp_path, with_route("192.0.0.0/8"))
    assert doubt.startswith(
        "tunnel.dsvpn0.routes.0: 192.0.0.0/8 leads into the tunnel and has the public address 192.0"
    )
    assert "write a prefix without 192.0.2.1, or" in doubt
    assert doubts(tmp_path, with_route("192.0.0.0/8").replace("key = 42\n", 'key = 42\nvrf = "red"\n')) == []
    # A name's addresses are not known here.
    assert doubts(tmp_path, with_route("192.0.0.0/8").replace('"192.0.2.1"', '"hub.example.net"')) == []
    (doubt,) = doubts(tmp_path, ONE.replace('nbma = "192.0.2.1"', 'nbma = "10.0.0.99"'))
    assert doubt.startswith("tunnel.dsvpn0.address 10.0.0.11/24: 10.0.0.0/24 leads into the tunnel")


def test_authorization_by_an_identity_that_anybody_can_take_is_named(tmp_path: Path) -> None:
    grant = '\n[tunnel.dsvpn0.authorize]\n"spoke2" = "10.0.0.12"\n'
    (doubt,) = doubts(tmp_path, ONE + grant)
    assert doubt.startswith("tunnel.dsvpn0.authorize goes by identity, and ipsec.default.auth has one psk for all")
    own = ONE.replace("[ipsec.other", 'psks = { spoke2 = "a secret of its own" }\n[ipsec.other')
    assert doubts(tmp_path, own + grant) == []


def test_the_examples_and_the_readme_are_beyond_doubt(tmp_path: Path) -> None:
    (tmp_path / "psk").write_text("a secret of some length\n")
    (tmp_path / "psk").chmod(0o600)
    texts = {str(file): file.read_text() for file in (ROOT / "examples").glob("*/*.toml")}
    readme = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    texts |= {f"README.md, example {number}": text for number, text in enumerate(readme)}
    assert len(texts) >= 6
    for place, text in texts.items():
        file = tmp_path / "gateway.toml"
        file.write_text(text)
        assert advice(load_config(file)) == [], place


def test_check_prints_doubts_and_calls_the_file_good_all_the_same(tmp_path: Path) -> None:
    file = write_spoke(tmp_path)
    file.write_text(file.read_text().replace("shortcut = true\n", ""))
    (tmp_path / "psk").chmod(0o600)
    done = dsvpn("check", file)
    assert done.returncode == 0
    assert done.stderr.startswith(f"{file}: warning: tunnel.dsvpn0.nhrp.shortcut is not set: ")
    assert done.stdout == f"{file}: good: gateway spoke1, tunnel dsvpn0 (ipsec default)\n"
