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
_STRONGSWAN = (
    *("strongswan-charon", "strongswan-libcharon", "strongswan-swanctl", "libstrongswan"),
    *("libstrongswan-standard-plugins", "libstrongswan-extra-plugins", "libcharon-extra-plugins"),
)
_NEW_LIBRARIES = (
    *("libc6", "libgcc-s1", "libgmp10", "libssl3t64", "libcap2", "libsystemd0"),
    *("libzstd1", "zlib1g", "liblzma5", "libgcrypt20", "libgpg-error0"),
)
#: strongSwan by Debian release: 5.9 of Debian 12, 6.0 of Debian 13, and what Debian 14 will have, with their C
#: libraries and OpenSSL. Debian 13 builds 6.0 without ML-KEM; the first that has it is in Debian 14.
STRONGSWAN = {
    "bookworm": (*_STRONGSWAN, "libgmp10", "libssl3", "libcap2", "libsystemd0"),
    "trixie": (*_STRONGSWAN, *_NEW_LIBRARIES),
    "forky": (*_STRONGSWAN, *_NEW_LIBRARIES),
}
#: Both in one guest, of the host's release.
FRR_AND_STRONGSWAN = (*FRR, *STRONGSWAN["bookworm"])


def cache() -> Path:
    """Where the trees are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dsvpn-interop"


def tree(name: str, packages: tuple[str, ...], release: str | None = None) -> Path:
    """The unpacked packages as one directory tree, to be laid over a root.

    `release` is the Debian release that they come from; without it, the host's.
    """
    wanted, done = cache() / name, cache() / f"{name}.done"
    if done.exists() and done.read_text() == " ".join(packages):
        return wanted
    download = cache() / f"{name}.download"
    for directory in (wanted, download):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    options = ["-o", "APT::Sandbox::User=root", *([] if release is None else _lists_of(release))]
    _apt_get(*options, "download", *packages, directory=download)
    for package in download.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, wanted], check=True)
    shutil.rmtree(download)
    _merge_usr(wanted)
    done.write_text(" ".join(packages))
    return wanted


def _apt_get(*arguments: str, directory: Path) -> str:
    done = subprocess.run(["apt-get", "-qq", *arguments], cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, f"apt-get {arguments[-1]}: {done.stderr.strip()} (does `apt-get update` help?)"
    return done.stdout


def _lists_of(release: str) -> list[str]:
    """Options that make apt-get see this release alone, with package lists of its own."""
    state = cache() / f"apt-{release}"
    for directory in ("lists/partial", "archives/partial"):
        (state / directory).mkdir(parents=True, exist_ok=True)
    mirrors = _apt_get("indextargets", "--format", "$(REPO_URI)", directory=state).split()
    mirror = next((uri for uri in sorted(set(mirrors)) if uri.rstrip("/").endswith("/debian")), None)
    assert mirror is not None, "apt has no Debian mirror among its sources"
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (state / "sources.list").write_text(f"deb [signed-by={keyring}] {mirror} {release} main\n")
    (state / "status").touch()
    options = {
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Acquire::Languages": "none",
    }
    given = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    _apt_get(*given, "-o", "APT::Sandbox::User=root", "update", directory=state)
    return given


def _merge_usr(root: Path) -> None:
    # A real /lib in an overlay's layer would hide the host's link /lib -> usr/lib.
    for name in ("lib", "lib64", "bin", "sbin"):
        if (root / name).is_dir() and not (root / name).is_symlink():
            shutil.copytree(root / name, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(root / name)
