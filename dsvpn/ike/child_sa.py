"""A CHILD_SA as the engine knows it: SPIs, lifetimes and where it stands in a rekey. Its keys go to the owner and are
not kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import TYPE_CHECKING

from dsvpn.ike.suites import EspSuite
from dsvpn.ike.volume import Volume

if TYPE_CHECKING:
    from dsvpn.ike.create_child import CreateChild

#: CHILD_SAs that one peer may have without a group of them (dsvpn/ike/per_resource.py).
MAX_CHILDREN = 16
#: Seconds that the inbound side of a rekeyed SA goes on, for packets that were on their way (RFC 7296 section 2.8).
LINGER = 5.0
#: Seconds that an SA whose hard lifetime is over waits for its successor before it is deleted. It seals nothing then.
SUCCESSOR_WAIT = 10.0


class ChildState(Enum):
    """INSTALLED carries traffic. REKEYED has a successor that the peer made, and waits for the peer's delete.
    DELETING is being deleted by us. LINGERING is deleted at both ends; late packets are still taken."""

    INSTALLED = "installed"
    REKEYED = "rekeyed"
    DELETING = "deleting"
    LINGERING = "lingering"


@dataclass(slots=True, eq=False)
class ChildSa:
    """One CHILD_SA. SPIs are ints; `inbound_spi` is ours. Times are in the clock of `now`."""

    inbound_spi: int
    outbound_spi: int
    suite: EspSuite
    esn: bool
    udp_encapsulation: bool
    created: float
    rekey_at: float
    expires_at: float
    volume: Volume
    replaces: int | None
    outbound_ready: bool
    #: Its place in the group (dsvpn/ike/per_resource.py).
    resource: int = 0
    state: ChildState = ChildState.INSTALLED
    #: The losing SA of a simultaneous rekey: whoever made it deletes it, and nothing is sealed with it.
    redundant: bool = False
    #: Its hard lifetime is over: nothing is sealed with it, and it goes when it is rekeyed, or soon without that.
    expired: bool = False
    #: Our rekey of this SA whose answer is outstanding.
    rekey: CreateChild | None = field(default=None, repr=False)
    #: When the peer is believed to have it, without a sign.
    ready_at: float = inf
    #: The end of LINGERING.
    gone_at: float = 0.0
