"""The address types that every layer shares."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network


class Endpoint(NamedTuple):
    """A UDP endpoint of the underlay. Port 0 stands for a protocol without ports."""

    address: Address
    port: int


class Path(NamedTuple):
    """The two underlay endpoints of a datagram, seen from here. `local` may be unspecified (the kernel picks)."""

    local: Endpoint
    remote: Endpoint
