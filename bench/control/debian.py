"""Programs of another Debian release: its packages, downloaded by apt and unpacked beside the machine's own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dsvpn.errors import HostError
from dsvpn.lab.run import command

_CACHE = Path.home() / ".cache" / "dsvpn-bench"
_PACKAGES = ("charon-systemd", "strongswan-swanctl", "libstrongswan-standard-plugins", "coreutils")
_SUITES = {"13": "trixie", "14": "forky"}
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def unpacked(release: str) -> Path:
    """A root with strongSwan of that release and what it needs. HostError if its packages cannot be had."""
    root = _CACHE / f"debian-{release}"
    if (root / ".version").exists():
        return root
    work = _CACHE / f"debian-{release}.apt"
    for directory in (root, work):
        shutil.rmtree(directory, ignore_errors=True)
    for name in ("lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    root.mkdir()
    (work / "status").touch()
    settings = work / "apt.conf"
    targets = command(["apt-get", "indextargets", "--format", "$(REPO_URI)"]).split()
    mirror = next((one for one in targets if one.rstrip("/").endswith("/debian")), "http://deb.debian.org/debian/")
    (work / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {mirror} {_SUITES[release]} main\n")
    settings.write_text(
        f"""\
Dir::Etc::sourcelist "{work}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "{work}/lists";
Dir::State::status "{work}/status";
Dir::Cache "{work}/cache";
Acquire::Languages "none";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Debug::NoLocking "true";
"""
    )
    apt = ["env", f"APT_CONFIG={settings}", "LC_ALL=C"]
    command([*apt, "apt-get", "-qq", "update"], timeout=300)
    command([*apt, "apt-get", "-qq", "-y", "--download-only", "install", *_PACKAGES], timeout=900)
    files = sorted((work / "cache" / "archives").glob("*.deb"))
    if not files:
        raise HostError(f"no packages of Debian {release} came from {mirror}")
    for file in files:
        command(["dpkg-deb", "-x", str(file), str(root)])
    # Packages count on these links, which the first installation makes.
    for name in ("bin", "sbin", "lib", "lib64"):
        _merge(root, name)
    (version,) = (file.name.split("_")[1] for file in files if file.name.startswith("charon-systemd_"))
    shutil.rmtree(work)
    (root / ".version").write_text(version + "\n")
    return root


def _merge(root: Path, name: str) -> None:
    """Make ROOT/bin and its like links into ROOT/usr."""
    top, inside = root / name, root / "usr" / name
    if top.is_symlink() or not inside.exists():
        return
    if top.exists():
        shutil.copytree(top, inside, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(top)
    os.symlink(f"usr/{name}", top)
