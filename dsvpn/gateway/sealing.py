"""The CHILD_SAs of peers: which one seals, by which path, and from when traffic may use it.

One is the fallback, which makes the peer up or not and has the path. Others of the same IKE SA may stand beside it,
each for one worker of the data plane (RFC 9611). When the fallback goes and none takes its place, the last worker's
does.
"""

from __future__ import annotations

from collections.abc import Callable

from dsvpn.addresses import Endpoint, Path
from dsvpn.commands import AddInboundSa, ClearOutboundSa, Command, RemoveInboundSa, SetAdjacency, SetOutboundSa
from dsvpn.config.model import Config
from dsvpn.gateway.agenda import Agenda
from dsvpn.gateway.peers import Child, Peer
from dsvpn.gateway.tunnel import Tunnel
from dsvpn.ike import events as ike_events
from dsvpn.policy import esp_encapsulation, inner_mtu

#: A peer that has called gets traffic once something came from it, or after this long: by then it has our answer even
#: if that was lost and asked for again three times (seconds). Where an older SA carries traffic, there is no hurry: the
#: new one waits for a packet, or for the end of the older.
CONFIRMATION_DELAY = 3.0
#: A peer that was up for this long is called again at once when it goes down, seconds.
STEADY = 60.0


class Sealing:
    """What the data plane is told of peers and their CHILD_SAs.

    `emit` takes commands; `placed(peer)` is called when a peer has got its adjacencies, or has got them anew,
    `changed(peer)` when it takes traffic.
    """

    def __init__(
        self,
        config: Config,
        tunnels: dict[str, Tunnel],
        emit: Callable[[Command], None],
        *,
        placed: Callable[[Peer], None],
        changed: Callable[[Peer], None],
    ) -> None:
        self._config = config
        self._tunnels = tunnels
        self._emit = emit
        self._placed = placed
        self._changed = changed
        #: When to believe that a peer takes traffic.
        self._confirmations: Agenda[Peer] = Agenda()

    # -- who takes traffic -------------------------------------------------------------------------------------

    @property
    def awaits_packet(self) -> bool:
        """Whether traffic waits for the first packet of a peer that has called."""
        return len(self._confirmations) > 0

    def awaiting(self) -> list[int]:
        """The adjacencies of those peers."""
        return [adjacency for peer in self._confirmations for adjacency in peer.adjacencies.values()]

    def get_timer(self) -> float | None:
        """When `handle_timer` has something to do."""
        return self._confirmations.next()

    def handle_timer(self, now: float) -> None:
        """Believe those who were waited for long enough."""
        for peer in self._confirmations.take_due(now):
            if peer.pending is None:
                self.confirm(peer)

    def heard_nhrp(self, peer: Peer) -> None:
        """An NHRP packet came from the peer through an SA: where there are two, nothing tells through which."""
        if peer in self._confirmations and peer.pending is None:
            self.confirm(peer)

    def heard_data(self, peer: Peer) -> None:
        """Data came from the peer through an SA: it has one that we have too."""
        if not peer.confirmed and peer in self._confirmations:
            self.confirm(peer)

    def confirm(self, peer: Peer) -> None:
        """The peer takes what is sent to it, also on the CHILD_SA that it made last."""
        self._confirmations.pop(peer)
        pending, peer.pending = peer.pending, None
        if pending is not None and pending in peer.children:
            self._seal_with(peer, peer.children[pending])
        if not peer.confirmed:
            peer.confirmed = True
            self._changed(peer)

    def forget(self, peer: Peer) -> None:
        """The peer is down: nothing is waited for."""
        peer.pending = None
        self._confirmations.pop(peer)

    # -- CHILD_SAs ---------------------------------------------------------------------------------------------

    def add(self, peer: Peer, event: ike_events.ChildSaEstablished, now: float, *, called: bool) -> None:
        """A CHILD_SA is there. `called`: the peer has made it by a call, not in the place of another."""
        profile = self._config.ipsec[event.profile]
        child = Child(
            inbound_spi=event.inbound_spi,
            outbound_spi=event.outbound_spi,
            suite=event.suite,
            outbound_keymat=event.outbound_keymat,
            esn=event.esn,
            encapsulation=esp_encapsulation(profile, event.udp_encapsulation),
            path=event.path,
            ready=event.outbound_ready,
            ike_sa=event.ike_sa,
            resource=event.resource,
        )
        peer.children[event.inbound_spi] = child
        was_up = peer.up
        if not was_up:
            self.use_path(peer, child)
        self._emit(
            AddInboundSa(
                event.inbound_spi,
                event.suite,
                event.inbound_keymat,
                tuple(peer.adjacencies.values()),
                event.esn,
                profile.replay_window,
            )
        )
        if child.resource:
            if child.ready:
                self.start(peer, child.inbound_spi)
            return
        stopped = peer.current is not None and not peer.children[peer.current].ready
        if called:
            # We have keys before the caller has our answer: what is sealed for it at once may come too early.
            self._confirmations[peer] = now + CONFIRMATION_DELAY
        if called and was_up and not stopped:
            peer.pending = child.inbound_spi
        elif child.ready:
            confirmed, peer.confirmed = peer.confirmed, not called
            self._seal_with(peer, child)
            if was_up and not called and not confirmed:
                # Two calls crossed, and the answer to ours shows that the peer takes traffic.
                self._changed(peer)

    def start(self, peer: Peer, inbound_spi: int) -> None:
        """The peer has a CHILD_SA too: it seals from here on."""
        if inbound_spi not in peer.children:
            return
        child = peer.children[inbound_spi]
        child.ready = True
        if child.resource:
            peer.side_by_side[child.ike_sa, child.resource] = inbound_spi
        fallback = None if peer.current is None else peer.children[peer.current]
        if not child.resource or fallback is None or not fallback.ready or fallback is child:
            self._seal_with(peer, child)
        else:
            self._align_workers(peer)

    def stop(self, peer: Peer, inbound_spi: int) -> None:
        """A CHILD_SA seals nothing any more."""
        if inbound_spi not in peer.children:
            return
        peer.children[inbound_spi].ready = False
        self._take_from_worker(peer, inbound_spi)
        if peer.pending == inbound_spi:
            peer.pending = None
        # Without another it stays up: a successor is most likely a round trip away, and the end of the CHILD_SA is told
        # when it comes.
        if peer.current == inbound_spi and not self._seal_with_another(peer):
            self.seal_nothing(peer)

    def remove(self, peer: Peer | None, inbound_spi: int, now: float) -> bool:
        """A CHILD_SA is gone; True if it was the one that sealed, and the peer has no other."""
        self._emit(RemoveInboundSa(inbound_spi))
        if peer is None:
            return False
        self._take_from_worker(peer, inbound_spi)
        peer.children.pop(inbound_spi, None)
        if peer.current != inbound_spi:
            return False
        if peer.since is not None and now - peer.since > STEADY:
            peer.failures = 0
        if self._seal_with_another(peer):
            return False
        peer.current = None
        return True

    def _seal_with(self, peer: Peer, child: Child) -> None:
        self.use_path(peer, child)
        peer.current = child.inbound_spi
        self._emit(_outbound(peer, child, 0))

        self._align_workers(peer)

    def _take_from_worker(self, peer: Peer, inbound_spi: int) -> None:
        """No worker seals with this CHILD_SA any more, if one has."""
        child = peer.children.get(inbound_spi)
        if child is not None and peer.side_by_side.get((child.ike_sa, child.resource)) == inbound_spi:
            del peer.side_by_side[child.ike_sa, child.resource]
            self._align_workers(peer)

    def _align_workers(self, peer: Peer) -> None:
        """Have each worker seal with its CHILD_SA of the fallback's IKE SA: all have one path and one suite."""
        current = None if peer.current is None else peer.children.get(peer.current)
        wanted: dict[int, int] = {}
        if current is not None and current.ready:
            for (ike_sa, resource), spi in peer.side_by_side.items():
                if ike_sa == current.ike_sa and spi != peer.current:
                    wanted[resource] = spi
        for resource in [resource for resource in peer.workers if resource not in wanted]:
            del peer.workers[resource]
            for adjacency in peer.adjacencies.values():
                self._emit(ClearOutboundSa(adjacency, resource))
        for resource, spi in wanted.items():
            if peer.workers.get(resource) != spi:
                peer.workers[resource] = spi
                self._emit(_outbound(peer, peer.children[spi], resource))

    def _seal_with_another(self, peer: Peer) -> bool:
        child = peer.best_child()
        if child is not None:
            self._seal_with(peer, child)
        return child is not None

    def seal_nothing(self, peer: Peer) -> None:
        """Packets to the peer have no SA."""
        self._align_workers(peer)
        for adjacency in peer.adjacencies.values():
            self._emit(ClearOutboundSa(adjacency))

    # -- paths -------------------------------------------------------------------------------------------------

    def use_path(self, peer: Peer, child: Child) -> None:
        """Packets to the peer take the path of this CHILD_SA."""
        path = child.path
        if child.encapsulation != "udp":
            path = Path(Endpoint(path.local.address, 0), Endpoint(path.remote.address, 0))
        if (peer.path, peer.encapsulation, peer.transform) != (path, child.encapsulation, child.suite):
            peer.path, peer.encapsulation, peer.transform = path, child.encapsulation, child.suite
            self.place(peer)

    def place(self, peer: Peer) -> None:
        """Tell the data plane where the peer's adjacencies lead: for the first time, or by another path or MTU."""
        path = peer.path
        if path is None:
            return
        peer.placed = True
        for name, adjacency in peer.adjacencies.items():
            tunnel = self._tunnels[name]
            version = path.remote.address.version
            mtu = inner_mtu(tunnel.underlay_mtu, version, peer.encapsulation, tunnel.config.key, peer.transform)
            if tunnel.config.mtu is not None:
                mtu = min(mtu, tunnel.config.mtu)
            self._emit(SetAdjacency(adjacency, name, peer.encapsulation, path, mtu))
        self._placed(peer)


def _outbound(peer: Peer, child: Child, resource: int) -> SetOutboundSa:
    """The command that makes a worker (0: whoever has none of its own) seal with a CHILD_SA."""
    adjacencies = tuple(peer.adjacencies.values())
    return SetOutboundSa(child.outbound_spi, child.suite, child.outbound_keymat, adjacencies, child.esn, resource)
