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


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_the_test_of_a_row_exists(row: str) -> None:
    check_tests_of(row)
