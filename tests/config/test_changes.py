"""What of a changed configuration file a running gateway takes, and what it says waits for a restart."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from dsvpn.config.changes import compare
from dsvpn.config.load import load_config, parse_config

TEXT = """
[gateway]
name = "hub"

[tunnel.dsvpn0]
address = "10.0.0.1/24"
source = "eth0"
key = 42

[tunnel.dsvpn0.nhrp]
redirect = true
map = [{ protocol = "10.0.0.9", nbma = "192.0.2.9" }]

[tunnel.dsvpn0.authorize]
"spoke1" = "10.0.0.11"

[ipsec.default]
dpd = "20s"
retransmission = { tries = 7 }

[ipsec.default.auth]
psk = "a secret of some length"
"""


@pytest.mark.parametrize(
    ("before", "after", "taken", "waiting"),
    [
        ("", "", [], []),
        ('name = "hub"', 'name = "hub"\nlog_level = "debug"', ["gateway.log_level"], []),
        ('dpd = "20s"', 'dpd = "5s"', ["ipsec.default.dpd"], []),
        ('dpd = "20s"', 'child_lifetime = "10m"', ["ipsec.default.child_lifetime"], []),
        ("tries = 7", "tries = 9", ["ipsec.default.retransmission.tries"], []),
        ('psk = "a secret', 'psk = "another secret', ["ipsec.default.auth.psk"], []),
        ('"10.0.0.11"', '["10.0.0.11", "172.16.1.0/24"]', ["tunnel.dsvpn0.authorize"], []),
        ('name = "hub"', 'name = "hub2"', [], ["gateway.name"]),
        ("key = 42", "key = 43", [], ["tunnel.dsvpn0.key"]),
        ("192.0.2.9", "192.0.2.10", [], ["tunnel.dsvpn0.nhrp.map"]),
        ('dpd = "20s"', 'dpd = "5s"\nmobike = false', ["ipsec.default.dpd"], ["ipsec.default.mobike"]),
        ("[tunnel.dsvpn0", "[tunnel.dsvpn1", [], ["tunnel.dsvpn0", "tunnel.dsvpn1"]),
        ("[gateway]", '[ipsec.other.auth]\npsk = "other"\n[gateway]', [], ["ipsec.other"]),
    ],
)
def test_each_key_is_taken_or_named(
    tmp_path: Path, before: str, after: str, taken: list[str], waiting: list[str]
) -> None:
    old = parse_config(tomllib.loads(TEXT), tmp_path / "hub.toml")
    assert before in TEXT
    new = parse_config(tomllib.loads(TEXT.replace(before, after) if before else TEXT), tmp_path / "hub.toml")
    changes = compare(old, new)
    assert (changes.taken, changes.waiting) == (taken, waiting)
    # What was taken is not named again, and what waits is.
    again = compare(changes.running, new)
    assert (again.taken, again.waiting) == ([], waiting)
    assert changes.running.tunnels.keys() == old.tunnels.keys()


def test_a_post_quantum_key_that_changes_in_its_file_waits_for_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text(TEXT.replace('dpd = "20s"', 'ppk = { id = "one", file = "ppk" }'))
    (tmp_path / "ppk").write_text("x" * 32)
    before = load_config(file)
    assert compare(before, load_config(file)).waiting == []
    (tmp_path / "ppk").write_text("y" * 32)
    assert compare(before, load_config(file)).waiting == ["ipsec.default.ppk"]
