"""Peers come and go: who is called and when, and who is let go.

The rule that makes it DSVPN is kept here: every peer that a mapping wants gets its IKE SA and CHILD_SAs by itself, and
when no mapping wants it any more, peer and SAs go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from dsvpn.addresses import Address, Endpoint, Path
from dsvpn.commands import Command, RemoveAdjacency
from dsvpn.config.model import Config
from dsvpn.gateway.agenda import Agenda
from dsvpn.gateway.events import Level
from dsvpn.gateway.failed_calls import FailedCalls
from dsvpn.gateway.ids import IdPool
from dsvpn.gateway.keepalives import Keepalives
from dsvpn.gateway.nat import PUNCH_PORT, punch_port
from dsvpn.gateway.peers import Peer, PeerTable
from dsvpn.gateway.redirects import Redirects
from dsvpn.gateway.roaming import Roaming
from dsvpn.gateway.sealing import Sealing
from dsvpn.gateway.servers import Servers
from dsvpn.gateway.sources import Sources
from dsvpn.gateway.tunnel import Tunnel
from dsvpn.ike import events as ike_events
from dsvpn.ike.engine import IkeEngine
from dsvpn.nhrp import events as nhrp_events
from dsvpn.policy import call_delay

IKE_PORT = 500
#: A peer that called but that no mapping wants is let go after this long, seconds.
UNWANTED_PEER_GRACE = 60.0
#: A peer that could not be reached is called again after 0.5, 1, 2, … seconds, but not later than this.
MAX_CALL_BACKOFF = 30.0
#: Refused callers that `dsvpn show peers` remembers.
MAX_REFUSED = 64


class Peering:
    """The peers of a gateway and their SAs.

    `emit` takes commands, `report` events for people; `adopt(peer, now)` gives a peer that has just come up the
    mappings that were waiting for a call from there.
    """

    def __init__(
        self,
        config: Config,
        ike: IkeEngine,
        tunnels: dict[str, Tunnel],
        *,
        emit: Callable[[Command], None],
        report: Callable[[Level, str, str], None],
        adopt: Callable[[Peer, float], None],
    ) -> None:
        self.config = config
        self.ike = ike
        self.tunnels = tunnels
        self.peers = PeerTable()
        self.roaming = Roaming(self)
        self.redirects = Redirects(self)
        self.refused: deque[tuple[float, ike_events.IkeAuthenticationRefused]] = deque(maxlen=MAX_REFUSED)
        self.closing = False
        self.servers = Servers(tunnels, self.peers)
        self.sources = Sources(tunnels, self.peers, self.servers, emit)
        self.sealing = Sealing(config, tunnels, emit, placed=self.sources.refresh, changed=self._peer_changed)
        self._emit = emit
        self.note = report
        self._adopt = adopt
        self._adjacency_ids = IdPool()
        #: When to call a peer, and when to let go of one that nothing wants.
        self._calls: Agenda[Peer] = Agenda()
        self._farewells: Agenda[Peer] = Agenda()
        self._failed = FailedCalls()
        self._established: dict[int, float] = {}
        self._initiated: set[int] = set()
        self._keepalives = Keepalives({name: profile.keepalive for name, profile in config.ipsec.items()})

    # -- time ------------------------------------------------------------------------------------------------

    def timers(self) -> Iterable[float]:
        """When `handle_timer` or `keepalives` has something to do."""
        for agenda in (self._calls, self._farewells):
            first = agenda.next()
            if first is not None:
                yield first
        yield from self._keepalives.timers()
        for due in (self.roaming.get_timer(), self.sources.get_timer(), self.sealing.get_timer()):
            if due is not None:
                yield due

    def handle_timer(self, now: float) -> None:
        """Call, confirm and let go of whom it is time for."""
        self.roaming.handle_timer(now)
        self.sources.handle_timer(now)
        for peer in self._calls.take_due(now):
            self._call(peer, now)
        self.sealing.handle_timer(now)
        for peer in self._farewells.take_due(now):
            if not peer.needs:
                self._remove_peer(peer, "no mapping wants it", now)

    def keepalives(self, now: float) -> list[Path]:
        """Paths whose NAT binding has to be refreshed (RFC 3948 section 4)."""
        return self._keepalives.paths(self.peers, now)

    # -- what was heard --------------------------------------------------------------------------------------

    def retry_in(self, peer: Peer, now: float) -> float | None:
        """Seconds until the peer is called again, None if that is not planned."""
        due = self._calls.get(peer)
        return None if due is None else max(due - now, 0.0)

    def doubt(self, peer: Peer, now: float) -> None:
        """The peer should have said something: ask by IKE whether it lives."""
        for ike_sa in peer.ike_sas:
            self.ike.check_liveness(ike_sa, now)

    def unwanted_until_mapped(self, peer: Peer, now: float) -> None:
        """Let go of a peer after a while, unless a mapping wants it by then."""
        self._farewells[peer] = now + UNWANTED_PEER_GRACE

    def needed(self, peer: Peer, tunnel: Tunnel, event: nhrp_events.MappingAdded) -> None:
        """A mapping wants this peer."""
        peer.needs[(tunnel.name, event.protocol)] = event.kind
        self.sources.refresh(peer)
        self._farewells.pop(peer)

    # -- peers -----------------------------------------------------------------------------------------------

    def claims_changed(self, now: float) -> None:
        """What identities may claim is another: look at what each has proved anew."""
        for peer in list(self.peers):
            if peer.up:
                self._tell_nhrp(peer, now)

    def underlay_mtu_changed(self, tunnel: str) -> None:
        """Packets of other sizes fit the peers of a tunnel."""
        for peer in self.peers:
            if tunnel in peer.adjacencies and peer.up:
                self.sealing.place(peer)

    def make_peer(self, profile: str | None, nbma: Address, private_nbma: Address | None) -> Peer:
        """A new peer with an adjacency in every tunnel of its profile."""
        adjacencies = {
            tunnel.name: self._adjacency_ids.take() for tunnel in self.tunnels.values() if tunnel.profile == profile
        }
        peer = Peer(profile, nbma, adjacencies, private_nbma)
        self.peers.add(peer)
        return peer

    def recall(self, peer: Peer, port: int | None, now: float) -> None:
        """A mapping wants a peer that none has wanted so far; with `port`, that is where an NHS sees it. One that
        was called in vain a while ago waits as long for the next call as if it had stayed."""
        if not peer.needs and not peer.ike_sas and self._failed.recall(peer, port, now):
            self._calls[peer] = now + _backoff(peer.failures - 1)

    def forget_failures(self) -> None:
        """This end's address has changed: whom it could not reach, it may reach from there."""
        self._failed.clear()

    def want(self, peer: Peer, tunnel: Tunnel, event: nhrp_events.MappingAdded, now: float) -> None:
        """A mapping wants this peer: bring it up unless it is, or is about to be."""
        if self.closing or peer.up:
            if event.kind == "nhs" and not self.servers.is_server(peer, tunnel.name):
                # It was there before it became an NHS's address: who it is shows when it is called.
                self.call(peer, now)
            return
        if peer.profile is None:
            self.raise_plain(peer, now)
        elif peer.calls and peer.attempt is None and not peer.ike_sas and peer not in self._calls:
            delay = 0.0
            if event.kind == "resolved" and not peer.punch:
                delay = call_delay(
                    tunnel.config.addresses[0].ip,
                    event.protocol,
                    any(other.local_nat for other in self.peers if other.up),
                    event.private_nbma != event.nbma,
                )
            self._calls[peer] = now + delay

    def call_wanted(self, tunnel: Tunnel, now: float) -> None:
        """The tunnel has a source: call whom its mappings want."""
        for mapping in tunnel.mappings.values():
            if mapping.peer is not None:
                self.want(mapping.peer, tunnel, mapping.event, now)

    def call_soon(self, peer: Peer, now: float) -> None:
        """Call a peer that is not up, as soon as what is happening is over."""
        if peer.calls and not peer.up and not self.closing:
            self._calls[peer] = now

    def call(self, peer: Peer, now: float) -> None:
        """Call a peer, be it up or not."""
        if peer.attempt is not None or not peer.calls or peer.profile is None or self.closing:
            return
        established = next((sa for sa in peer.ike_sas if sa in self._initiated), None)
        if established is not None and not peer.up and not self.redirects.is_away(peer):
            # Its CHILD_SAs were deleted, by a limit or by the peer: the IKE SA makes another.
            self.ike.create_child(established, now)
            return
        source = next((tunnel.source for tunnel in self._tunnels_of(peer) if tunnel.source is not None), None)
        if source is None:
            return
        port = PUNCH_PORT if peer.punch else IKE_PORT
        target = self.redirects.target(peer)
        # The port is of the box at the peer's own address, not of a gateway that it has redirected to.
        remote_port = punch_port(peer) if peer.punch and target == peer.nbma else port
        path = Path(Endpoint(source, port), Endpoint(target, remote_port))
        peer.attempt = self.ike.initiate(peer.profile, path, now, self.redirects.origin(peer))
        self.peers.bind_ike_sa(peer.attempt, peer)

    def _call(self, peer: Peer, now: float) -> None:
        if not peer.up or self.servers.is_unreached(peer):
            self.call(peer, now)

    def _call_again(self, peer: Peer, now: float) -> None:
        if peer.calls and (not peer.up or self.servers.is_unreached(peer)) and not self.closing:
            self._calls[peer] = now + _backoff(peer.failures)
            # Past the limit it goes to and fro: `punch_port` takes turns by it.
            peer.failures = peer.failures + 1 if peer.failures < 16 else 15

    def raise_plain(self, peer: Peer, now: float) -> None:
        """Plain GRE needs no SA: such a peer is up at once."""
        source = next((tunnel.source for tunnel in self._tunnels_of(peer) if tunnel.source is not None), None)
        if source is None:
            return
        peer.path = Path(Endpoint(source, 0), Endpoint(peer.nbma, 0))
        peer.since = now
        peer.confirmed = True
        self.sealing.place(peer)
        self._peer_up(peer, now)

    def restart(self, peer: Peer, reason: str, now: float) -> None:
        """Make the path to a peer anew."""
        if peer.profile is None:
            if peer.path is not None:
                peer.path = None
                self._peer_down(peer, now)
            if peer.needs:
                self.raise_plain(peer, now)
            return
        for ike_sa in [*peer.ike_sas, *([] if peer.attempt is None else [peer.attempt])]:
            self.ike.delete(ike_sa, now, reason)
        self.drain(now)
        self._calls.pop(peer)
        if peer.calls:
            self._calls[peer] = now

    def release(self, peer: Peer, tunnel: Tunnel, protocol: Address, now: float) -> None:
        """A mapping wants this peer no more; without any, peer and SAs go."""
        kind = peer.needs.pop((tunnel.name, protocol), None)
        if not peer.needs:
            if kind == "resolved":
                self._failed.keep(peer, now)
            self._remove_peer(peer, "no mapping wants it", now)
        else:
            self.sources.refresh(peer)

    def _remove_peer(self, peer: Peer, reason: str, now: float) -> None:
        self._calls.pop(peer)
        self._farewells.pop(peer)
        for ike_sa in [*peer.ike_sas, *([] if peer.attempt is None else [peer.attempt])]:
            self.ike.delete(ike_sa, now, reason)
        self.drain(now)
        # Deleting the SAs may have found the peer anew in somebody's needs or queued a farewell: it is going anyway.
        self._calls.pop(peer)
        self._farewells.pop(peer)
        if peer.profile is None and peer.path is not None:
            peer.path = None
            self._peer_down(peer, now)
        self.redirects.remove(peer)
        self.peers.remove(peer)
        for adjacency in peer.adjacencies.values():
            if peer.placed:
                self._emit(RemoveAdjacency(adjacency))
            self.sources.forget(adjacency)
            self._adjacency_ids.give(adjacency)

    def _tunnels_of(self, peer: Peer) -> list[Tunnel]:
        return [self.tunnels[name] for name in peer.adjacencies]

    def _peer_up(self, peer: Peer, now: float) -> None:
        self._tell_nhrp(peer, now)
        self._peer_changed(peer)

    def _tell_nhrp(self, peer: Peer, now: float) -> None:
        """Where the peer is, and what it has proved."""
        for name, adjacency in peer.adjacencies.items():
            tunnel = self.tunnels[name]
            claim = tunnel.authorizer.claim(peer.proved, peer.certified, peer.delegated)
            if claim is not None:
                claim = replace(claim, server=self.servers.is_server(peer, name))
            tunnel.nhrp.peer_up(peer.nbma, adjacency, now, claim)
        self.sources.start_anew(peer)

    def _peer_down(self, peer: Peer, now: float) -> None:
        peer.since = None
        peer.confirmed = False
        self.sealing.forget(peer)
        self._peer_changed(peer)
        for name, adjacency in peer.adjacencies.items():
            self.tunnels[name].nhrp.peer_down(adjacency, now)

    def _peer_changed(self, peer: Peer) -> None:
        for name, protocol in peer.needs:
            self.tunnels[name].peer_changed(protocol)

    # -- IKE -------------------------------------------------------------------------------------------------

    def drain(self, now: float) -> bool:
        """Act on the IKE engine's events; False when there was none."""
        progress = False
        while (event := self.ike.next_event()) is not None:
            progress = True
            self._on_ike(event, now)
        return progress

    def _on_ike(self, event: ike_events.Event, now: float) -> None:
        match event:
            case ike_events.IkeSaEstablished():
                self._on_ike_established(event, now)
            case ike_events.IkeSaFailed(ike_sa, _, path, reason):
                peer = self.peers.by_ike_sa(ike_sa)
                self.note("warning", "ike_failed", f"IKE with {path.remote.address} failed: {reason}")
                self.peers.unbind_ike_sa(ike_sa)
                if peer is not None:
                    if peer.attempt == ike_sa:
                        peer.attempt = None
                    peer.last_error = reason
                    self._call_again(peer, now)
                    self.redirects.on_failed(peer, ike_sa, now)
            case ike_events.IkeAuthenticationRefused(profile, path, identity, reason):
                self.refused.append((now, event))
                self.note(
                    "warning",
                    "ike_refused",
                    f"{identity} at {path.remote.address} refused by profile {profile}: {reason}",
                )
            case ike_events.IkeSaDeleted(ike_sa, reason):
                self._on_ike_deleted(ike_sa, reason, now)
            case ike_events.ChildSaEstablished():
                self._on_child(event, now)
            case ike_events.ChildSaOutboundReady(ike_sa, inbound_spi):
                peer = self.peers.by_ike_sa(ike_sa)
                if peer is not None:
                    self.sealing.start(peer, inbound_spi)
            case ike_events.ChildSaOutboundStopped(ike_sa, inbound_spi):
                peer = self.peers.by_ike_sa(ike_sa)
                if peer is not None:
                    self.sealing.stop(peer, inbound_spi)
            case ike_events.ChildSaDeleted(ike_sa, inbound_spi, _):
                self._on_child_deleted(ike_sa, inbound_spi, now)
            case ike_events.IkePathChanged():
                self._on_path(event, now)
            case ike_events.IkeReauthentication(ike_sa, successor):
                peer = self.peers.by_ike_sa(ike_sa)
                if peer is not None:
                    # The peer that the old one is of: to NHRP nothing happens.
                    self.peers.bind_ike_sa(successor, peer)
                    self.note("debug", "ike_reauthentication", f"{peer.identity} at {peer.nbma} authenticates anew")
            case ike_events.IkeRedirected():
                self.redirects.on_redirected(event, now)
            case ike_events.IkeSaRekeyed(ike_sa):
                self.note("debug", "ike_rekeyed", f"IKE SA {ike_sa} rekeyed")

    def _on_ike_established(self, event: ike_events.IkeSaEstablished, now: float) -> None:
        remote = event.path.remote.address
        peer = self.peers.by_ike_sa(event.ike_sa)
        if peer is None:
            identity = event.identity
            peer = self.peers.for_caller(
                event.profile,
                remote,
                event.remote_identity,
                event.remote_claimed,
                lambda peer: identity is None or self.servers.admits(peer, identity),
            )
            if peer is None:
                peer = self.make_peer(event.profile, remote, event.remote_claimed)
                self._farewells[peer] = now + UNWANTED_PEER_GRACE
            self.peers.bind_ike_sa(event.ike_sa, peer)
        elif peer.ike_sas and peer.identity != event.remote_identity and self.servers.is_unreached(peer):
            # Somebody else has called from the address of the NHS, which it is that was reached now.
            for usurper in peer.ike_sas:
                self.ike.delete(usurper, now, "it is not the NHS at its address")
        elif peer.ike_sas and peer.identity != event.remote_identity and not self.redirects.is_away(peer):
            # Somebody else at this address has called meanwhile. Two identities never share a peer: NHRP inside the SA
            # of one would speak for the other.
            peer.attempt = None
            peer = self.make_peer(event.profile, remote, event.remote_claimed)
            self._farewells[peer] = now + UNWANTED_PEER_GRACE
            self.peers.bind_ike_sa(event.ike_sa, peer)
        if event.initiator:
            peer.attempt = None
        elif peer.attempt is not None and self._is_spare(peer.attempt, peer, event):
            self.ike.delete(peer.attempt, now, "the peer has called")
        if event.initiator or not self.servers.is_unreached(peer):
            self._calls.pop(peer)
        if event.initial_contact:
            # Ends that call each other at once both say so, and neither may end what the other has just made. What we
            # had before this IKE SA began, the peer would know when it said so (RFC 7296 section 2.4).
            for older in [sa for sa in peer.ike_sas if self._established[sa] <= event.begun]:
                self.ike.delete(older, now, "the peer has started anew")
        peer.ike_sas.append(event.ike_sa)
        peer.identity = event.remote_identity
        proof = (peer.proved, peer.certified, peer.delegated, peer.reached)
        peer.proved, peer.certified, peer.delegated = event.identity, event.certified, event.delegated
        wrong = self.servers.reached(peer) if event.initiator else ""
        if event.remote_claimed is not None:
            peer.private_nbma = event.remote_claimed
        peer.local_nat, peer.remote_nat = event.local_nat, event.remote_nat
        if not wrong:
            peer.failures = 0
        peer.last_error = ""
        self._established[event.ike_sa] = now
        if proof != (peer.proved, peer.certified, peer.delegated, peer.reached):
            # Another certificate may give it other addresses; who shares its NBMA address may turn out to be the same.
            for other in self.peers.at(peer.profile, peer.nbma):
                if other.up:
                    self._tell_nhrp(other, now)
        if event.initiator:
            self._initiated.add(event.ike_sa)
        role = "initiator" if event.initiator else "responder"
        self.note("info", "ike_established", f"IKE SA with {peer.identity} at {remote} established ({role})")
        if event.local_nat:
            self._keepalives.start(event.profile, now)
        if wrong:
            self.note("warning", "wrong_server", wrong)
            self.ike.delete(event.ike_sa, now, wrong)

    def _is_spare(self, attempt: int, peer: Peer, event: ike_events.IkeSaEstablished) -> bool:
        """The peer has called: whether our own call is of no more use."""
        if self.servers.is_unreached(peer):
            # Whoever calls from a server's address may be its neighbour behind one NAT address: our own call tells.
            return False
        if self.ike.is_unanswered(attempt):
            # A box between us may let calls through in one direction alone. The peer cannot be giving up its own call
            # for ours: it does not do so before our IKE_AUTH, and that has not been sent.
            return True
        # Nobody answers a call towards a NAT.
        return event.remote_nat and not self._call_wins(peer)

    def _call_wins(self, peer: Peer) -> bool:
        """Of two calls that cross between ends behind NAT, that of the lower tunnel address stands: both can come
        through, and if each end gave up its own there would be none."""
        return peer.punch and any(
            self.tunnels[name].config.addresses[0].ip.packed < protocol.packed for name, protocol in peer.needs
        )

    def _on_ike_deleted(self, ike_sa: int, reason: str, now: float) -> None:
        peer = self.peers.by_ike_sa(ike_sa)
        self.peers.unbind_ike_sa(ike_sa)
        self._established.pop(ike_sa, None)
        self._initiated.discard(ike_sa)
        if peer is None:
            return
        self.note("info", "ike_deleted", f"IKE SA with {peer.identity} at {peer.nbma} deleted: {reason}")
        if ike_sa in peer.ike_sas:
            peer.ike_sas.remove(ike_sa)
        if peer.attempt == ike_sa:
            peer.attempt = None
        if peer.ike_sas:
            return
        self.redirects.forget(peer)
        peer.last_error = reason
        self._call_again(peer, now)
        if not peer.needs:
            self._farewells.setdefault(peer, now)

    def _on_child(self, event: ike_events.ChildSaEstablished, now: float) -> None:
        peer = self.peers.by_ike_sa(event.ike_sa)
        if peer is None:
            return
        was_up = peer.up
        self.sealing.add(peer, event, now, called=event.ike_sa not in self._initiated and event.replaces is None)
        self.redirects.on_child(peer, event.ike_sa, now)
        if peer.up and not was_up:
            peer.since = now
            self._adopt(peer, now)
            self._peer_up(peer, now)

    def _on_child_deleted(self, ike_sa: int, inbound_spi: int, now: float) -> None:
        peer = self.peers.by_ike_sa(ike_sa)
        if not self.sealing.remove(peer, inbound_spi, now) or peer is None:
            return
        self._peer_down(peer, now)
        self.sealing.seal_nothing(peer)
        if ike_sa in self._initiated and self.ike.is_established(ike_sa):
            self._call_again(peer, now)

    def _on_path(self, event: ike_events.IkePathChanged, now: float) -> None:
        ike_sa, path = event.ike_sa, event.path
        peer = self.peers.by_ike_sa(ike_sa)
        if peer is None:
            return
        remote = path.remote.address
        here = path.local.address
        self.note("info", "peer_moved", f"{peer.identity} is at {remote} port {path.remote.port}, seen from {here}")
        for child in peer.children.values():
            if child.ike_sa == ike_sa:
                child.path = path
                child.encapsulation = "udp" if event.udp_encapsulation else "esp"
        peer.local_nat, peer.remote_nat = event.local_nat, event.remote_nat
        if event.local_nat and peer.profile is not None:
            self._keepalives.start(peer.profile, now)
        moved = peer.nbma != remote and not self.redirects.is_away(peer)
        if moved:
            self.peers.move(peer, remote)
            # Its address behind a NAT is told by its next registration.
            peer.private_nbma = None if event.remote_nat else remote
        if peer.current is not None and peer.children[peer.current].ike_sa == ike_sa:
            self.sealing.use_path(peer, peer.children[peer.current])
        if moved and peer.up:
            self._tell_nhrp(peer, now)
        if event.confirmed:
            self.roaming.path_confirmed(peer, now)


def _backoff(failures: int) -> float:
    """Seconds until the next call to a peer that was called so often in vain before."""
    return float(min(0.5 * 2**failures, MAX_CALL_BACKOFF))
