"""Guests that a whole session shares, and the results that docs/interoperability.md is made of."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from dsvpn.lab.run import Run
from tests.interop.packages import STRONGSWAN
from tests.interop.pair import Pair
from tests.interop.strongswan import StrongSwan
from tests.interop.underlay import Underlay


@pytest.fixture(scope="session", params=list(STRONGSWAN))
def lab(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """One guest for each release of strongSwan, booted once."""
    run = Run(f"dsvpn-i{os.getpid()}{request.param[0]}")
    run.open()
    try:
        underlay = Underlay(run)
        underlay.build()
        underlay.arrange()
        strongswan = StrongSwan(run, request.param)
        strongswan.start(underlay.left.name)
        yield Pair(run, underlay, strongswan)
        strongswan.guest.stop()
    finally:
        run.close()


@pytest.fixture
def pair(lab: Pair, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The pair, free of what earlier tests made."""
    yield lab
    report = request.node.stash.get(REPORT, None)
    if report is not None and report.failed:
        print(lab.report())
    lab.close()


REPORT = pytest.StashKey[pytest.TestReport]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[REPORT] = report
    return report
