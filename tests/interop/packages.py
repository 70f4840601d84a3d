"""Debian packages of peers: downloaded once into a cache and only unpacked there, so that the host stays as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

#: FRR of Debian 12 (8.4) and the packet filter that it leans on, with the libraries that a minimal system lacks.
FRR = (
    *("frr", "libyang2", "libc-ares2", "libjson-c5", "libprotobuf-c1"),
    *("iptables", "libip4tc2", "libip6tc2", "libxtables12", "libnftnl11", "libmnl0"),
    *("libnetfilter-conntrack3", "libnfnetlink0"),
)


def cache() -> Path:
    """Where the trees are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dsvpn-interop"


def tree(name: str, packages: tuple[str, ...]) -> Path:
    """The unpacked packages as one directory tree, to be laid over a root."""
    wanted, done = cache() / name, cache() / f"{name}.done"
    if done.exists() and done.read_text() == " ".join(packages):
        return wanted
    download = cache() / f"{name}.download"
    for directory in (wanted, download):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    fetched = subprocess.run(
        ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *packages],
        cwd=download,
        capture_output=True,
        text=True,
    )
    assert fetched.returncode == 0, f"apt-get download: {fetched.stderr.strip()} (does `apt-get update` help?)"
    for package in download.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, wanted], check=True)
    shutil.rmtree(download)
    _merge_usr(wanted)
    done.write_text(" ".join(packages))
    return wanted


def _merge_usr(root: Path) -> None:
    # A real /lib in an overlay's layer would hide the host's link /lib -> usr/lib.
    for name in ("lib", "lib64", "bin", "sbin"):
        if (root / name).is_dir() and not (root / name).is_symlink():
            shutil.copytree(root / name, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(root / name)
