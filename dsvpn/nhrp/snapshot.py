"""The state of an NHRP engine as plain values, for `dsvpn show nhrp`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dsvpn.addresses import Address, Prefix
from dsvpn.nhrp.events import DeniedAction, MappingKind

#: "waiting": no protected path to the NHS. "registering": a request is out. "up": registered.
#: "refused": the NHS answered and said no. "silent": several requests in a row went unanswered.
NhsState = Literal["waiting", "registering", "up", "refused", "silent"]
#: "active": in use. "renewing": in use, its Resolution Request is out again.
ShortcutState = Literal["active", "renewing"]
#: "pending": a Resolution Request is out. "negative": there is no answer; it is not asked again until `expires_in`.
ResolutionState = Literal["pending", "negative"]


@dataclass(frozen=True, slots=True)
class MappingStatus:
    """One protocol address and where it is. `expires_in` is in seconds, None for what stands for ever."""

    protocol: Address
    nbma: Address
    private_nbma: Address
    kind: MappingKind
    peer: int | None
    unique: bool
    expires_in: float | None
    #: The identity that holds the address, None where none was proved.
    holder: str | None = None


@dataclass(frozen=True, slots=True)
class NhsStatus:
    """One NHS. `nbma` None: its name was not looked up yet. `registered_for` and `next_in` are seconds: since it was
    up, until the next request."""

    protocol: Address
    nbma: Address | None
    priority: int
    state: NhsState
    nat_address: Address | None
    last_error: str
    registered_for: float | None
    next_in: float | None


@dataclass(frozen=True, slots=True)
class ShortcutStatus:
    """One shortcut. `idle` is the time in seconds since traffic was last noted, None for never."""

    prefix: Prefix
    next_hop: Address
    state: ShortcutState
    expires_in: float
    idle: float | None


@dataclass(frozen=True, slots=True)
class ResolutionStatus:
    """One address that is being resolved or could not be."""

    target: Address
    state: ResolutionState
    attempts: int
    expires_in: float
    reason: str


@dataclass(frozen=True, slots=True)
class DenialStatus:
    """What one identity has tried in vain. `protocol` and `reason` are of the last time, `ago` seconds since then."""

    identity: str
    action: DeniedAction
    protocol: Address
    reason: str
    count: int
    ago: float


@dataclass(frozen=True, slots=True)
class NhrpSnapshot:
    """Everything at once. `counters` has names like "rx.registration_request", "tx.purge_reply", "drop.checksum"."""

    nbma: Address | None
    nat_address: Address | None
    mappings: tuple[MappingStatus, ...]
    nhs: tuple[NhsStatus, ...]
    shortcuts: tuple[ShortcutStatus, ...]
    resolutions: tuple[ResolutionStatus, ...]
    counters: dict[str, int]
    denials: tuple[DenialStatus, ...] = ()
