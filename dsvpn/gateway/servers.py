"""Which peers are the NHSs and the gateways of static mappings that the configuration names by their NBMA addresses.

An address proves nothing: whoever sits behind the same NAT has it too. A server is whom this end has reached by calling
that address, or who proves the identity that the configuration names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from dsvpn.addresses import Address
from dsvpn.ike.identity import Identity, RemoteIdentity, parse_remote_identity

if TYPE_CHECKING:
    from dsvpn.config.model import TunnelConfig
    from dsvpn.gateway.peers import Peer, PeerTable
    from dsvpn.gateway.tunnel import Tunnel

#: Kinds of mappings that are configured.
_CONFIGURED = frozenset({"nhs", "static"})


class Servers:
    """The configured gateways of all tunnels, and who may be them."""

    def __init__(self, tunnels: Mapping[str, Tunnel], peers: PeerTable) -> None:
        self._peers = peers
        self._wanted = {name: wanted_identities(tunnel.config) for name, tunnel in tunnels.items()}

    def is_server(self, peer: Peer, tunnel: str) -> bool:
        """Whether a peer is a configured gateway of a tunnel. Plain GRE has nothing but addresses."""
        for other in self._peers.at(peer.profile, peer.nbma):
            for protocol in self._of(other, tunnel):
                wanted = self._wanted[tunnel].get(protocol)
                if peer.profile is None:
                    return True
                if peer.proved is None:
                    continue
                if wanted.matches(peer.proved) if wanted is not None else _same(other.reached, peer.proved):
                    return True
        return False

    def admits(self, peer: Peer, caller: Identity) -> bool:
        """Whether somebody who calls may be the one that mappings want this peer for, whom nobody has reached yet."""
        for tunnel in peer.adjacencies:
            for protocol in self._of(peer, tunnel):
                wanted = self._wanted[tunnel].get(protocol)
                if wanted is not None and not wanted.matches(caller):
                    return False
        return True

    def is_unreached(self, peer: Peer) -> bool:
        """Whether somebody has called from the address of an NHS, so that it is to be called all the same: then it is
        known who is there."""
        return peer.profile is not None and any(
            kind == "nhs" and not self.is_server(peer, tunnel) for (tunnel, _), kind in peer.needs.items()
        )

    def reached(self, peer: Peer) -> str:
        """This end has called, and the peer has proved who it is: why that is not whom the configuration names;
        empty if it may be."""
        for tunnel in peer.adjacencies:
            for protocol in self._of(peer, tunnel):
                wanted = self._wanted[tunnel].get(protocol)
                if wanted is not None and peer.proved is not None and not wanted.matches(peer.proved):
                    return f"{peer.nbma} is {peer.proved}, and {protocol} in {tunnel} should be {wanted}"
        peer.reached = peer.proved
        return ""

    def _of(self, peer: Peer, tunnel: str) -> Iterator[Address]:
        for (name, protocol), kind in peer.needs.items():
            if name == tunnel and kind in _CONFIGURED:
                yield protocol


def wanted_identities(config: TunnelConfig) -> dict[Address, RemoteIdentity]:
    """The identities that the configuration names, by tunnel address."""
    entries = (*config.nhrp.nhs, *config.nhrp.map)
    return {entry.protocol: parse_remote_identity(entry.identity) for entry in entries if entry.identity is not None}


def _same(reached: Identity | None, proved: Identity) -> bool:
    return reached is not None and reached.matches(proved)
