"""The lab as a whole: it passes on a good network, and says what is wrong with a bad one."""

from __future__ import annotations

import io
import os

import pytest
from rich.console import Console

from dsvpn.lab.gateways import Settings
from dsvpn.lab.report import Report
from dsvpn.lab.run import Run
from dsvpn.lab.scenario import Options, Scenario

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.slow]


def play(settings: Settings, options: Options) -> tuple[Report, str]:
    """Run the scenario and give its report and what it printed."""
    output = io.StringIO()
    report = Report(Console(file=output, width=160))
    run = Run(f"dsvpn-sc{os.getpid()}")
    run.open()
    try:
        scenario = Scenario(run, report, options)
        for gateway in scenario.gateways.values():
            gateway.settings = settings
        scenario.play()
        for gateway in scenario.gateways.values():
            output.write("\n".join([f"--- log of {gateway.site.name}", *gateway.last_lines(30), ""]))
    finally:
        run.close()
    return report, output.getvalue()


def test_the_lab_passes_with_a_wireguard_comparison() -> None:
    report, printed = play(Settings(), Options(duration=2, rounds=1))
    assert not report.failed, printed
    assert report.figures["switch_seconds"] < 1
    assert report.figures["pings_lost"] == 0


def test_the_lab_fails_on_a_network_that_does_not_encrypt() -> None:
    report, printed = play(Settings(ipsec=False), Options(duration=1, rounds=1, compare=False))
    failed = {check.name for check in report.failed}
    assert "no user data in clear on the underlay" in failed, printed
    assert "the capture holds nothing but IKE, ESP and ESP in UDP" in failed
    assert "nothing else crossed the underlay in the whole run" in failed


def test_the_lab_fails_without_shortcuts() -> None:
    settings = Settings(nhrp={"shortcut": "false", "redirect": "false"})
    report, printed = play(settings, Options(duration=1, rounds=1, compare=False))
    failed = {check.name for check in report.failed}
    assert "direct path within 1 s of the first packet" in failed, printed
    assert "the hub forwards nothing while the spokes talk" in failed
