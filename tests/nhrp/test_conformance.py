"""Every rule and scenario in docs/nhrp-conformance.md names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_TEST = re.compile(r"`(tests/[^`]+\.py)::([^`]+)`")
_PAGE = (ROOT / "docs" / "nhrp-conformance.md").read_text(encoding="utf-8")
#: Parts of the page: the rules of the RFC, what is not done (no tests there), what others test.
_RULES, _, _REST = _PAGE.partition("## Not done")
_OTHERS = _REST.partition("# What others test")[2]


def rows(text: str) -> list[str]:
    """The rows of all tables without their heads."""
    return [
        line
        for line in text.splitlines()
        if line.startswith("|") and not line.startswith(("| section", "| source", "|---"))
    ]


ROWS = rows(_RULES) + rows(_OTHERS)


def defined_in(file: Path) -> set[str]:
    """The tests of a file as pytest calls them."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


def test_there_are_scenarios_of_every_source() -> None:
    sources = " ".join(row.split("|")[1] for row in rows(_OTHERS))
    for source in ("nhrp_topo", "nhrp_redundancy", "nhrp_nhs_priority", "test_mgre", "TestIpsecMGreIfEspTra4", "#8308"):
        assert source in sources


def test_there_are_rules_of_every_section() -> None:
    sections = {row.split("|")[1].strip() for row in ROWS}
    assert {"5.1", "5.2.0.1", "5.2.1", "5.2.2", "5.2.3", "5.2.4", "5.2.5", "5.2.6", "5.2.7", "5.3", "6.1"} <= sections


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_the_test_of_a_row_exists(row: str) -> None:
    named = _TEST.findall(row)
    assert named, "a row without a test"
    for file, name in named:
        assert name in defined_in(ROOT / file)
