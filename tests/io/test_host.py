from __future__ import annotations

from pathlib import Path

import pytest

from dsvpn.errors import HostError
from dsvpn.io.host import require_host


def status(tmp_path: Path, effective: int) -> Path:
    file = tmp_path / "status"
    file.write_text(f"Name:\tdsvpn\nCapPrm:\t{effective:016x}\nCapEff:\t{effective:016x}\n")
    return file


def test_missing_rights_are_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="needs CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW; run it as root"):
        require_host(status(tmp_path, 0))
    with pytest.raises(HostError, match="needs CAP_NET_RAW; run"):
        require_host(status(tmp_path, 1 << 10 | 1 << 12))


def test_a_missing_tun_device_is_named(tmp_path: Path) -> None:
    granted = status(tmp_path, (1 << 40) - 1)
    with pytest.raises(HostError, match=r"tun is missing; load the kernel module tun"):
        require_host(granted, tmp_path / "tun")
    (tmp_path / "tun").touch()
    require_host(granted, tmp_path / "tun")
