"""Direct paths between gateways behind NAT: who is called where, and why a pair still goes by the hub."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dsvpn.nhrp.events import MappingAdded

if TYPE_CHECKING:
    from dsvpn.gateway.peers import Peer
    from dsvpn.gateway.tunnel import Tunnel

#: Where a call begins when both ends are behind NAT (RFC 7296 section 2.23 allows that): a NAT box lets in what comes
#: from where its own side has sent to, so both ends have to send to the port that the other one uses in the end.
PUNCH_PORT = 4500


def near(event: MappingAdded, tunnel: Tunnel) -> MappingAdded:
    """The mapping with the address to reach it by from here: its private one if it is behind this end's own NAT.

    Few NAT boxes send back inside what inside hosts send to the public address (RFC 4787 section 6, hairpinning).
    """
    own = tunnel.nhrp.nat_address
    if event.kind in ("resolved", "observed") and own is not None and event.nbma == own != event.private_nbma:
        return replace(event, nbma=event.private_nbma, port=None)
    return event


def wants_punch(event: MappingAdded, tunnel: Tunnel) -> bool:
    """Whether both this end and the other one of a new direct path are behind NATs, different ones."""
    if event.kind not in ("resolved", "observed") or tunnel.profile is None:
        return False
    return tunnel.nhrp.nat_address is not None and event.private_nbma != event.nbma


def port_seen(peer: Peer | None) -> int | None:
    """The UDP port at which this end sees port 4500 of a peer behind NAT, None without NAT or UDP."""
    if peer is None or peer.path is None or not peer.remote_nat or peer.path.local.port != PUNCH_PORT:
        return None
    return peer.path.remote.port or None


def punch_port(peer: Peer) -> int:
    """Which port of a peer behind NAT to call: in turns the one at which an NHS sees it, and 4500.

    A box that maps by destination shows the NHS a port that is of no use to others, and may forward 4500 all the same.
    """
    return PUNCH_PORT if peer.nat_port is None or peer.failures % 2 else peer.nat_port


def explain(peer: Peer, retry_in: float | None) -> tuple[str, str]:
    """How traffic gets to a peer, "direct" or "hub" (or "none": it is a hub itself, and away), and why."""
    if peer.carries:
        return "direct", ""
    path = "none" if "nhs" in peer.needs.values() else "hub"
    if peer.up:
        return path, "waiting for the peer's first packet"
    nat = "both ends are behind NAT" if peer.punch else ""
    if peer.punch and peer.nat_port not in (None, PUNCH_PORT):
        nat += f", the peer's box shows the hub port {peer.nat_port}"
    if peer.attempt is not None:
        state = "hole punching under way" if peer.punch else "calling"
    elif retry_in is not None:
        state = f"next try in {retry_in:.0f} s"
    elif peer.needs and not peer.calls:
        state = "waiting for the peer to call"
    else:
        state = ""
    return path, "; ".join(part for part in (nat, state, peer.last_error) if part)
