"""Every rule, scenario and class of mistakes in docs/ikev2-conformance.md names a test that exists."""

from __future__ import annotations

import re

import pytest

from tests.conformance import check_tests_of, page, rows

#: The page by its headings; what stands under "not done" has no tests.
_PARTS = re.split(r"^(?=##)", page("ikev2-conformance.md"), flags=re.MULTILINE)
ROWS = [row for part in _PARTS if "not done" not in part.partition("\n")[0].lower() for row in rows(part)]


def first_cells() -> str:
    return " ".join(row.split("|")[1] for row in ROWS)


def test_there_are_scenarios_of_every_kind() -> None:
    found = first_cells()
    for kind in (
        *("transport", "gre", "nat", "rekey", "reauth", "mobike", "redirect", "dpd", "ppk", "mlkem", "multi-ke"),
        *("esn", "childless", "wildcards", "two-certs", "trap", "start-action"),
    ):
        assert kind in found


def test_there_are_rules_of_every_section_and_rfc() -> None:
    sections = {row.split("|")[1].strip() for row in ROWS}
    assert {f"2.{number}" for number in (*range(1, 12), 13, 14, 15, 17, 18, 23, 25)} <= sections
    assert {f"3.{number}" for number in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14)} <= sections
    headings = "\n".join(part.partition("\n")[0] for part in _PARTS)
    for rfc in (3948, 4555, 5685, 6023, 6290, 7296, 7383, 7427, 8784, 9242, 9370):
        assert f"RFC {rfc}" in headings, rfc


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_the_test_of_a_row_exists(row: str) -> None:
    check_tests_of(row)
