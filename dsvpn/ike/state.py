"""Where an IKE SA stands.

         initiator                                   responder
CONNECTING --IKE_AUTH answer--> ESTABLISHED <--IKE_AUTH request-- HALF_OPEN
                                     |
    REKEYED <--the peer rekeyed us---+---we end it--> DELETING
       |                             |                   |
       +----------> DEAD <--the peer ends it-------------+
"""

from __future__ import annotations

from enum import Enum
from typing import Final

#: Seconds that a deleted or replaced IKE SA is kept to answer retransmissions, longer than any peer retransmits.
FAREWELL: Final = 60.0
#: Seconds that a peer has from its IKE_SA_INIT to its IKE_AUTH.
HALF_OPEN_LIFETIME: Final = 30.0


class IkeState(Enum):
    """CONNECTING and HALF_OPEN carry IKE_SA_INIT and IKE_AUTH alone. REKEYED has a successor and waits for the peer's
    delete. DELETING has said goodbye and waits for the answer. DEAD repeats its last answer for a while."""

    CONNECTING = "connecting"
    HALF_OPEN = "half-open"
    ESTABLISHED = "established"
    REKEYED = "rekeyed"
    DELETING = "deleting"
    DEAD = "dead"
