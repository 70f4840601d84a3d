"""Roaming: the underlay address of a tunnel changes, and traffic goes on from the new one.

What can move does (`IkeEngine.move`, RFC 4555): its SAs and adjacencies stay, and registrations follow when the other
end knows of the new address. What cannot is made anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dsvpn.addresses import Address
from dsvpn.gateway.agenda import Agenda

if TYPE_CHECKING:
    from dsvpn.gateway.peering import Peering
    from dsvpn.gateway.peers import Peer
    from dsvpn.gateway.tunnel import Tunnel

#: Behind a NAT, the other end looks whether we are there before it uses the new address: a registration that comes
#: sooner would be filed under the old one. Seconds.
NAT_SETTLE_TIME: Final = 1.0


class Roaming:
    """What becomes of the peers of a tunnel whose source address changes."""

    def __init__(self, peering: Peering) -> None:
        self._peering = peering
        #: The address that a tunnel without one had last.
        self._last: dict[str, Address] = {}
        #: When to register anew with a peer.
        self._registrations: Agenda[Peer] = Agenda()
        #: IKE SAs that went on from another address, for `dsvpn show counters`.
        self.moved = 0

    def source_changed(self, tunnel: Tunnel, before: Address | None, now: float) -> None:
        """`tunnel.source` is another address than `before`; either may be none."""
        address = tunnel.source
        last = self._last.get(tunnel.name) if before is None else before
        if address is None:
            if last is not None:
                self._last[tunnel.name] = last
        else:
            self._last.pop(tunnel.name, None)
        carried = False
        peers = [peer for peer in self._peering.peers if tunnel.name in peer.adjacencies]
        if address is not None and not any(peer.ike_sas for peer in peers):
            # Nobody is to be told by another way first: each registration that a new path begins with has it right.
            tunnel.nhrp.set_nbma(address, now, register=False)
        for peer in peers:
            if peer.profile is not None and (last is None or self._stays(peer, last, address, now)):
                carried = carried or bool(peer.ike_sas)
            elif last is not None or peer.profile is None:
                self._peering.restart(peer, "source address changed", now)
        if address is not None:
            tunnel.nhrp.set_nbma(address, now, register=not carried)

    def _stays(self, peer: Peer, last: Address, address: Address | None, now: float) -> bool:
        """Whether the SAs of a peer go on."""
        ike = self._peering.ike
        if peer.path is not None and peer.path.local.address not in (last, address):
            return True
        if not peer.ike_sas or peer.attempt is not None:
            return False
        if address is None:
            # A new one is to come; without it, dead peer detection ends what waits.
            return all(ike.can_move(ike_sa) for ike_sa in peer.ike_sas)
        if address == last:
            return True
        if not all(ike.move(ike_sa, address, now) for ike_sa in peer.ike_sas):
            return False
        self.moved += 1
        return True

    def path_confirmed(self, peer: Peer, now: float) -> None:
        """The other end uses the new path: it may hear where we are."""
        self._registrations[peer] = now + (NAT_SETTLE_TIME if peer.local_nat else 0.0)
        self.handle_timer(now)

    def get_timer(self) -> float | None:
        """When `handle_timer` has something to do."""
        return self._registrations.next()

    def handle_timer(self, now: float) -> None:
        """Register anew where it is time."""
        for peer in self._registrations.take_due(now):
            for name, adjacency in peer.adjacencies.items():
                self._peering.tunnels[name].nhrp.register_with(adjacency, now)
