"""The gateway: NHRP and IKEv2 on one side, the data plane's tables on the other, and nothing of the outside world.

`core.py` is the whole; `tunnel.py` is one DSVPN network with its mappings and shortcuts, `peers.py` the other gateways
and `peering.py` how they come and go, `forwarding.py` routes and next hops, `status.py` what `dsvpn show` shows.
"""

from __future__ import annotations

from dsvpn.gateway.core import Gateway
from dsvpn.gateway.events import GatewayEvent

__all__ = ["Gateway", "GatewayEvent"]
