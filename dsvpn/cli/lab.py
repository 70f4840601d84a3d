"""`dsvpn lab`: a hub, two spokes and their LANs in network namespaces, started, tried and taken down again."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console

from dsvpn.errors import DsvpnError, HostError, MisuseError
from dsvpn.lab.report import Report
from dsvpn.lab.run import Run, end_stale
from dsvpn.lab.scenario import Options, Scenario

_PACKAGES = {
    "ip": "iproute2",
    "ss": "iproute2",
    "nft": "nftables",
    "iperf3": "iperf3",
    "tcpdump": "tcpdump",
}
_COMPARISON_PACKAGES = {"wireguard-go": "wireguard-go", "wg": "wireguard-tools"}


def lab(
    duration: Annotated[float, typer.Option(min=1, help="Seconds of one iperf3 run.")] = 4.0,
    rounds: Annotated[int, typer.Option(min=1, help="iperf3 runs of each VPN.")] = 3,
    compare: Annotated[bool, typer.Option(help="Run iperf3 through wireguard-go as well.")] = True,
    encapsulation: Annotated[
        Literal["auto", "udp"], typer.Option(help="auto: raw ESP where there is no NAT. udp: ESP in UDP everywhere.")
    ] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write checks and figures to this file.")] = None,
    name: Annotated[
        str, typer.Option(help="Begins the name of every namespace; another one lets two labs run at once.")
    ] = "dsvpn-lab",
    keep: Annotated[bool, typer.Option(help="Leave the network running for exploration.")] = False,
    end: Annotated[bool, typer.Option("--end", help="Take down a lab that was kept, and do nothing else.")] = False,
) -> None:
    """Build a DSVPN network in namespaces, show that it works, measure it, and take it down.

    Needs root. Exits with 0 if everything that it must show was shown.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
        raise MisuseError(f"{name!r} cannot begin the name of a namespace; use letters, digits, - and _")
    if os.geteuid() != 0:
        raise HostError("the lab makes network namespaces, which needs root; run it with sudo")
    if end:
        typer.echo("the lab is taken down" if end_stale(name) else "there is no lab to take down")
        return
    _require(_PACKAGES | (_COMPARISON_PACKAGES if compare else {}))
    report = Report(Console())
    run = Run(name)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    kept = False
    try:
        run.open()
        scenario = Scenario(run, report, Options(duration, rounds, compare, encapsulation, stop=not keep))
        _play(scenario, report)
        kept = keep
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if kept:
            run.keep()
        else:
            run.close()
    report.print_table()
    if json_file is not None:
        report.write_json(json_file)
    if kept:
        typer.echo(_how_to_explore(run))
    if report.failed:
        raise typer.Exit(1)


def _play(scenario: Scenario, report: Report) -> None:
    try:
        scenario.play()
    except (DsvpnError, TimeoutError) as error:
        report.check("the lab runs to its end", False, str(error))
        for gateway in scenario.gateways.values():
            report.say(f"the log of {gateway.site.name} ends:")
            for line in gateway.last_lines(15):
                report.say(f"  {line}")


def _require(commands: dict[str, str]) -> None:
    """HostError that names the Debian packages of the commands that are not there."""
    missing = sorted({package for name, package in commands.items() if shutil.which(name, path=_path()) is None})
    if missing:
        raise HostError(f"the lab needs programs that are not installed; run: apt-get install {' '.join(missing)}")
    if not Path("/dev/net/tun").exists():
        raise HostError("/dev/net/tun is missing; load the module with: modprobe tun")


def _path() -> str:
    # A user's PATH under sudo or su may lack the places where nft and ip are.
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    return os.environ["PATH"]


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _how_to_explore(run: Run) -> str:
    return (
        f"the lab is kept. Its gateways: {run.directory}/*.toml, *.sock, *.log. Try:\n"
        f"  ip netns exec {run.prefix}-spoke1-lan ping 172.16.2.10\n"
        f"  dsvpn show peers --socket {run.directory}/spoke1.sock\n"
        f"End it with: dsvpn lab --end --name {run.prefix}"
    )
