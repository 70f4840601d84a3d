"""`dsvpn pki`: a certificate authority for those who have none."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dsvpn.pki import Algorithm, Authority

pki = typer.Typer(
    help="Make a CA, gateway certificates and revocation lists, for those who have no PKI.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The directory of the CA.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The gateway's name, such as spoke1.example.net.")]
Days = typer.Option(min=1, max=36500, help="Days until it expires.")
Prefixes = typer.Option(
    help="A tunnel address or prefix that the gateway may claim (RFC 3779); several are possible. Default: not said."
)
AlgorithmOption = Annotated[Algorithm, typer.Option("--algorithm", help="The kind of key.")]


@pki.command()
def init(
    directory: Directory,
    name: Annotated[str, typer.Option(help="What the CA calls itself.")] = "dsvpn CA",
    algorithm: AlgorithmOption = Algorithm.ECDSA_P256,
    days: Annotated[int, Days] = 3650,
    prefix: Annotated[
        list[str] | None, typer.Option(help="A prefix within which those of its gateways lie (RFC 3779). Default: any.")
    ] = None,
) -> None:
    """Make a CA: its key, its certificate and an empty revocation list."""
    authority = Authority.create(directory, name, algorithm, days, time.time(), prefix or ())
    typer.echo(f"{authority.certificate_file}: the CA certificate, for `ca` of every gateway")
    typer.echo(f"{authority.crl_file}: its revocation list, for `crl` of every gateway; make it anew before it expires")
    typer.echo(f"{authority.key_file}: the CA key; whoever has it can be any gateway: keep it away from them")


@pki.command()
def issue(
    directory: Directory,
    name: Name,
    san: Annotated[
        list[str] | None,
        typer.Option(
            help="An identity of the gateway: a name, user@host or an address; several are possible. Default: NAME."
        ),
    ] = None,
    prefix: Annotated[list[str] | None, Prefixes] = None,
    algorithm: AlgorithmOption = Algorithm.ECDSA_P256,
    days: Annotated[int, Days] = 397,
) -> None:
    """Make a gateway's key and certificate."""
    certificate, key = Authority.open(directory).issue(name, san or [name], algorithm, days, time.time(), prefix or ())
    typer.echo(f"{certificate}: for `certificate` of the gateway")
    typer.echo(f"{key}: for its `private_key`")


@pki.command()
def renew(
    directory: Directory,
    name: Name,
    new_key: Annotated[bool, typer.Option("--new-key", help="Make a new key as well, of the old one's kind.")] = False,
    days: Annotated[int, Days] = 397,
) -> None:
    """Replace a gateway's certificate by one that is valid longer; `dsvpn reload` makes the gateway take it."""
    certificate, key = Authority.open(directory).renew(name, days, time.time(), new_key)
    typer.echo(f"{certificate}: renewed; run `dsvpn reload` where the gateway runs")
    if new_key:
        typer.echo(f"{key}: the new key")


@pki.command()
def revoke(
    directory: Directory,
    name: Annotated[str, typer.Argument(metavar="NAME|SERIAL", help="A gateway's name, or a serial number in hex.")],
) -> None:
    """Revoke every certificate of a gateway, or the one with a serial number, and make the revocation list anew."""
    authority = Authority.open(directory)
    serials = authority.revoke(name, time.time())
    typer.echo(f"revoked {', '.join(f'{serial:x}' for serial in serials)}")
    typer.echo(f"{authority.crl_file}: give it to every gateway and run `dsvpn reload` there")


@pki.command()
def crl(directory: Directory, days: Annotated[int, Days] = 30) -> None:
    """Make the revocation list anew."""
    authority = Authority.open(directory)
    authority.write_crl(time.time(), days)
    typer.echo(f"{authority.crl_file}: valid for {days} days")


@pki.command("list")
def list_(directory: Directory) -> None:
    """List the certificates of the CA."""
    now = time.time()
    for entry in Authority.open(directory).entries():
        if entry.revoked_at is not None:
            state = "revoked"
        else:
            state = "expired" if entry.expires_at < now else f"{(entry.expires_at - now) / 86400:.0f} days left"
        typer.echo(f"{entry.serial:x} {entry.name} {state}")
