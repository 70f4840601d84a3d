"""The conformance pages under docs/: their tables, and whether the tests that they name exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
_TEST = re.compile(r"`((?:tests|native)/[^`]+\.(?:py|rs))::([^`]+)`")
_HEADS = ("| section", "| source", "| scenario", "| class", "|---")


def page(name: str) -> str:
    """The text of a page."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def rows(text: str) -> list[str]:
    """The rows of all tables without their heads."""
    return [line for line in text.splitlines() if line.startswith("|") and not line.startswith(_HEADS)]


@cache
def _defined_in(file: Path) -> frozenset[str]:
    """The tests of a file as pytest calls them, or the functions of a Rust file that are tests."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".rs":
        return frozenset(re.findall(r"#\[test\]\s+fn (\w+)\(", text))
    found = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return frozenset(name for name in found if name.rpartition("::")[2].startswith("test_"))


def check_tests_of(row: str) -> None:
    """A row names at least one test, and each that it names exists."""
    named = _TEST.findall(row)
    assert named, "a row without a test"
    for file, name in named:
        assert (ROOT / file).exists(), f"there is no {file}"
        assert name in _defined_in(ROOT / file), f"{file} has no {name}"
