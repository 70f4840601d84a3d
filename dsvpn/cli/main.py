"""The command `dsvpn`: `up`, `check`, `show`, `reload`, `redirect`, `pki`, `lab`.

Whatever goes wrong on purpose (a DsvpnError) is one line on standard error and the error's exit code.
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import dsvpn
from dsvpn.cli.pki import pki
from dsvpn.config import Config, load_config
from dsvpn.config.advice import advice
from dsvpn.errors import DsvpnError, HostError, MisuseError
from dsvpn.io.control import RUN_DIRECTORY, ask, running_gateways
from dsvpn.io.host import require_host

app = typer.Typer(
    name="dsvpn",
    help="DSVPN: NHRP, IKEv2, GRE and ESP in one user-space gateway.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

#: Width of tables that do not go to a terminal: nothing is folded that a program could want to read.
_WIDE = 240

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration file (TOML).")]


class Section(StrEnum):
    """What `dsvpn show` shows."""

    SUMMARY = "summary"
    NHRP = "nhrp"
    PEERS = "peers"
    SA = "sa"
    ROUTES = "routes"
    COUNTERS = "counters"
    CERTIFICATES = "certificates"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dsvpn {dsvpn.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and end.")
    ] = False,
) -> None:
    pass


@app.command()
def up(config: ConfigArgument) -> None:
    """Run the gateway of CONFIG in the foreground until SIGTERM or Ctrl-C.

    Needs root (CAP_NET_ADMIN, CAP_NET_RAW, CAP_NET_BIND_SERVICE) and /dev/net/tun. The log goes to standard error.
    """
    loaded = load_config(config)
    require_host()
    try:
        from dsvpn.io.driver import run_gateway
    except ModuleNotFoundError as error:
        if error.name != "dsvpn_native":
            raise
        raise HostError("the data plane is not installed; install the package dsvpn-native") from None
    from dsvpn.observe.log import configure_log

    configure_log(loaded.gateway.log_level, loaded.gateway.log_format)
    run_gateway(loaded)


@app.command()
def check(config: ConfigArgument) -> None:
    """Check CONFIG, and the key files that it names, without starting anything.

    Warnings name what works otherwise than its writer may think.
    """
    loaded = load_config(config)
    warnings = [warning for material in loaded.materials.values() for warning in material.warnings]
    for warning in (*warnings, *advice(loaded)):
        typer.echo(f"{config}: warning: {warning}", err=True)
    typer.echo(f"{config}: good: {_describe(loaded)}")


def _describe(config: Config) -> str:
    tunnels = ", ".join(
        f"{name} ({'ipsec ' + tunnel.ipsec if tunnel.protected else 'not protected'})"
        for name, tunnel in config.tunnels.items()
    )
    return f"gateway {config.gateway.name}, {'tunnel' if len(config.tunnels) == 1 else 'tunnels'} {tunnels}"


@app.command()
def show(
    section: Annotated[Section, typer.Argument(metavar="SECTION", help=", ".join(Section))] = Section.SUMMARY,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    socket: Annotated[Path | None, typer.Option(metavar="PATH", help="Control socket of the gateway.")] = None,
    gateway: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"The gateway of that name in {RUN_DIRECTORY}.")
    ] = None,
) -> None:
    """Show what a running gateway does; without --socket or --gateway, the only one that runs here."""
    value = ask(_find_gateway(socket, gateway), {"show": section.value})
    if as_json:
        typer.echo(json.dumps(value, indent=2))
        return
    from dsvpn.observe.tables import render

    console = Console() if sys.stdout.isatty() else Console(width=_WIDE)
    for number, table in enumerate(render(section.value, value)):
        if number:
            console.print()
        console.print(table)


@app.command()
def reload(
    socket: Annotated[Path | None, typer.Option(metavar="PATH", help="Control socket of the gateway.")] = None,
    gateway: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"The gateway of that name in {RUN_DIRECTORY}.")
    ] = None,
) -> None:
    """Make a running gateway read its configuration, keys, certificates and revocation lists anew, as SIGHUP does.

    Established SAs stay, except those whose peer's certificate is revoked. Of a changed configuration it takes
    what needs no new tunnel, and the keys that need a restart are named.
    """
    answer = ask(_find_gateway(socket, gateway), {"reload": True})
    typer.echo("keys, certificates and revocation lists were read anew")
    if answer["taken"]:
        typer.echo(f"changed and taken: {', '.join(answer['taken'])}")
    if answer["waiting"]:
        typer.echo(f"warning: changed, but not before a restart: {', '.join(answer['waiting'])}", err=True)


@app.command()
def redirect(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Public address of the gateway to go to.")],
    identity: Annotated[str | None, typer.Option(metavar="NAME", help="Only the peer of this identity.")] = None,
    socket: Annotated[Path | None, typer.Option(metavar="PATH", help="Control socket of the gateway.")] = None,
    gateway: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"The gateway of that name in {RUN_DIRECTORY}.")
    ] = None,
) -> None:
    """Ask the spokes of a running hub to go to another hub (RFC 5685): those that follow redirects do."""
    answer = ask(_find_gateway(socket, gateway), {"redirect": address, "identity": identity})
    typer.echo(f"{answer['asked']} peers were asked to go to {address}")


def _find_gateway(socket: Path | None, gateway: str | None) -> Path:
    if socket is not None and gateway is not None:
        raise MisuseError("--socket and --gateway both name a gateway; give one of them")
    if socket is not None:
        return socket
    if gateway is not None:
        if "/" in gateway:
            raise MisuseError(f"{gateway!r} is no gateway name; give the path of a socket with --socket")
        return RUN_DIRECTORY / f"{gateway}.sock"
    running = running_gateways()
    if not running:
        raise HostError(
            f"no gateway answers in {RUN_DIRECTORY}; start one with `dsvpn up CONFIG`, or give --socket PATH"
        )
    if len(running) > 1:
        names = ", ".join(path.stem for path in running)
        raise MisuseError(f"several gateways run here ({names}); choose one with --gateway NAME")
    return running[0]


app.add_typer(pki, name="pki")


@app.command(
    "lab",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    help="Build a DSVPN network in namespaces, show that it works, measure it, and take it down.",
)
def _lab(context: typer.Context) -> None:
    from dsvpn.cli.lab import lab

    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command()(lab)
    command(args=context.args, prog_name="dsvpn lab")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    try:
        ended: Any = app(args=arguments, prog_name="dsvpn")
    except DsvpnError as error:
        print(f"dsvpn: error: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as end:
        ended = end.code
    return ended if isinstance(ended, int) else 0
