"""What the IKEv2 engine tells its owner."""

from __future__ import annotations

from dataclasses import dataclass

from dsvpn.addresses import Address, Path, Prefix
from dsvpn.ike.identity import Identity


@dataclass(frozen=True, slots=True)
class IkeSaEstablished:
    """An IKE SA is authenticated. `ike_sa` is the engine's handle, unique for the life of the engine.

    `initial_contact`: the peer said that it has no other SA with us (RFC 7296 section 2.4). `begun`: when IKE_SA_INIT
    came or went, seconds.
    """

    ike_sa: int
    profile: str
    initiator: bool
    path: Path
    remote_identity: str
    local_nat: bool
    remote_nat: bool
    initial_contact: bool
    begun: float
    #: The address that the peer proposed as its own in its traffic selectors, before NAT substitution (RFC 7296
    #: section 2.23.1). With several peers behind one NAT address it tells which of them this is. None when unknown.
    remote_claimed: Address | None = None
    #: `remote_identity` as the peer has proved it, and the addresses that the certificate carries with which it did.
    identity: Identity | None = None
    certified: tuple[Prefix, ...] = ()
    delegated: tuple[Prefix, ...] | None = None


@dataclass(frozen=True, slots=True)
class IkeSaFailed:
    """An IKE SA that this end initiated did not come to life. `reason` is one line for people."""

    ike_sa: int
    profile: str
    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class IkeSaDeleted:
    """An established IKE SA is gone, its CHILD_SAs with it (each reported before by ChildSaDeleted)."""

    ike_sa: int
    reason: str


@dataclass(frozen=True, slots=True)
class IkeAuthenticationRefused:
    """A peer that initiated was refused. The owner shows it; nothing was let in."""

    profile: str
    path: Path
    remote_identity: str
    reason: str


@dataclass(frozen=True, slots=True)
class ChildSaEstablished:
    """A CHILD_SA has keys. The owner installs the inbound SA before it sends the engine's next datagrams.

    `outbound_ready` False means: keep sealing with the old SA until ChildSaOutboundReady (the responder of a rekey
    waits until the initiator is known to have the new SA). `replaces` is the inbound SPI of the SA that this one
    rekeys, or None. `keymat_*` is cipher key then salt. `resource` is its place among those of its IKE SA that stand
    side by side for several workers (RFC 9611), 0 to 15: 0 is the fallback, and the only one without that.
    """

    ike_sa: int
    profile: str
    suite: str
    esn: bool
    inbound_spi: int
    inbound_keymat: bytes
    outbound_spi: int
    outbound_keymat: bytes
    udp_encapsulation: bool
    path: Path
    outbound_ready: bool
    replaces: int | None
    resource: int = 0


@dataclass(frozen=True, slots=True)
class ChildSaOutboundReady:
    """The peer has installed this CHILD_SA: seal with it from now on.

    Of one IKE SA's CHILD_SAs with one `resource`, the one to seal with is the last that was said to be ready, here or
    by ChildSaEstablished. When that one is being deleted and another is ready, this event names the other first.
    """

    ike_sa: int
    inbound_spi: int


@dataclass(frozen=True, slots=True)
class ChildSaOutboundStopped:
    """Seal nothing with this CHILD_SA any more: its hard lifetime is over (RFC 4301 section 4.4.2.1) or it is being
    deleted, and no other of its IKE SA and `resource` can seal instead yet. It opens what comes until
    ChildSaDeleted."""

    ike_sa: int
    inbound_spi: int


@dataclass(frozen=True, slots=True)
class ChildSaDeleted:
    """A CHILD_SA is gone. After a rekey the inbound side lingers a few seconds before this comes."""

    ike_sa: int
    inbound_spi: int
    outbound_spi: int


@dataclass(frozen=True, slots=True)
class IkeSaRekeyed:
    """The IKE SA was rekeyed: the same handle goes on under new SPIs, its CHILD_SAs untouched."""

    ike_sa: int


@dataclass(frozen=True, slots=True)
class IkeReauthentication:
    """The peer of `ike_sa` is authenticated anew by another IKE SA, `successor`.

    That one ends in IkeSaEstablished and ChildSaEstablished, to which traffic moves, or in IkeSaFailed; `ike_sa` goes
    on meanwhile and is deleted a few seconds after its successor stands.
    """

    ike_sa: int
    successor: int


@dataclass(frozen=True, slots=True)
class IkePathChanged:
    """IKE goes by another path, and ESP follows: the peer's NAT has another mapping (RFC 7296 section 2.23), or one
    end moved (RFC 4555). `confirmed`: the peer knows of it."""

    ike_sa: int
    path: Path
    udp_encapsulation: bool
    local_nat: bool
    remote_nat: bool
    confirmed: bool


@dataclass(frozen=True, slots=True)
class IkeRedirected:
    """The gateway at `sender` hands this end on to `target` (RFC 5685), which the profile allows.

    With `established` the IKE SA goes on until the owner, having one with `target`, deletes it. Without, IkeSaFailed
    follows. The owner limits how often it follows.
    """

    ike_sa: int
    profile: str
    sender: Address
    target: Address
    established: bool


Event = (
    IkeSaEstablished
    | IkeSaFailed
    | IkeSaDeleted
    | IkeAuthenticationRefused
    | ChildSaEstablished
    | ChildSaOutboundReady
    | ChildSaOutboundStopped
    | ChildSaDeleted
    | IkeSaRekeyed
    | IkeReauthentication
    | IkePathChanged
    | IkeRedirected
)
