"""Every rule and scenario in docs/nhrp-conformance.md names a test that exists."""

from __future__ import annotations

import pytest

from tests.conformance import check_tests_of, page, rows

#: Parts of the page: the rules of the RFC, what is not done (no tests there), what others test.
_RULES, _, _REST = page("nhrp-conformance.md").partition("## Not done")
_OTHERS = _REST.partition("# What others test")[2]
ROWS = rows(_RULES) + rows(_OTHERS)


def test_there_are_scenarios_of_every_source() -> None:
    sources = " ".join(row.split("|")[1] for row in rows(_OTHERS))
    for source in ("nhrp_topo", "nhrp_redundancy", "nhrp_nhs_priority", "test_mgre", "TestIpsecMGreIfEspTra4", "#8308"):
        assert source in sources


def test_there_are_rules_of_every_section() -> None:
    sections = {row.split("|")[1].strip() for row in ROWS}
    assert {"5.1", "5.2.0.1", "5.2.1", "5.2.2", "5.2.3", "5.2.4", "5.2.5", "5.2.6", "5.2.7", "5.3", "6.1"} <= sections


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_the_test_of_a_row_exists(row: str) -> None:
    check_tests_of(row)
