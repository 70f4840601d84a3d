"""`[tunnel.NAME.authorize]`: which identities may claim which protocol addresses and prefixes."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Annotated

from pydantic import BeforeValidator

from dsvpn.addresses import Prefix
from dsvpn.config.fields import parse_prefix
from dsvpn.errors import MisuseError
from dsvpn.ike.identity import parse_remote_identity

#: Stands for what the peer's certificate carries.
CERTIFICATE = "certificate"


@dataclass(frozen=True, slots=True)
class Grant:
    """What one entry gives: prefixes, and with `certificate` the addresses of the peer's certificate as well."""

    prefixes: tuple[Prefix, ...]
    certificate: bool


def parse_grant(value: object) -> Grant:
    """Addresses, prefixes and the word "certificate", one or a list. ValueError says what to write."""
    prefixes: list[Prefix] = []
    certificate = False
    for item in value if isinstance(value, list | tuple) else [value]:
        if item == CERTIFICATE:
            certificate = True
        elif isinstance(item, str) and "/" not in item:
            try:
                prefixes.append(ip_network(item))
            except ValueError:
                raise ValueError(
                    f'{item!r} is neither an address nor a prefix; write one like "10.0.0.11" or "172.16.1.0/24", '
                    'or "certificate" for the addresses of the peer\'s certificate'
                ) from None
        else:
            prefixes.append(parse_prefix(item))
    return Grant(tuple(prefixes), certificate)


def check_identities(value: object) -> object:
    """ValueError for a key that is no identity."""
    if isinstance(value, dict):
        for text in value:
            try:
                parse_remote_identity(str(text))
            except MisuseError as error:
                raise ValueError(str(error)) from None
    return value


GrantField = Annotated[Grant, BeforeValidator(parse_grant)]
Authorize = Annotated[dict[str, GrantField], BeforeValidator(check_identities)]
