"""What the control plane tells the data plane and the kernel: plain values, applied in order.

The gateway emits them, `dsvpn.io.dataplane` carries them out on the native module, and the simulated data
plane of the tests carries them out on a model. Ids of adjacencies and next hops are small integers that
the gateway allocates and reuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dsvpn.addresses import Address, Path, Prefix

#: How a packet is wrapped on the underlay: ESP in UDP (RFC 3948), ESP as protocol 50, the same in tunnel mode, or plain
#: GRE (protocol 47).
Encapsulation = Literal["udp", "esp", "esp-tunnel", "gre"]

#: Members of a group of next hops.
MAX_GROUP = 8

#: The last resource of an adjacency that can have an outbound SA of its own.
MAX_RESOURCE = 15


@dataclass(frozen=True, slots=True)
class SetAdjacency:
    """Make or replace the adjacency of one peer in one tunnel.

    `path` ports are 0 but for "udp". `mtu` is the largest inner packet in octets that fits the
    underlay. An adjacency of an encapsulation with ESP carries traffic only once it has an outbound SA.
    """

    adjacency: int
    tunnel: str
    encapsulation: Encapsulation
    path: Path
    mtu: int


@dataclass(frozen=True, slots=True)
class RemoveAdjacency:
    """Forget an adjacency and its outbound SAs."""

    adjacency: int


@dataclass(frozen=True, slots=True)
class SetNextHop:
    """Make or change a next hop, which routes point at.

    Packets follow `adjacency`; None drops them as `no_adjacency`. With `resolve`, a packet that uses this
    next hop is also reported as a miss, at a limited rate, so that NHRP can find a better one.
    """

    next_hop: int
    adjacency: int | None
    resolve: bool


@dataclass(frozen=True, slots=True)
class SetNextHopGroup:
    """Make or change a next hop that stands for several others, at most `MAX_GROUP`: each flow keeps to one of them.

    No member is a group itself, and none is removed before the group is.
    """

    next_hop: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RemoveNextHop:
    """Forget a next hop. No route may point at it any more."""

    next_hop: int


@dataclass(frozen=True, slots=True)
class SetRoute:
    """Route a prefix of a tunnel to a next hop."""

    tunnel: str
    prefix: Prefix
    next_hop: int


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Take a prefix out of a tunnel's FIB."""

    tunnel: str
    prefix: Prefix


@dataclass(frozen=True, slots=True)
class SetMulticast:
    """The adjacencies that get a copy of every multicast and broadcast packet of a tunnel."""

    tunnel: str
    adjacencies: tuple[int, ...]


#: Which inner sources an adjacency's packets may have.
SourceCheck = Literal["any", "open", "own"]


@dataclass(frozen=True, slots=True)
class SetSources:
    """Which inner sources the packets of an adjacency may have; at first any.

    "own": what is routed to it, and `prefixes`. "open": besides, what is routed to an adjacency that is open, or that
    may send from anywhere and so stands in for others, or to none at the moment.
    """

    adjacency: int
    check: SourceCheck
    prefixes: tuple[Prefix, ...]


@dataclass(frozen=True, slots=True)
class AddInboundSa:
    """Accept ESP with this SPI (one that the data plane allocated) from these adjacencies.

    `keymat` is the cipher key followed by the salt (RFC 4106 section 8.1, RFC 7634 section 2) and, unless the cipher is
    an AEAD, by the integrity key. `suite` is "aes128gcm16", "aes256gcm16", "chacha20poly1305", or AES-CBC or AES-CTR
    with HMAC, as "aes256-sha256" and "aes256ctr-sha256". `replay_window` counts packets, 0 is off.
    When several adjacencies (tunnels) share the SA, the GRE key tells them apart.
    """

    spi: int
    suite: str
    keymat: bytes
    adjacencies: tuple[int, ...]
    esn: bool
    replay_window: int


@dataclass(frozen=True, slots=True)
class RemoveInboundSa:
    """Stop accepting an SPI and give it back to the allocator."""

    spi: int


@dataclass(frozen=True, slots=True)
class SetOutboundSa:
    """Seal what these adjacencies send with this SA from now on. Replaces the SA that they had for this resource.

    Resource 0 is the fallback SA (RFC 9611): it seals for every worker that has none of its own, and NHRP. A
    `resource` from 1 to `MAX_RESOURCE` is for the worker with this index, counted from 0, among those that
    encapsulate; worker 0 seals with the fallback SA. All SAs of an adjacency have one suite, which its MTU is for.
    """

    spi: int
    suite: str
    keymat: bytes
    adjacencies: tuple[int, ...]
    esn: bool
    resource: int = 0


@dataclass(frozen=True, slots=True)
class ClearOutboundSa:
    """Take the outbound SA of a resource from an adjacency: the worker falls back to resource 0.

    Without the SA of resource 0 the adjacency carries nothing but what workers with SAs of their own still seal:
    those are cleared first.
    """

    adjacency: int
    resource: int = 0


@dataclass(frozen=True, slots=True)
class SendNhrp:
    """Send an NHRP packet through an adjacency: GRE protocol 0x2001, protected as its data is."""

    adjacency: int
    packet: bytes


@dataclass(frozen=True, slots=True)
class SendProbe:
    """Send an ICMP echo request from this host to a tunnel address, by the tunnel. Its answer is data that came in."""

    tunnel: str
    destination: Address


@dataclass(frozen=True, slots=True)
class LookUp:
    """Find the addresses of the NHS `protocol`, whose DNS name is `name`, and tell the gateway."""

    tunnel: str
    protocol: Address
    name: str


@dataclass(frozen=True, slots=True)
class InstallKernelRoute:
    """Show a shortcut to the kernel: `prefix` by `via` (None: on-link) on the tunnel's device."""

    tunnel: str
    prefix: Prefix
    via: Address | None


@dataclass(frozen=True, slots=True)
class RemoveKernelRoute:
    """Take a shortcut route out of the kernel."""

    tunnel: str
    prefix: Prefix


Command = (
    SetAdjacency
    | RemoveAdjacency
    | SetNextHop
    | SetNextHopGroup
    | RemoveNextHop
    | SetRoute
    | RemoveRoute
    | SetMulticast
    | SetSources
    | AddInboundSa
    | RemoveInboundSa
    | SetOutboundSa
    | ClearOutboundSa
    | SendNhrp
    | SendProbe
    | LookUp
    | InstallKernelRoute
    | RemoveKernelRoute
)
