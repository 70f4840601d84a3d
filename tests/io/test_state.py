"""What a gateway keeps over restarts, and who may read it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dsvpn.errors import HostError
from dsvpn.io.state import token_secret


def test_the_secret_stays_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    directory = tmp_path / "lib" / "hub"
    secret = token_secret(directory)
    assert len(secret) == 32
    assert token_secret(directory) == secret
    (file,) = directory.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert token_secret(tmp_path / "other") != secret


@pytest.mark.parametrize("damage", ["readable", "short", "long"])
def test_a_secret_that_is_none_is_replaced(tmp_path: Path, damage: str) -> None:
    secret = token_secret(tmp_path)
    (file,) = tmp_path.iterdir()
    if damage == "readable":
        file.chmod(0o644)
    else:
        file.write_bytes(secret[:20] if damage == "short" else secret + b"x")
    fresh = token_secret(tmp_path)
    assert fresh != secret
    assert len(fresh) == 32
    assert [stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()] == [0o600]
    assert token_secret(tmp_path) == fresh


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(bytes(32))
    directory = tmp_path / "state"
    directory.mkdir()
    os.symlink(target, directory / "crash-token-secret")
    with pytest.raises(HostError, match=r"gateway\.state_directory"):
        token_secret(directory)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match=r"gateway\.state_directory: cannot use .*file"):
        token_secret(tmp_path / "file" / "state")
