"""Which part may import which, and where unsafe Rust may stand."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: The protocol cores: files or folders under dsvpn/. gateway and policy may be a module or a package.
SANS_IO = ("wire", "ike", "nhrp", "policy", "gateway", "commands", "addresses", "errors")

#: What would give a core a clock, randomness, an operating system or a network of its own.
FORBIDDEN_IN_SANS_IO = (
    "asyncio",
    "dsvpn.cli",
    "dsvpn.io",
    "dsvpn.lab",
    "dsvpn_native",
    "importlib",
    "multiprocessing",
    "os",
    "pyroute2",
    "random",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
    "uvloop",
)

EVENT_LOOP = ("asyncio", "socket", "uvloop")

#: Each crate of native/ and the crates of native/ that it may depend on.
CRATES: dict[str, set[str]] = {
    "wire": set(),
    "dataplane": {"wire"},
    "io": {"wire", "dataplane"},
    "py": {"wire", "dataplane", "io"},
}


def sources(part: str) -> list[Path]:
    """The Python files of `part`, which is dsvpn/PART.py or dsvpn/PART/."""
    module = ROOT / "dsvpn" / f"{part}.py"
    package = ROOT / "dsvpn" / part
    return ([module] if module.exists() else []) + sorted(package.rglob("*.py"))


def imports(source: str, package: str = "") -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that `source` imports anywhere, functions and conditions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called in ("__import__", "import_module", "importlib.import_module"):
                yield node.lineno, str(node.args[0].value)


def offences(file: Path, forbidden: tuple[str, ...]) -> list[str]:
    package = ".".join(file.relative_to(ROOT).parent.parts)
    return [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imports(file.read_text(), package)
        if any(name == bad or name.startswith(f"{bad}.") for bad in forbidden)
    ]


def test_import_walk_sees_every_way_to_import() -> None:
    source = """
import os.path
def late():
    from time import monotonic
    import importlib
    importlib.import_module("socket")
from ..io import driver
from . import sa
"""
    assert {name for _, name in imports(source, "dsvpn.wire")} == {
        "os.path",
        "time.monotonic",
        "importlib",
        "socket",
        "dsvpn.io.driver",
        "dsvpn.wire.sa",
    }


@pytest.mark.parametrize("part", SANS_IO)
def test_protocol_core_is_sans_io(part: str) -> None:
    files = sources(part)
    assert files, f"dsvpn/{part} has gone: correct SANS_IO"
    assert [offence for file in files for offence in offences(file, FORBIDDEN_IN_SANS_IO)] == []


def test_only_io_has_an_event_loop() -> None:
    io = sources("io")
    others = sorted(set((ROOT / "dsvpn").rglob("*.py")) - set(io))
    assert io
    assert others
    assert [offence for file in others for offence in offences(file, EVENT_LOOP)] == []


def crate_names() -> dict[str, str]:
    """Package name in Cargo -> folder under native/."""
    return {
        tomllib.loads((ROOT / f"native/{crate}/Cargo.toml").read_text())["package"]["name"]: crate for crate in CRATES
    }


@pytest.mark.parametrize("crate", CRATES)
def test_crates_depend_in_one_direction(crate: str) -> None:
    names = crate_names()
    manifest = tomllib.loads((ROOT / f"native/{crate}/Cargo.toml").read_text())
    tables = [manifest, *manifest.get("target", {}).values()]
    used: set[str] = set()
    for table in tables:
        for kind in ("dependencies", "build-dependencies"):
            for key, value in table.get(kind, {}).items():
                package = value.get("package", key) if isinstance(value, dict) else key
                if package in names:
                    used.add(names[package])
    assert used <= CRATES[crate], f"native/{crate} depends on {sorted(used - CRATES[crate])}"


def test_workspace_has_exactly_these_crates() -> None:
    workspace = tomllib.loads((ROOT / "native/Cargo.toml").read_text())["workspace"]
    assert set(workspace["members"]) == set(CRATES)


def rust_code(source: str) -> str:
    """`source` without comments and without the contents of string literals."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"'
    return re.sub(pattern, lambda found: '""' if found[0].startswith('"') else " ", source, flags=re.DOTALL)


def test_unsafe_code_is_found() -> None:
    assert re.search(r"\bunsafe\b", rust_code('let s = "text"; unsafe { f() }'))
    assert not re.search(r"\bunsafe\b", rust_code('// unsafe\n/* unsafe */ let s = "unsafe";\n#![forbid(unsafe_code)]'))


@pytest.mark.parametrize("crate", [crate for crate in CRATES if crate != "io"])
def test_unsafe_rust_is_in_io_alone(crate: str) -> None:
    folder = ROOT / "native" / crate
    files = sorted(file for file in folder.rglob("*.rs") if "target" not in file.relative_to(folder).parts)
    assert files
    assert [
        f"{file.relative_to(ROOT)}" for file in files if re.search(r"\bunsafe\b", rust_code(file.read_text()))
    ] == []
    root = folder / "src/lib.rs"
    if crate != "py":  # PyO3's macros expand to unsafe code of their own.
        assert "#![forbid(unsafe_code)]" in root.read_text(), f"{root.relative_to(ROOT)} forbids no unsafe code"
