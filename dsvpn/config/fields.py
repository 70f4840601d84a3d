"""Field types of the configuration: how a value is written and what it becomes."""

from __future__ import annotations

import re
from ipaddress import (
    IPv4Interface,
    IPv6Interface,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from dsvpn.addresses import Address, Prefix
from dsvpn.commands import MAX_RESOURCE

Interface = IPv4Interface | IPv6Interface

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")


def parse_duration(value: object) -> float:
    """Seconds from "90s", "2h", "1h30m", "500ms" or a plain number of seconds. ValueError says what to write."""
    if isinstance(value, bool):
        raise ValueError('true and false are no durations; write "90s", "10m" or "2h"')
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str):
        text = value.replace(" ", "")
        parts = _DURATION.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            return sum(float(number) * _UNITS[unit] for number, unit in parts)
    raise ValueError(f'{value!r} is no duration; write "90s", "10m" or "2h"')


def parse_address(value: object) -> Address:
    """An IPv4 or IPv6 address."""
    if isinstance(value, str):
        try:
            return ip_address(value)
        except ValueError:
            if "/" in value:
                raise ValueError(f'{value!r} has a prefix length; write the address alone, as "192.0.2.1"') from None
    raise ValueError(f'{value!r} is no IP address; write one like "192.0.2.1" or "2001:db8::1"')


def parse_host(value: object) -> Address | str:
    """An IPv4 or IPv6 address, or a DNS name."""
    try:
        return parse_address(value)
    except ValueError:
        pass
    if isinstance(value, str) and len(value) <= 253 and _HOST_NAME.fullmatch(value):
        name = value.rstrip(".").lower()
        # What ends in a number is a mistyped address: no top-level domain is one (RFC 1123 section 2.1).
        if not name.rpartition(".")[2].isdigit():
            return name
    raise ValueError(
        f'{value!r} is neither an IP address nor a DNS name; write one like "192.0.2.1" or "hub.example.net"'
    )


def parse_interface(value: object) -> Interface:
    """An address with its prefix length."""
    if isinstance(value, str) and "/" in value:
        try:
            return ip_interface(value)
        except ValueError:
            pass
    raise ValueError(f'{value!r} is no address with a prefix length; write one like "10.0.0.11/24"')


def parse_prefix(value: object) -> Prefix:
    """A prefix without host bits."""
    if isinstance(value, str):
        try:
            return ip_network(value)
        except ValueError:
            try:
                wider = ip_network(value, strict=False)
            except ValueError:
                pass
            else:
                raise ValueError(f'{value!r} has host bits set; write "{wider}"') from None
    raise ValueError(f'{value!r} is no prefix; write one like "10.0.0.0/8"')


def parse_per_resource(value: object) -> object:
    """How many CHILD_SAs beside the first: "auto", or a number within 0 and 15."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_RESOURCE):
        return value
    raise ValueError(f'{value!r} is no number of CHILD_SAs; write "auto", or a number from 0 to {MAX_RESOURCE}')


def listed(value: object) -> object:
    """One value stands for a list of one."""
    return value if isinstance(value, list | tuple) else [value]


Duration = Annotated[float, BeforeValidator(parse_duration)]
HostField = Annotated[Address | str, PlainValidator(parse_host)]
AddressField = Annotated[Address, BeforeValidator(parse_address)]
InterfaceField = Annotated[Interface, BeforeValidator(parse_interface)]
PrefixField = Annotated[Prefix, BeforeValidator(parse_prefix)]
PerResource = Annotated[Literal["auto"] | int, BeforeValidator(parse_per_resource)]
GreKey = Annotated[int, Field(ge=0, le=0xFFFFFFFF)]
