"""Every rule in docs/nhrp-conformance.md names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_TEST = re.compile(r"`(tests/[^`]+\.py)::([^`]+)`")
ROWS = [
    line
    for line in (ROOT / "docs" / "nhrp-conformance.md")
    .read_text(encoding="utf-8")
    .partition("## Not done")[0]
    .splitlines()
    if line.startswith("|") and not line.startswith(("| section", "|---"))
]


def defined_in(file: Path) -> set[str]:
    """The tests of a file as pytest calls them."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


def test_there_are_rules_of_every_section() -> None:
    sections = {row.split("|")[1].strip() for row in ROWS}
    assert {"5.1", "5.2.0.1", "5.2.1", "5.2.2", "5.2.3", "5.2.4", "5.2.5", "5.2.6", "5.2.7", "5.3", "6.1"} <= sections


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_the_test_of_a_rule_exists(row: str) -> None:
    named = _TEST.findall(row)
    assert named, "a rule without a test"
    for file, name in named:
        assert name in defined_in(ROOT / file)
