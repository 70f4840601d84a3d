"""Which inner sources each peer may send from, as the data plane is told.

The FIB says who has an address, so the data plane needs to know little: who carries others' packets (the NHSs and the
gateways of static mappings), and what a peer's identity gives it besides what is routed to it. A new direct path brings
packets before this end has learned what is behind it; then the hub stands in for the peer, and the peer is *open*.
When traffic moves from one path to another, the two directions of a flow do not move at once: what came rightly by the
old path may do so for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dsvpn.addresses import Address, Prefix
from dsvpn.commands import Command, SetSources
from dsvpn.gateway.agenda import Agenda
from dsvpn.gateway.peers import Peer, PeerTable
from dsvpn.gateway.servers import Servers
from dsvpn.gateway.tunnel import Tunnel

#: Prefixes that a peer has because it is one way to them of several; the one found first makes room.
MAX_FOUND = 64
#: So long after the direct path to a source has come up, the last packets by the old path may arrive, seconds.
GRACE = 10.0
#: Who has sent from another's addresses gets no benefit of the doubt for so long, seconds.
CONVICTION = 600.0


class Sources:
    """What the data plane knows of each adjacency, and what it asks. `emit` takes commands."""

    def __init__(
        self, tunnels: Mapping[str, Tunnel], peers: PeerTable, servers: Servers, emit: Callable[[Command], None]
    ) -> None:
        self._tunnels = tunnels
        self._servers = servers
        self._peers = peers
        self._emit = emit
        self._told: dict[int, SetSources] = {}
        #: By adjacency, what was found to be the peer's though the FIB leads elsewhere.
        self._found: dict[int, dict[Prefix, None]] = {}
        #: By adjacency, until when doubt speaks against the peer.
        self._convicted: Agenda[int] = Agenda()
        #: Direct paths of the last moments, by tunnel and prefix, the oldest first.
        self._moved: dict[tuple[str, Prefix], float] = {}

    def refresh(self, peer: Peer) -> None:
        """The peer has been placed in the data plane, has proved something, or is wanted by other mappings."""
        if not peer.placed:
            return
        for name, adjacency in peer.adjacencies.items():
            tunnel = self._tunnels[name]
            if tunnel.config.checks_sources:
                self._tell(tunnel, peer, adjacency)

    def get_timer(self) -> float | None:
        """When `handle_timer` has something to do."""
        return self._convicted.next()

    def handle_timer(self, now: float) -> None:
        """Let those have the benefit of the doubt again whose time is over."""
        for adjacency in self._convicted.take_due(now):
            found = self._peers.by_adjacency(adjacency)
            if found is not None:
                self.refresh(found[1])

    def start_anew(self, peer: Peer) -> None:
        """What was found of a peer may be past."""
        for adjacency in peer.adjacencies.values():
            self._found.pop(adjacency, None)
        self.refresh(peer)

    def forget(self, adjacency: int) -> None:
        """An adjacency is gone: its number may come back for another peer's."""
        self._told.pop(adjacency, None)
        self._found.pop(adjacency, None)
        self._convicted.pop(adjacency)

    def handle(self, name: str, adjacency: int, source: Address, passed: bool, now: float) -> None:
        """A packet came from `adjacency` whose source is not routed there. `passed`: it may be the peer's all the same,
        and was let pass; else it was dropped."""
        found = self._peers.by_adjacency(adjacency)
        if found is None or found[0] != name:
            return
        tunnel, peer = self._tunnels[name], found[1]
        if passed and not self._is_settled(tunnel, peer, source, now):
            tunnel.nhrp.verify_source(source, now)
            return
        prefix = self._way_to(tunnel, peer, adjacency, source)
        if prefix is not None:
            self._find(tunnel, peer, prefix)
            return
        if passed:
            self._convicted[adjacency] = now + CONVICTION
            self._tell(tunnel, peer, adjacency)
        tunnel.nhrp.deny_source(adjacency, source, self._owner(tunnel, source), now)

    def overtaken(self, tunnel: Tunnel, prefix: Prefix, now: float) -> None:
        """A direct path for a prefix is about to take its traffic from the peer that the kernel routes it to."""
        for moved in [moved for moved, since in self._moved.items() if now - since > GRACE]:
            del self._moved[moved]
        self._moved[tunnel.name, prefix] = now
        via = tunnel.nhrp.kernel_next_hop(prefix.network_address)
        mapping = None if via is None else tunnel.mappings.get(via)
        if mapping is not None and mapping.peer is not None and tunnel.config.checks_sources:
            self._find(tunnel, mapping.peer, prefix)

    def _find(self, tunnel: Tunnel, peer: Peer, prefix: Prefix) -> None:
        adjacency = peer.adjacencies[tunnel.name]
        told = self._told.get(adjacency)
        if told is None or told.check == "any":
            return
        known = self._found.setdefault(adjacency, {})
        known[prefix] = None
        if len(known) > MAX_FOUND:
            del known[next(iter(known))]
        self._tell(tunnel, peer, adjacency)

    def _is_settled(self, tunnel: Tunnel, peer: Peer, source: Address, now: float) -> bool:
        """Whether it has been known for a while that a source is behind other peers."""
        others = self._peers_to(tunnel, source)
        if not others or peer in others:
            return False
        covering = tunnel.forwarding.covering(source)
        moved = None if covering is None else self._moved.get((tunnel.name, covering[0]))
        if moved is not None and now - moved <= GRACE:
            return False
        return all(
            self._is_checked(tunnel, other) and other.since is not None and now - other.since > GRACE
            for other in others
        )

    def _is_checked(self, tunnel: Tunnel, peer: Peer) -> bool:
        told = self._told.get(peer.adjacencies[tunnel.name])
        return told is not None and told.check != "any"

    def _tell(self, tunnel: Tunnel, peer: Peer, adjacency: int) -> None:
        kinds = {kind for (name, _), kind in peer.needs.items() if name == tunnel.name}
        found = tuple(self._found.get(adjacency, ()))
        claim = tunnel.authorizer.claim(peer.proved, peer.certified, peer.delegated)
        if self._servers.is_server(peer, tunnel.name):
            command = SetSources(adjacency, "any", ())
        elif claim is not None and claim.prefixes is not None:
            command = SetSources(adjacency, "own", claim.prefixes + found)
        else:
            certified = () if claim is None or claim.addresses is None else claim.addresses
            # Where no hub can stand in for anybody, and for those that this gateway is the hub of, the routes tell.
            nhrp = tunnel.config.nhrp
            spoke = bool(nhrp.nhs or nhrp.map) and "registered" not in kinds and adjacency not in self._convicted
            command = SetSources(adjacency, "open" if spoke else "own", certified + found)
        if self._told.get(adjacency) != command:
            self._told[adjacency] = command
            self._emit(command)

    def _way_to(self, tunnel: Tunnel, peer: Peer, adjacency: int, source: Address) -> Prefix | None:
        """The prefix around a source that a peer is one way to, though traffic to it takes another: one gateway has two
        peer entries for a while, or a direct path leads past the hub below that the kernel's route has."""
        covering = tunnel.forwarding.covering(source)
        if covering is None:
            return None
        prefix = covering[0]
        others = self._peers_to(tunnel, source)
        if any(other.proved is not None and other.proved == peer.proved for other in others):
            return prefix
        kernel = tunnel.nhrp.routed_to(adjacency, source)
        if kernel is None:
            return None
        return max(prefix, kernel, key=lambda found: found.prefixlen)

    def _peers_to(self, tunnel: Tunnel, source: Address) -> list[Peer]:
        """The peers that have a source, whatever stands in for them: several where a route has several next hops."""
        covering = tunnel.forwarding.covering(source)
        if covering is None:
            return []
        via = covering[1].address
        addresses = (source,) if via is None else via if isinstance(via, tuple) else (via,)
        mappings = [tunnel.mappings.get(address) for address in addresses]
        return [mapping.peer for mapping in mappings if mapping is not None and mapping.peer is not None]

    def _owner(self, tunnel: Tunnel, source: Address) -> str:
        others = self._peers_to(tunnel, source)
        return f"it is behind {others[0].identity or others[0].nbma}" if others else "no peer has it"
