"""Guests that a whole session shares, and the results that docs/interoperability.md is made of."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from dsvpn.lab.run import Run
from tests.interop.pair import Pair
from tests.interop.results import PROPERTY, Results, entry_of
from tests.interop.strongswan import StrongSwan
from tests.interop.underlay import Underlay

_REPORT = pytest.StashKey[pytest.TestReport]()
_RESULTS = pytest.StashKey[Results]()


@pytest.fixture(scope="session", params=["bookworm", "trixie"])
def lab(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """One guest for each release of strongSwan, booted once in each process."""
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
    report = request.node.stash.get(_REPORT, None)
    if report is not None and report.failed:
        print(lab.report())
    lab.close()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RESULTS] = Results()
    config.addinivalue_line("markers", "feature(group, row): where a test stands in docs/interoperability.md")
    config.pluginmanager.register(Collector(config), "interoperability results")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_REPORT] = report
    # A test that fails or is skipped before or behind its call counts as well.
    if isinstance(item, pytest.Function) and (report.when == "call" or report.outcome != "passed"):
        pair = item.funcargs.get("pair") if hasattr(item, "funcargs") else None
        version = pair.theirs.version if isinstance(pair, Pair) else ""
        if (entry := entry_of(item, report, version)) is not None:
            report.user_properties.append((PROPERTY, entry))
    return report


class Collector:
    """Collects the entries where the session is summed up, whichever process made them."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if hasattr(self._config, "workerinput"):
            return
        for name, value in report.user_properties:
            if name == PROPERTY and isinstance(value, dict):
                # Written at once: a run that is ended early has found something too.
                self._config.stash[_RESULTS].add(report.nodeid, value)
                self._config.stash[_RESULTS].write(self._config.rootpath / "build" / "interop" / "results.json")
