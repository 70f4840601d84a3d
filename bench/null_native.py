"""The second `dsvpn_native`, with the Cargo feature `bench`: the only one that knows the null cipher.

It is built from the checkout's sources with the release profile of the installed one into a directory that nothing but
the benchmarks looks at. `python -m bench build` makes it; so does a run that needs it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from bench.environment import ROOT
from dsvpn.errors import HostError
from dsvpn.lab.run import command

DIRECTORY = ROOT / "build" / "bench" / "native"
#: What it was built from.
_MARK = DIRECTORY / "sources.sha256"
_BUILD_SECONDS = 1800.0
_SOURCES = (".rs", ".toml", ".lock", ".py", ".pyi")


def cargo_directory() -> Path:
    """Where cargo is: rustup's is not in every shell's PATH. HostError if there is none."""
    found = shutil.which("cargo")
    directory = Path(found).parent if found else Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo")) / "bin"
    if not (directory / "cargo").exists():
        raise HostError("cargo is needed to build the benchmarks' own programs and not found; install Rust by rustup")
    return directory


def sources() -> list[Path]:
    """The files that a native module is made of."""
    native = ROOT / "native"
    members = [native / name for name in ("wire", "dataplane/src", "io/src", "py", "python")]
    found = [file for member in members for file in member.rglob("*") if file.suffix in _SOURCES]
    found += [native / "Cargo.toml", native / "Cargo.lock", native / "dataplane/Cargo.toml", native / "io/Cargo.toml"]
    return sorted(found)


def digest() -> str:
    """Of all sources, names and contents."""
    total = hashlib.sha256()
    for file in sources():
        total.update(f"{file.relative_to(ROOT)}\0".encode())
        total.update(file.read_bytes())
    return total.hexdigest()


def is_built() -> bool:
    """Whether it is there, made of the sources as they are."""
    return _MARK.exists() and _MARK.read_text() == digest()


def build() -> Path:
    """The module's directory, built anew if the sources have changed. HostError says what went wrong."""
    if is_built():
        return DIRECTORY
    wanted = digest()
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(parents=True)
    print("building dsvpn_native with the null cipher, for benchmarks alone (takes minutes)", flush=True)
    argv = ["env", f"PATH={cargo_directory()}{os.pathsep}{os.environ.get('PATH', os.defpath)}", sys.executable]
    argv += ["-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps", "--target", str(DIRECTORY)]
    command([*argv, "--config-settings=build-args=--features bench", str(ROOT / "native")], timeout=_BUILD_SECONDS)
    _MARK.write_text(wanted)
    return DIRECTORY
