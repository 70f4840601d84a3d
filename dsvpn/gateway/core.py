"""The gateway as a whole: inputs come in with the time, commands, datagrams and events go out.

The rule that makes it DSVPN: every NHRP mapping wants a peer, every peer gets its IKE SA and CHILD_SAs by itself,
and traffic moves to a peer only once its outbound SA is there. When a mapping goes, its peer goes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from dsvpn.addresses import Address, Endpoint, Path, Prefix
from dsvpn.commands import (
    AddInboundSa,
    ClearOutboundSa,
    Command,
    RemoveAdjacency,
    RemoveInboundSa,
    SendNhrp,
    SetAdjacency,
    SetOutboundSa,
)
from dsvpn.config.model import Config
from dsvpn.gateway import status
from dsvpn.gateway.events import GatewayEvent, Level
from dsvpn.gateway.forwarding import RouteSource
from dsvpn.gateway.ids import IdPool
from dsvpn.gateway.peers import Child, Peer, PeerTable
from dsvpn.gateway.tunnel import Tunnel
from dsvpn.ike import events as ike_events
from dsvpn.ike.engine import IkeEngine
from dsvpn.nhrp import events as nhrp_events
from dsvpn.nhrp.config import Route
from dsvpn.policy import call_delay, ike_profile, inner_mtu

IKE_PORT = 500
#: RFC 3948 section 4 leaves the interval to the sender; 20 s is under the shortest UDP timers of common NATs.
KEEPALIVE_INTERVAL = 20.0
#: A peer that called but that no mapping wants is let go after this long, seconds.
UNWANTED_PEER_GRACE = 60.0
#: A peer that could not be reached is called again after 0.5, 1, 2, … seconds, but not later than this.
MAX_CALL_BACKOFF = 30.0
#: INITIAL_CONTACT ends older IKE SAs of the same peer. Ends that call each other at once both send it: SAs as young as
#: this are spared (seconds), or each would end the other's.
INITIAL_CONTACT_SPARES = 5.0
#: A peer that has called gets traffic once something came from it, or after this long: by then it has our answer even
#: if that was lost and asked for again three times (seconds).
CONFIRMATION_DELAY = 3.0
#: Peers that plain GRE packets of strangers may make, for anybody can send those.
MAX_PLAIN_PEERS = 65536
#: Refused callers that `dsvpn show peers` remembers.
MAX_REFUSED = 64


class Gateway:
    """Everything of a gateway but its input and output.

    After any input, carry out `commands()` in order, make them effective, send `datagrams_to_send()` and
    `keepalives_to_send()`, and arm one timer for `get_timer()`. `now` is monotonic, in seconds.

    `route_lookup(tunnel, destination)` gives the kernel's longest match, shortcuts left out.
    """

    def __init__(
        self,
        config: Config,
        *,
        random: Callable[[int], bytes],
        allocate_spi: Callable[[], int],
        release_spi: Callable[[int], None],
        route_lookup: Callable[[str, Address], Route | None],
        key_log: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config
        self._commands: list[Command] = []
        self._events: deque[GatewayEvent] = deque()
        self._adjacency_ids = IdPool()
        next_hop_ids = IdPool()
        used = {tunnel.ipsec for tunnel in config.tunnels.values() if tunnel.protected}
        self.ike = IkeEngine(
            [
                ike_profile(name, config.ipsec[name], config.psks[name], config.gateway.name)
                for name in config.ipsec
                if name in used
            ],
            random=random,
            allocate_spi=allocate_spi,
            release_spi=release_spi,
            key_log=key_log,
        )
        self.tunnels = {
            name: Tunnel(
                name,
                tunnel,
                random=random,
                route_lookup=lambda destination, name=name: route_lookup(name, destination),  # type: ignore[misc]
                next_hop_ids=next_hop_ids,
                emit=self._commands.append,
            )
            for name, tunnel in config.tunnels.items()
        }
        self.peers = PeerTable()
        self.refused: deque[tuple[float, ike_events.IkeAuthenticationRefused]] = deque(maxlen=MAX_REFUSED)
        #: When to call a peer, and when to let go of one that nothing wants.
        self._calls: dict[Peer, float] = {}
        self._farewells: dict[Peer, float] = {}
        self._confirmations: dict[Peer, float] = {}
        self._established: dict[int, float] = {}
        self._initiated: set[int] = set()
        self._keepalive_at: float | None = None
        self._closing = False

    # -- inputs ----------------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin: peers of static mappings and NHSs are called as soon as their tunnel's source is known."""
        self._settle(now)

    def receive_ike(self, data: bytes, path: Path, now: float) -> None:
        """An IKE message, without non-ESP marker; `path.local.port` says which socket took it."""
        self.ike.receive_datagram(data, path, now)
        self._settle(now)

    def receive_nhrp(self, tunnel: str, adjacency: int | None, remote: Address, data: bytes, now: float) -> None:
        """An NHRP packet of a peer, or (plain GRE only) of a stranger at `remote`."""
        network = self.tunnels[tunnel]
        if adjacency is None:
            if network.profile is not None:
                return
            stranger = next(iter(self.peers.at(None, remote)), None)
            if stranger is None:
                if len(self.peers) >= MAX_PLAIN_PEERS:
                    return
                stranger = self._new_peer(None, remote, None)
                self._farewells[stranger] = now + UNWANTED_PEER_GRACE
                self._raise_plain(stranger, now)
            adjacency = stranger.adjacencies[tunnel]
            nbma = remote
        else:
            found = self.peers.by_adjacency(adjacency)
            if found is None:
                return
            nbma = found[1].nbma
            if found[1] in self._confirmations:
                self._confirm(found[1])
        network.nhrp.receive_packet(data, adjacency, nbma, now)
        self._settle(now)

    def handle_miss(self, tunnel: str, next_hop: int, destination: Address, now: float) -> None:
        """A packet for `destination` went by a next hop that wants a better one."""
        network = self.tunnels[tunnel]
        known = network.forwarding.find(next_hop)
        if known is not None:
            network.nhrp.handle_miss(destination if known.address is None else known.address, now)
            self._settle(now)

    def handle_redirect(self, tunnel: str, adjacency: int, head: bytes, now: float) -> None:
        """A packet (its head is given) came from `adjacency` and left by the same tunnel."""
        self.tunnels[tunnel].nhrp.handle_redirect(head, adjacency, now)
        self._settle(now)

    def handle_moved(self, adjacency: int, path: Path, now: float) -> None:
        """Authenticated ESP of a peer came by another path than the adjacency has."""
        found = self.peers.by_adjacency(adjacency)
        # RFC 7296 section 2.23: only the end that is not behind a NAT follows the other; else an attacker who can
        # replay a packet from elsewhere would move it.
        if found is not None and found[1].remote_nat and not found[1].local_nat:
            for ike_sa in found[1].ike_sas:
                self.ike.update_remote(ike_sa, path, now)
            self._settle(now)

    def source_changed(self, tunnel: str, address: Address | None, mtu: int, now: float) -> None:
        """The underlay source of a tunnel has this address (None: none at the moment) and MTU."""
        network = self.tunnels[tunnel]
        network.underlay_mtu = mtu
        if address == network.source:
            if address is not None:
                self._call_wanted(network, now)
        else:
            before, network.source = network.source, address
            if address is not None:
                network.nhrp.set_nbma(address, now)
            if before is not None:
                self._event("warning", "source_changed", f"{tunnel}: source address is {address}, was {before}")
            for peer in list(self.peers):
                if tunnel in peer.adjacencies and (before is not None or peer.profile is None):
                    self._restart(peer, "source address changed", now)
            self._call_wanted(network, now)
        self._settle(now)

    def route_added(self, tunnel: str, prefix: Prefix, next_hop: Address | None, now: float) -> None:
        """The kernel routes `prefix` into the tunnel (None: on-link)."""
        self.tunnels[tunnel].forwarding.set_route(RouteSource.KERNEL, prefix, next_hop)
        self._settle(now)

    def route_removed(self, tunnel: str, prefix: Prefix, now: float) -> None:
        """The kernel routes `prefix` into the tunnel no more."""
        self.tunnels[tunnel].forwarding.remove_route(RouteSource.KERNEL, prefix)
        self._settle(now)

    def traffic(self, counters: Mapping[int, tuple[int, int]], now: float) -> None:
        """Data packets in and out by adjacency, totals. Traffic is life: for DPD and for shortcuts."""
        for adjacency, (packets_in, packets_out) in counters.items():
            found = self.peers.by_adjacency(adjacency)
            if found is None:
                continue
            tunnel, peer = found
            before_in, before_out = peer.packets.get(tunnel, (0, 0))
            peer.packets[tunnel] = (packets_in, packets_out)
            if packets_in > before_in:
                if not peer.confirmed and peer in self._confirmations:
                    self._confirm(peer)
                for ike_sa in peer.ike_sas:
                    self.ike.note_traffic(ike_sa, now)
            if packets_out > before_out:
                for name, protocol in peer.needs:
                    if name == tunnel:
                        self.tunnels[tunnel].nhrp.note_traffic(protocol, now)
        self._settle(now)

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        self.ike.handle_timer(now)
        for tunnel in self.tunnels.values():
            tunnel.nhrp.handle_timer(now)
        self._settle(now)
        for peer in _due(self._calls, now):
            # What is done for one peer may have settled another's.
            if self._calls.pop(peer, None) is not None:
                self._call(peer, now)
        for peer in _due(self._confirmations, now):
            self._confirm(peer)
        for peer in _due(self._farewells, now):
            if self._farewells.pop(peer, None) is not None and not peer.needs:
                self._remove_peer(peer, "no mapping wants it", now)
        self._settle(now)

    def shutdown(self, now: float) -> None:
        """End: purge what others hold of us, delete every SA."""
        self._closing = True
        for tunnel in self.tunnels.values():
            tunnel.nhrp.shutdown(now)
            self._send_nhrp(tunnel, now)
            tunnel.remove_all_shortcuts()
        self.ike.close(now)
        self._settle(now)

    # -- outputs ---------------------------------------------------------------------------------------------

    def get_timer(self) -> float | None:
        """When `handle_timer` or `keepalives_to_send` has something to do."""
        timers = [self.ike.get_timer(), self._keepalive_at, *(t.nhrp.get_timer() for t in self.tunnels.values())]
        timers += self._calls.values()
        timers += self._farewells.values()
        timers += self._confirmations.values()
        return min((timer for timer in timers if timer is not None), default=None)

    @property
    def wants_traffic(self) -> bool:
        """Whether `traffic` should be called every few hundredths of a second: a peer has called and traffic waits for
        its first packet. This lasts a few seconds at most."""
        return bool(self._confirmations)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Path]]:
        """IKE messages; port 4500 in `path.local` wants the non-ESP marker."""
        return self.ike.datagrams_to_send(now)

    def keepalives_to_send(self, now: float) -> list[Path]:
        """Paths whose NAT binding has to be refreshed (RFC 3948 section 4)."""
        if self._keepalive_at is None or now < self._keepalive_at:
            return []
        paths = [peer.path for peer in self.peers if peer.up and peer.local_nat and peer.path is not None]
        self._keepalive_at = now + KEEPALIVE_INTERVAL if paths else None
        return paths

    def commands(self) -> list[Command]:
        """What to change in the data plane and the kernel, in order."""
        taken = self._commands.copy()
        # In place: the tunnels hold this list's append.
        self._commands.clear()
        return taken

    def next_event(self) -> GatewayEvent | None:
        """The oldest event not yet taken."""
        return self._events.popleft() if self._events else None

    def status(self, now: float) -> dict[str, Any]:
        """The sections of `dsvpn show`, ready for JSON."""
        return status.sections(self, now)

    # -- NHRP ------------------------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """Let the engines' events act on each other until none is left."""
        progress = True
        while progress:
            progress = False
            while (event := self.ike.next_event()) is not None:
                progress = True
                self._on_ike(event, now)
            for tunnel in self.tunnels.values():
                while (report := tunnel.nhrp.next_event()) is not None:
                    progress = True
                    self._on_nhrp(tunnel, report, now)
                progress |= self._send_nhrp(tunnel, now)

    def _send_nhrp(self, tunnel: Tunnel, now: float) -> bool:
        packets = tunnel.nhrp.packets_to_send(now)
        self._commands.extend(SendNhrp(adjacency, packet) for packet, adjacency in packets)
        return bool(packets)

    def _on_nhrp(self, tunnel: Tunnel, event: nhrp_events.Event, now: float) -> None:
        match event:
            case nhrp_events.MappingAdded():
                self._on_mapping(tunnel, event, now)
            case nhrp_events.MappingRemoved(protocol, reason):
                self._event("info", "mapping_removed", f"{tunnel.name}: {protocol} is no longer mapped: {reason}")
                mapping = tunnel.mappings.get(protocol)
                tunnel.remove_mapping(protocol)
                if mapping is not None and mapping.peer is not None:
                    self._release(mapping.peer, tunnel, protocol, now)
            case nhrp_events.ShortcutAdded(prefix, next_hop):
                self._event("info", "shortcut_added", f"{tunnel.name}: {prefix} has a direct path by {next_hop}")
                tunnel.add_shortcut(prefix, next_hop)
            case nhrp_events.ShortcutRemoved(prefix, reason):
                self._event("info", "shortcut_removed", f"{tunnel.name}: no direct path to {prefix}: {reason}")
                tunnel.remove_shortcut(prefix)
            case nhrp_events.NhsUp(protocol, nat_address):
                seen = f", which sees us as {nat_address}" if nat_address is not None else ""
                self._event("info", "nhs_up", f"{tunnel.name}: registered with NHS {protocol}{seen}")
            case nhrp_events.NhsDown(protocol, reason, restart_peer):
                self._event("warning", "nhs_down", f"{tunnel.name}: not registered with NHS {protocol}: {reason}")
                mapping = tunnel.mappings.get(protocol)
                if restart_peer and mapping is not None and mapping.peer is not None:
                    self._restart(mapping.peer, reason, now)

    def _on_mapping(self, tunnel: Tunnel, event: nhrp_events.MappingAdded, now: float) -> None:
        before = tunnel.mappings.get(event.protocol)
        peer = self._peer_of_mapping(tunnel, event)
        if before is None or (before.event.nbma, before.event.kind) != (event.nbma, event.kind):
            nat = f" (behind NAT, {event.private_nbma} inside)" if event.private_nbma != event.nbma else ""
            self._event(
                "info", "mapping_added", f"{tunnel.name}: {event.protocol} is {event.kind} at {event.nbma}{nat}"
            )
        if peer is not None:
            peer.needs[(tunnel.name, event.protocol)] = event.kind
            self._farewells.pop(peer, None)
        tunnel.set_mapping(event, peer)
        if before is not None and before.peer is not None and before.peer is not peer:
            self._release(before.peer, tunnel, event.protocol, now)
        if peer is not None:
            self._want(peer, tunnel, event, now)

    def _peer_of_mapping(self, tunnel: Tunnel, event: nhrp_events.MappingAdded) -> Peer | None:
        if event.peer is not None:
            found = self.peers.by_adjacency(event.peer)
            if found is not None:
                return found[1]
        peer = self.peers.for_mapping(tunnel.profile, event.nbma, event.private_nbma)
        if peer is None and event.kind != "observed":
            peer = self._new_peer(tunnel.profile, event.nbma, event.private_nbma)
        return peer

    def _adopt(self, peer: Peer, now: float) -> None:
        """Give a peer that has called the mappings that were waiting for a call from there."""
        for name in peer.adjacencies:
            tunnel = self.tunnels[name]
            for mapping in list(tunnel.mappings.values()):
                if mapping.peer is None and mapping.event.nbma == peer.nbma:
                    self._on_mapping(tunnel, mapping.event, now)

    # -- peers -----------------------------------------------------------------------------------------------

    def _new_peer(self, profile: str | None, nbma: Address, private_nbma: Address | None) -> Peer:
        adjacencies = {
            tunnel.name: self._adjacency_ids.take() for tunnel in self.tunnels.values() if tunnel.profile == profile
        }
        peer = Peer(profile, nbma, adjacencies, private_nbma)
        self.peers.add(peer)
        return peer

    def _want(self, peer: Peer, tunnel: Tunnel, event: nhrp_events.MappingAdded, now: float) -> None:
        """A mapping wants this peer: bring it up unless it is, or is about to be."""
        if peer.up or self._closing:
            return
        if peer.profile is None:
            self._raise_plain(peer, now)
        elif peer.calls and peer.attempt is None and not peer.ike_sas and peer not in self._calls:
            delay = 0.0
            if event.kind == "resolved":
                delay = call_delay(
                    tunnel.config.addresses[0].ip,
                    event.protocol,
                    any(other.local_nat for other in self.peers if other.up),
                    event.private_nbma != event.nbma,
                )
            self._calls[peer] = now + delay

    def _call_wanted(self, tunnel: Tunnel, now: float) -> None:
        for mapping in tunnel.mappings.values():
            if mapping.peer is not None:
                self._want(mapping.peer, tunnel, mapping.event, now)

    def _call(self, peer: Peer, now: float) -> None:
        if peer.up or peer.attempt is not None or not peer.calls or peer.profile is None or self._closing:
            return
        source = next((tunnel.source for tunnel in self._tunnels_of(peer) if tunnel.source is not None), None)
        if source is None:
            return
        path = Path(Endpoint(source, IKE_PORT), Endpoint(peer.nbma, IKE_PORT))
        peer.attempt = self.ike.initiate(peer.profile, path, now)
        self.peers.bind_ike_sa(peer.attempt, peer)

    def _call_again(self, peer: Peer, now: float) -> None:
        if peer.calls and not peer.up and not self._closing:
            self._calls[peer] = now + min(0.5 * 2**peer.failures, MAX_CALL_BACKOFF)
            peer.failures = min(peer.failures + 1, 16)

    def _raise_plain(self, peer: Peer, now: float) -> None:
        source = next((tunnel.source for tunnel in self._tunnels_of(peer) if tunnel.source is not None), None)
        if source is None:
            return
        peer.path = Path(Endpoint(source, 0), Endpoint(peer.nbma, 0))
        peer.since = now
        peer.confirmed = True
        self._set_adjacencies(peer)
        self._peer_up(peer, now)

    def _restart(self, peer: Peer, reason: str, now: float) -> None:
        """Make the path to a peer anew."""
        if peer.profile is None:
            if peer.path is not None:
                peer.path = None
                self._peer_down(peer, now)
            if peer.needs:
                self._raise_plain(peer, now)
            return
        for ike_sa in [*peer.ike_sas, *([] if peer.attempt is None else [peer.attempt])]:
            self.ike.delete(ike_sa, now, reason)
        self._drain_ike(now)
        self._calls.pop(peer, None)
        if peer.calls:
            self._calls[peer] = now

    def _release(self, peer: Peer, tunnel: Tunnel, protocol: Address, now: float) -> None:
        """A mapping wants this peer no more; without any, peer and SAs go."""
        peer.needs.pop((tunnel.name, protocol), None)
        if not peer.needs:
            self._remove_peer(peer, "no mapping wants it", now)

    def _remove_peer(self, peer: Peer, reason: str, now: float) -> None:
        self._calls.pop(peer, None)
        self._farewells.pop(peer, None)
        for ike_sa in [*peer.ike_sas, *([] if peer.attempt is None else [peer.attempt])]:
            self.ike.delete(ike_sa, now, reason)
        self._drain_ike(now)
        # Deleting the SAs may have found the peer anew in somebody's needs or queued a farewell: it is going anyway.
        self._calls.pop(peer, None)
        self._farewells.pop(peer, None)
        if peer.profile is None and peer.path is not None:
            peer.path = None
            self._peer_down(peer, now)
        self.peers.remove(peer)
        for adjacency in peer.adjacencies.values():
            self._commands.append(RemoveAdjacency(adjacency))
            self._adjacency_ids.give(adjacency)

    def _tunnels_of(self, peer: Peer) -> list[Tunnel]:
        return [self.tunnels[name] for name in peer.adjacencies]

    def _peer_up(self, peer: Peer, now: float) -> None:
        for name, adjacency in peer.adjacencies.items():
            self.tunnels[name].nhrp.peer_up(peer.nbma, adjacency, now)
        self._peer_changed(peer)

    def _confirm(self, peer: Peer) -> None:
        """The peer takes what is sent to it, also on the CHILD_SA that it made last."""
        self._confirmations.pop(peer, None)
        pending, peer.pending = peer.pending, None
        if pending is not None and pending in peer.children:
            self._seal_with(peer, peer.children[pending])
        if not peer.confirmed:
            peer.confirmed = True
            self._peer_changed(peer)

    def _peer_down(self, peer: Peer, now: float) -> None:
        peer.since = None
        peer.confirmed = False
        peer.pending = None
        self._confirmations.pop(peer, None)
        self._peer_changed(peer)
        for name, adjacency in peer.adjacencies.items():
            self.tunnels[name].nhrp.peer_down(adjacency, now)

    def _peer_changed(self, peer: Peer) -> None:
        for name, protocol in peer.needs:
            self.tunnels[name].peer_changed(protocol)

    # -- IKE -------------------------------------------------------------------------------------------------

    def _drain_ike(self, now: float) -> None:
        while (event := self.ike.next_event()) is not None:
            self._on_ike(event, now)

    def _on_ike(self, event: ike_events.Event, now: float) -> None:
        match event:
            case ike_events.IkeSaEstablished():
                self._on_ike_established(event, now)
            case ike_events.IkeSaFailed(ike_sa, _, path, reason):
                peer = self.peers.by_ike_sa(ike_sa)
                self._event("warning", "ike_failed", f"IKE with {path.remote.address} failed: {reason}")
                self.peers.unbind_ike_sa(ike_sa)
                if peer is not None:
                    peer.attempt = None
                    peer.last_error = reason
                    self._call_again(peer, now)
            case ike_events.IkeAuthenticationRefused(profile, path, identity, reason):
                self.refused.append((now, event))
                self._event(
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
                if peer is not None and inbound_spi in peer.children:
                    peer.children[inbound_spi].ready = True
                    self._seal_with(peer, peer.children[inbound_spi])
            case ike_events.ChildSaDeleted(ike_sa, inbound_spi, _):
                self._on_child_deleted(ike_sa, inbound_spi, now)
            case ike_events.IkePathChanged(ike_sa, path):
                self._on_path(ike_sa, path)
            case ike_events.IkeSaRekeyed(ike_sa):
                self._event("debug", "ike_rekeyed", f"IKE SA {ike_sa} rekeyed")

    def _on_ike_established(self, event: ike_events.IkeSaEstablished, now: float) -> None:
        remote = event.path.remote.address
        peer = self.peers.by_ike_sa(event.ike_sa)
        if peer is None:
            peer = self.peers.for_caller(event.profile, remote, event.remote_identity, event.remote_claimed)
            if peer is None:
                peer = self._new_peer(event.profile, remote, event.remote_claimed)
                self._farewells[peer] = now + UNWANTED_PEER_GRACE
            self.peers.bind_ike_sa(event.ike_sa, peer)
        if event.initiator:
            peer.attempt = None
        elif peer.attempt is not None and event.remote_nat:
            # The peer has called through its NAT: nobody answers the call in the other direction.
            self.ike.delete(peer.attempt, now, "the peer has called")
        self._calls.pop(peer, None)
        if event.initial_contact:
            for older in [sa for sa in peer.ike_sas if now - self._established[sa] > INITIAL_CONTACT_SPARES]:
                self.ike.delete(older, now, "the peer has started anew")
        peer.ike_sas.append(event.ike_sa)
        peer.identity = event.remote_identity
        if event.remote_claimed is not None:
            peer.private_nbma = event.remote_claimed
        peer.local_nat, peer.remote_nat = event.local_nat, event.remote_nat
        peer.failures = 0
        peer.last_error = ""
        self._established[event.ike_sa] = now
        if event.initiator:
            self._initiated.add(event.ike_sa)
        role = "initiator" if event.initiator else "responder"
        self._event("info", "ike_established", f"IKE SA with {peer.identity} at {remote} established ({role})")
        if event.local_nat and self._keepalive_at is None:
            self._keepalive_at = now + KEEPALIVE_INTERVAL

    def _on_ike_deleted(self, ike_sa: int, reason: str, now: float) -> None:
        peer = self.peers.by_ike_sa(ike_sa)
        self.peers.unbind_ike_sa(ike_sa)
        self._established.pop(ike_sa, None)
        self._initiated.discard(ike_sa)
        if peer is None:
            return
        self._event("info", "ike_deleted", f"IKE SA with {peer.identity} at {peer.nbma} deleted: {reason}")
        if ike_sa in peer.ike_sas:
            peer.ike_sas.remove(ike_sa)
        if peer.attempt == ike_sa:
            peer.attempt = None
        if peer.ike_sas:
            return
        peer.last_error = reason
        self._call_again(peer, now)
        if not peer.needs:
            self._farewells.setdefault(peer, now)

    def _on_child(self, event: ike_events.ChildSaEstablished, now: float) -> None:
        peer = self.peers.by_ike_sa(event.ike_sa)
        if peer is None:
            return
        child = Child(
            inbound_spi=event.inbound_spi,
            outbound_spi=event.outbound_spi,
            suite=event.suite,
            outbound_keymat=event.outbound_keymat,
            esn=event.esn,
            encapsulation="udp" if event.udp_encapsulation else "esp",
            path=event.path,
            ready=event.outbound_ready,
            ike_sa=event.ike_sa,
        )
        peer.children[event.inbound_spi] = child
        was_up = peer.up
        if not was_up:
            self._use_path(peer, child)
        self._commands.append(
            AddInboundSa(
                event.inbound_spi,
                event.suite,
                event.inbound_keymat,
                tuple(peer.adjacencies.values()),
                event.esn,
                self.config.ipsec[event.profile].replay_window,
            )
        )
        called = event.ike_sa not in self._initiated and event.replaces is None
        if called:
            # We have keys before the caller has our answer: what is sealed for it at once may come too early.
            self._confirmations[peer] = now + CONFIRMATION_DELAY
        if called and was_up:
            peer.pending = child.inbound_spi
        elif child.ready:
            peer.confirmed = not called
            self._seal_with(peer, child)
        if peer.up and not was_up:
            peer.since = now
            self._adopt(peer, now)
            self._peer_up(peer, now)

    def _seal_with(self, peer: Peer, child: Child) -> None:
        self._use_path(peer, child)
        peer.current = child.inbound_spi
        self._commands.append(
            SetOutboundSa(
                child.outbound_spi, child.suite, child.outbound_keymat, tuple(peer.adjacencies.values()), child.esn
            )
        )

    def _on_child_deleted(self, ike_sa: int, inbound_spi: int, now: float) -> None:
        self._commands.append(RemoveInboundSa(inbound_spi))
        peer = self.peers.by_ike_sa(ike_sa)
        if peer is None:
            return
        peer.children.pop(inbound_spi, None)
        if peer.current != inbound_spi:
            return
        child = peer.best_child()
        if child is not None:
            self._seal_with(peer, child)
            return
        peer.current = None
        self._peer_down(peer, now)
        self._commands.extend(ClearOutboundSa(adjacency) for adjacency in peer.adjacencies.values())

    def _on_path(self, ike_sa: int, path: Path) -> None:
        peer = self.peers.by_ike_sa(ike_sa)
        if peer is None:
            return
        self._event("info", "peer_moved", f"{peer.identity} is at {path.remote.address} port {path.remote.port}")
        for child in peer.children.values():
            if child.ike_sa == ike_sa:
                child.path = path
        if peer.nbma != path.remote.address:
            self.peers.move(peer, path.remote.address)
        if peer.current is not None and peer.children[peer.current].ike_sa == ike_sa:
            self._use_path(peer, peer.children[peer.current])

    def _use_path(self, peer: Peer, child: Child) -> None:
        path = child.path
        if child.encapsulation == "esp":
            path = Path(Endpoint(path.local.address, 0), Endpoint(path.remote.address, 0))
        if (peer.path, peer.encapsulation) != (path, child.encapsulation):
            peer.path, peer.encapsulation = path, child.encapsulation
            self._set_adjacencies(peer)

    def _set_adjacencies(self, peer: Peer) -> None:
        path = peer.path
        if path is None:
            return
        for name, adjacency in peer.adjacencies.items():
            tunnel = self.tunnels[name]
            mtu = inner_mtu(tunnel.underlay_mtu, path.remote.address.version, peer.encapsulation, tunnel.config.key)
            if tunnel.config.mtu is not None:
                mtu = min(mtu, tunnel.config.mtu)
            self._commands.append(SetAdjacency(adjacency, name, peer.encapsulation, path, mtu))

    # -- reporting -------------------------------------------------------------------------------------------

    def _event(self, level: Level, name: str, message: str) -> None:
        self._events.append(GatewayEvent(level, name, message))


def _due(agenda: dict[Peer, float], now: float) -> list[Peer]:
    return [peer for peer, due in agenda.items() if due <= now]
