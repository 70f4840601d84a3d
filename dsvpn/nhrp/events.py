"""What the NHRP engine of one tunnel tells its owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dsvpn.addresses import Address, Prefix

#: How a mapping came to be. "nhs" and "static" are configured, "registered" came by registration at this NHS,
#: "resolved" by a Resolution Reply, "observed" from the source of a request (S bit).
MappingKind = Literal["nhs", "static", "registered", "resolved", "observed"]


@dataclass(frozen=True, slots=True)
class MappingAdded:
    """A protocol address of the tunnel is reachable at an NBMA address: a peer is wanted there.

    `nbma` is the public (post-NAT) address, `private_nbma` the one the peer claims for itself (equal without NAT).
    `peer` is the adjacency that the mapping was learned from directly (registration), or None (resolution): then the
    owner finds or makes a peer for `nbma`. A mapping that changes is reported again with the new values. `port` is the
    UDP port at which an NHS sees the peer's port 4500 behind NAT, None when none has told.
    """

    protocol: Address
    nbma: Address
    private_nbma: Address
    kind: MappingKind
    peer: int | None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class MappingRemoved:
    """A mapping expired, was purged or replaced by nothing. Its peer may go when nothing else needs it."""

    protocol: Address
    reason: str


@dataclass(frozen=True, slots=True)
class ShortcutAdded:
    """`prefix` is reachable directly by the mapping of `next_hop` (equal to the prefix's address for a tunnel
    address). The owner moves the traffic once the peer's SA is up."""

    prefix: Prefix
    next_hop: Address


@dataclass(frozen=True, slots=True)
class ShortcutRemoved:
    """A shortcut expired, was purged or is refused: traffic goes by the route that was there before."""

    prefix: Prefix
    reason: str


@dataclass(frozen=True, slots=True)
class NhsUp:
    """The NHS has accepted this gateway's registration."""

    protocol: Address
    nat_address: Address | None  # this end's public NBMA address, when the NHS reports one that differs


@dataclass(frozen=True, slots=True)
class NhsDown:
    """The NHS refuses the registration or is silent. `reason` is one line for people. Retries go on."""

    protocol: Address
    reason: str
    #: True when the registration stayed unanswered so long that the peer's SA should be made anew.
    restart_peer: bool


#: What a peer tried in the name of an address that is not its own; "send" is data from there.
DeniedAction = Literal["register", "resolve", "answer", "purge", "send"]


@dataclass(frozen=True, slots=True)
class ClaimDenied:
    """A peer has claimed what its identity does not give it. Told once for each identity and action."""

    identity: str
    action: DeniedAction
    protocol: Address
    reason: str


Event = MappingAdded | MappingRemoved | ShortcutAdded | ShortcutRemoved | NhsUp | NhsDown | ClaimDenied
