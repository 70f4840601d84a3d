"""What the NHRP engine of one tunnel is told at its start."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface

from dsvpn.addresses import Address, Prefix

#: RFC 2332 leaves the holding time to the station; two hours is what FRR and Cisco routers use by default.
DEFAULT_HOLDING_TIME = 7200
#: Registrations are retried after 1, 2, 4 … seconds and no slower than this.
DEFAULT_REGISTRATION_RETRY_LIMIT = 64.0


@dataclass(frozen=True, slots=True)
class NhsConfig:
    """A next hop server to register with. The NHS with the lowest `priority` that is up resolves addresses.

    `nbma` None: not known yet; `NhrpEngine.set_nhs_nbma` will tell.
    """

    protocol: Address
    nbma: Address | None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class NhrpConfig:
    """The settings of one tunnel.

    `protocol_addresses`: this gateway's tunnel addresses with the length of the tunnel's prefix; a host length
    says nothing about the others. `nbma`: this gateway's underlay address as it knows it itself, None until
    `NhrpEngine.set_nbma`. `holding_time`: seconds that others may keep what this gateway tells them, 3 to 65535.
    `authentication`: the plaintext word of the Cisco authentication extension, or None. `shortcut`: follow
    Traffic Indications. `redirect`: send them. `unique`: register with the U bit. `answer_from_cache`: answer a
    Resolution Request for a registered tunnel address instead of forwarding it. `nhs` and `static_maps` (protocol
    address, NBMA address) are the mappings that stand from the start. `registration_interval`: seconds between
    refreshes, None for a third of the holding time.
    """

    protocol_addresses: tuple[IPv4Interface | IPv6Interface, ...]
    nbma: Address | None = None
    holding_time: int = DEFAULT_HOLDING_TIME
    authentication: bytes | None = None
    shortcut: bool = False
    redirect: bool = False
    unique: bool = False
    answer_from_cache: bool = False
    nhs: tuple[NhsConfig, ...] = ()
    static_maps: tuple[tuple[Address, Address], ...] = ()
    registration_interval: float | None = None
    registration_retry_limit: float = DEFAULT_REGISTRATION_RETRY_LIMIT


@dataclass(frozen=True, slots=True)
class Route:
    """The longest match that the kernel has for a destination, shortcuts left out.

    `tunnel`: it leads through this tunnel. `next_hop`: the protocol address of its gateway, None when on-link.
    `local`: the destination is an address of this machine.
    """

    prefix: Prefix
    tunnel: bool
    next_hop: Address | None = None
    local: bool = False
