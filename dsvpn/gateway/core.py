"""The gateway as a whole: inputs come in with the time, commands, datagrams and events go out.

The rule that makes it DSVPN: every NHRP mapping wants a peer (`peering.py`), and traffic moves to a peer only once its
outbound SA is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from dsvpn.addresses import Address, Path, Prefix
from dsvpn.commands import Command, LookUp, SendNhrp, SendProbe
from dsvpn.config.credentials import Material
from dsvpn.config.model import Config
from dsvpn.gateway import status
from dsvpn.gateway.events import GatewayEvent, Level
from dsvpn.gateway.forwarding import RouteSource, Via
from dsvpn.gateway.ids import IdPool
from dsvpn.gateway.names import NamedServer, NamedServers
from dsvpn.gateway.nat import near, port_seen, wants_punch
from dsvpn.gateway.peering import Peering
from dsvpn.gateway.peers import Peer
from dsvpn.gateway.tunnel import Tunnel
from dsvpn.gateway.usage import BusySa, busy_sas, note_carried
from dsvpn.ike.cookies import CookieSecrets
from dsvpn.ike.engine import IkeEngine
from dsvpn.ike.kem import LIBRARY_KEMS, Kem
from dsvpn.ike.profile import IkeProfile
from dsvpn.ike.volume import Carried
from dsvpn.nhrp import events as nhrp_events
from dsvpn.nhrp.config import Route
from dsvpn.policy import half_open_limits, ike_profile

#: Peers that plain GRE packets of strangers may make, for anybody can send those.
MAX_PLAIN_PEERS = 65536


class Gateway:
    """Everything of a gateway but its input and output.

    After any input, carry out `commands()` in order, make them effective, send `datagrams_to_send()` and
    `keepalives_to_send()`, and arm one timer for `get_timer()`. `now` is monotonic, in seconds.

    `wall_clock()` is the time of day, seconds since 1970: certificates need it.
    `token_secret` makes crash tokens (RFC 6290); it is the same after a restart. Empty makes none.
    `kems` are key encapsulation mechanisms besides those of the cryptographic library.
    `encap_workers` is how many workers of the data plane seal.
    `route_lookup(tunnel, destination)` gives the kernel's longest match, shortcuts left out.
    """

    def __init__(
        self,
        config: Config,
        *,
        random: Callable[[int], bytes],
        allocate_spi: Callable[[int], int],
        release_spi: Callable[[int], None],
        route_lookup: Callable[[str, Address], Route | None],
        key_log: Callable[[str], None] | None = None,
        wall_clock: Callable[[], float] | None = None,
        token_secret: bytes = b"",
        kems: Mapping[str, Kem] = LIBRARY_KEMS,
        encap_workers: int = 1,
    ) -> None:
        self.config = config
        self._encap_workers = encap_workers
        self._commands: list[Command] = []
        self._events: deque[GatewayEvent] = deque()
        next_hop_ids = IdPool()
        self.ike = IkeEngine(
            self._profiles(config.materials),
            wall_clock=wall_clock,
            random=random,
            allocate_spi=allocate_spi,
            release_spi=release_spi,
            key_log=key_log,
            half_open=half_open_limits(config.gateway),
            token_secret=token_secret,
            kems=kems,
        )
        self.tunnels = {
            name: Tunnel(
                name,
                tunnel,
                random=random,
                route_lookup=lambda destination, name=name: route_lookup(name, destination),  # type: ignore[misc]
                next_hop_ids=next_hop_ids,
                emit=self._commands.append,
                port_seen=self._port_seen,
            )
            for name, tunnel in config.tunnels.items()
        }
        self.peering = Peering(
            config, self.ike, self.tunnels, emit=self._commands.append, report=self._event, adopt=self._adopt
        )
        self.peers = self.peering.peers
        self.names = NamedServers(
            NamedServer(name, entry.protocol, entry.nbma)
            for name, tunnel in config.tunnels.items()
            for entry in tunnel.nhrp.nhs
            if isinstance(entry.nbma, str)
        )

    def _profiles(self, materials: Mapping[str, Material]) -> list[IkeProfile]:
        """What the profiles that tunnels use mean to IKE."""
        config = self.config
        used = {tunnel.ipsec for tunnel in config.tunnels.values() if tunnel.protected}
        return [
            ike_profile(name, section, materials[name], config.ppks.get(name, ()), self._encap_workers)
            for name, section in config.ipsec.items()
            if name in used
        ]

    # -- inputs ----------------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin: peers of static mappings and NHSs are called as soon as their tunnel's source is known."""
        self.names.start(now)
        self._look_up(now)
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
                stranger = self.peering.make_peer(None, remote, None)
                self.peering.unwanted_until_mapped(stranger, now)
                self.peering.raise_plain(stranger, now)
            adjacency = stranger.adjacencies[tunnel]
            nbma = remote
        else:
            found = self.peers.by_adjacency(adjacency)
            if found is None:
                return
            nbma = found[1].nbma
            self.peering.sealing.heard_nhrp(found[1])
        network.nhrp.receive_packet(data, adjacency, nbma, now)
        self._settle(now)

    def handle_miss(self, tunnel: str, next_hop: int, destination: Address, now: float) -> None:
        """A packet for `destination` went by a next hop that wants a better one."""
        network = self.tunnels[tunnel]
        known = network.forwarding.find(next_hop)
        if known is not None:
            wanted = destination if known.address is None or isinstance(known.address, tuple) else known.address
            network.nhrp.handle_miss(wanted, now)
            self._settle(now)

    def handle_redirect(self, tunnel: str, adjacency: int, head: bytes, now: float) -> None:
        """A packet (its head is given) came from `adjacency` and left by the same tunnel."""
        self.tunnels[tunnel].nhrp.handle_redirect(head, adjacency, now)
        self._settle(now)

    def handle_source(self, tunnel: str, adjacency: int, source: Address, passed: bool, now: float) -> None:
        """A packet came from `adjacency` whose inner source is not routed there. `passed`: it may be
        the peer's all the same, and was let pass; else it was dropped."""
        self.peering.sources.handle(tunnel, adjacency, source, passed, now)
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

    def handle_unknown_spi(self, spi: int, path: Path, now: float) -> None:
        """ESP came with an SPI that no inbound SA has."""
        self.ike.report_unknown_spi(spi, path, now)
        self._settle(now)

    def redirect(self, target: Address, identity: str | None, now: float) -> int:
        """Ask the peers that have called (one by its identity, or all) to go to the gateway at `target` (RFC 5685).
        Gives how many were asked."""
        asked = 0
        for peer in self.peers:
            if identity in (None, peer.identity):
                asked += sum(self.ike.redirect(ike_sa, target, now) for ike_sa in peer.ike_sas)
        self._settle(now)
        return asked

    def replace_materials(self, materials: Mapping[str, Material], now: float) -> None:
        """Keys, certificates and revocation lists were read anew: use these from here on. What is established stays,
        unless its peer's certificate is revoked."""
        self.config = self.config.model_copy(update={"materials": dict(materials)})
        self.ike.replace_credentials(self._profiles(materials), now)
        self._settle(now)

    def reconfigure(self, config: Config, now: float) -> None:
        """Go on by a configuration that differs in what `dsvpn.config.changes` takes, and in its materials."""
        self.config = config
        changed = [tunnel.reconfigure(config.tunnels[name]) for name, tunnel in self.tunnels.items()]
        if any(changed):
            self.peering.claims_changed(now)
        self.replace_materials(config.materials, now)

    def source_changed(self, tunnel: str, address: Address | None, mtu: int, now: float) -> None:
        """The underlay source of a tunnel has this address (None: none at the moment) and MTU."""
        network = self.tunnels[tunnel]
        if mtu != network.underlay_mtu:
            network.underlay_mtu = mtu
            self.peering.underlay_mtu_changed(tunnel)
        if address == network.source:
            if address is not None:
                self.peering.call_wanted(network, now)
        else:
            before, network.source = network.source, address
            self.peering.forget_failures()
            if before is not None:
                self._event("warning", "source_changed", f"{tunnel}: source address is {address}, was {before}")
            self.peering.roaming.source_changed(network, before, now)
            self.peering.call_wanted(network, now)
        self._settle(now)

    def route_added(self, tunnel: str, prefix: Prefix, next_hop: Via, now: float) -> None:
        """The kernel routes `prefix` into the tunnel (None: on-link)."""
        self.tunnels[tunnel].forwarding.set_route(RouteSource.KERNEL, prefix, next_hop)
        self._settle(now)

    def route_removed(self, tunnel: str, prefix: Prefix, now: float) -> None:
        """The kernel routes `prefix` into the tunnel no more."""
        self.tunnels[tunnel].forwarding.remove_route(RouteSource.KERNEL, prefix)
        self._settle(now)

    def traffic(self, counters: Mapping[int, tuple[int, int]], now: float) -> list[BusySa]:
        """Data packets in and out by adjacency, totals. Traffic is life: for shortcuts, and for peers by what
        `sa_traffic` then gets to know of the CHILD_SAs that are given back."""
        busy: list[BusySa] = []
        for adjacency, (packets_in, packets_out) in counters.items():
            found = self.peers.by_adjacency(adjacency)
            if found is None:
                continue
            tunnel, peer = found
            before_in, before_out = peer.packets.get(tunnel, (0, 0))
            peer.packets[tunnel] = (packets_in, packets_out)
            if packets_in > before_in:
                self.peering.sealing.heard_data(peer)
            if packets_in > before_in or packets_out > before_out or peer.pending is not None:
                busy += busy_sas(peer, adjacency)
            if packets_out > before_out:
                for name, protocol in peer.needs:
                    if name == tunnel:
                        self.tunnels[tunnel].nhrp.note_traffic(protocol, now)
        self._settle(now)
        return busy

    def sa_traffic(self, carried: Mapping[BusySa, Carried], now: float) -> None:
        """What CHILD_SAs have carried, totals: signs of life, and what their limits count."""
        note_carried(self.peering, carried, now)
        self._settle(now)

    @property
    def probe_interval(self) -> float | None:
        """How often `probe` should be called, seconds; None: never. The same for the gateway's whole life."""
        intervals = [tunnel.probe_interval for tunnel in self.tunnels.values() if tunnel.probe_interval is not None]
        return min(intervals, default=None)

    def probed(self) -> list[int]:
        """The adjacencies whose counters `probe` wants."""
        return [adjacency for tunnel in self.tunnels.values() for adjacency, _ in tunnel.probed()]

    def probe(self, counters: Mapping[int, tuple[int, int]], now: float) -> None:
        """Data packets in and out of the probed adjacencies, totals: find out which NHSs are silent."""
        for tunnel in self.tunnels.values():
            for adjacency, protocol in tunnel.probed():
                if adjacency not in counters:
                    continue
                send, lost = tunnel.health.look(protocol, counters[adjacency][0])
                if send:
                    self._commands.append(SendProbe(tunnel.name, protocol))
                if lost:
                    tunnel.nhrp.nhs_lost(protocol, f"NHS {protocol} does not answer probes", now)
                    found = self.peers.by_adjacency(adjacency)
                    if found is not None:
                        self.peering.doubt(found[1], now)
        self._settle(now)

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        self._look_up(now)
        for tunnel in self.tunnels.values():
            for protocol in tunnel.health.handle_timer(now):
                self._event("info", "nhs_back", f"{tunnel.name}: NHS {protocol} has been well for long enough")
                tunnel.forwarding.repoint_all()
        self.ike.handle_timer(now)
        for tunnel in self.tunnels.values():
            tunnel.nhrp.handle_timer(now)
        self._settle(now)
        self.peering.handle_timer(now)
        self._settle(now)

    def shutdown(self, now: float) -> None:
        """End: purge what others hold of us, delete every SA."""
        self.peering.closing = True
        for tunnel in self.tunnels.values():
            tunnel.nhrp.shutdown(now)
            self._send_nhrp(tunnel, now)
            tunnel.remove_all_shortcuts()
        self.ike.close(now)
        self._settle(now)

    # -- outputs ---------------------------------------------------------------------------------------------

    def get_timer(self) -> float | None:
        """When `handle_timer` or `keepalives_to_send` has something to do."""
        timers = [self.ike.get_timer(), self.names.get_timer(), *self.peering.timers()]
        for tunnel in self.tunnels.values():
            timers += (tunnel.nhrp.get_timer(), tunnel.health.get_timer(), tunnel.multicast_timer())
        return min((timer for timer in timers if timer is not None), default=None)

    @property
    def wants_traffic(self) -> bool:
        """Whether `traffic` should be called every few hundredths of a second: a peer has called and traffic waits for
        its first packet. This lasts a few seconds at most."""
        return self.peering.sealing.awaits_packet

    def awaiting_packets(self) -> list[int]:
        """The adjacencies of the peers for whose first packet `traffic` is wanted."""
        return self.peering.sealing.awaiting()

    def cookie_gate(self, now: float) -> CookieSecrets | None:
        """With what the data plane is to ask strangers for cookies; None while it need not."""
        return self.ike.cookie_gate(now)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Path]]:
        """IKE messages; port 4500 in `path.local` wants the non-ESP marker."""
        return self.ike.datagrams_to_send(now)

    def keepalives_to_send(self, now: float) -> list[Path]:
        """Paths whose NAT binding has to be refreshed (RFC 3948 section 4)."""
        return self.peering.keepalives(now)

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

    def looked_up(self, tunnel: str, protocol: Address, addresses: tuple[Address, ...], error: str, now: float) -> None:
        """The answer to a `LookUp`: the addresses of the name, or what went wrong."""
        server, network = self.names.get(tunnel, protocol), self.tunnels[tunnel]
        if server is None or self.peering.closing:
            return
        told = server.error
        version = None if network.source is None else network.source.version
        if self.names.answered(server, addresses, error, version, now) and server.address is not None:
            self._event("info", "nhs_address", f"{tunnel}: NHS {protocol}, {server.name}, is at {server.address}")
            network.nhrp.set_nhs_nbma(protocol, server.address, now)
        elif server.error and server.error != told:
            self._event("warning", "nhs_not_found", f"{tunnel}: NHS {protocol} cannot be looked up: {server.error}")
        self._settle(now)

    def _look_up(self, now: float) -> None:
        for server in self.names.take_due(now):
            self._commands.append(LookUp(server.tunnel, server.protocol, server.name))

    # -- NHRP ------------------------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """Let the engines' events act on each other until none is left."""
        progress = True
        while progress:
            progress = self.peering.drain(now)
            for tunnel in self.tunnels.values():
                while (report := tunnel.nhrp.next_event()) is not None:
                    progress = True
                    self._on_nhrp(tunnel, report, now)
                progress |= self._send_nhrp(tunnel, now)
        for tunnel in self.tunnels.values():
            tunnel.refresh_multicast(now)

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
                    self.peering.release(mapping.peer, tunnel, protocol, now)
            case nhrp_events.ShortcutAdded(prefix, next_hop):
                self._event("info", "shortcut_added", f"{tunnel.name}: {prefix} has a direct path by {next_hop}")
                self.peering.sources.overtaken(tunnel, prefix, now)
                tunnel.add_shortcut(prefix, next_hop)
            case nhrp_events.ShortcutRemoved(prefix, reason):
                self._event("info", "shortcut_removed", f"{tunnel.name}: no direct path to {prefix}: {reason}")
                tunnel.remove_shortcut(prefix)
            case nhrp_events.ClaimDenied(identity, action, protocol, reason):
                what = f"{action} from" if action == "send" else f"{action} for"
                self._event("warning", "claim_denied", f"{tunnel.name}: {identity} may not {what} {protocol}: {reason}")
            case nhrp_events.NhsUp(protocol, nat_address):
                seen = f", which sees us as {nat_address}" if nat_address is not None else ""
                self._event("info", "nhs_up", f"{tunnel.name}: registered with NHS {protocol}{seen}")
                tunnel.health.registered(protocol, now)
                self.names.registered(tunnel.name, protocol, now)
                tunnel.forwarding.repoint_all()
            case nhrp_events.NhsDown(protocol, reason, restart_peer):
                self._event("warning", "nhs_down", f"{tunnel.name}: not registered with NHS {protocol}: {reason}")
                tunnel.health.failed(protocol)
                self.names.failed(tunnel.name, protocol, now)
                tunnel.forwarding.repoint_all()
                mapping = tunnel.mappings.get(protocol)
                if restart_peer and mapping is not None and mapping.peer is not None:
                    self.peering.restart(mapping.peer, reason, now)

    def _on_mapping(self, tunnel: Tunnel, event: nhrp_events.MappingAdded, now: float) -> None:
        event = near(event, tunnel)
        punch = wants_punch(event, tunnel)
        if punch:
            # Nobody can be waited for: an end that was only asked for calls as well, or it would not let the other in.
            event = replace(event, kind="resolved")
        before = tunnel.mappings.get(event.protocol)
        peer = self._peer_of_mapping(tunnel, event)
        if before is None or (before.event.nbma, before.event.kind) != (event.nbma, event.kind):
            nat = f" (behind NAT, {event.private_nbma} inside)" if event.private_nbma != event.nbma else ""
            self._event(
                "info", "mapping_added", f"{tunnel.name}: {event.protocol} is {event.kind} at {event.nbma}{nat}"
            )
        if peer is not None:
            self.peering.recall(peer, event.port if punch else None, now)
            peer.punch |= punch
            if punch and event.port not in (None, peer.nat_port):
                # What was called in vain so far is another place.
                peer.nat_port, peer.failures = event.port, 0
            self.peering.needed(peer, tunnel, event)
        tunnel.set_mapping(event, peer)
        if before is not None and before.peer is not None and before.peer is not peer:
            self.peering.release(before.peer, tunnel, event.protocol, now)
        if peer is not None:
            self.peering.want(peer, tunnel, event, now)

    def _port_seen(self, adjacency: int) -> int | None:
        found = self.peers.by_adjacency(adjacency)
        return port_seen(found[1] if found is not None else None)

    def _peer_of_mapping(self, tunnel: Tunnel, event: nhrp_events.MappingAdded) -> Peer | None:
        if event.peer is not None:
            found = self.peers.by_adjacency(event.peer)
            if found is not None:
                return found[1]
        # A configured address is the public one and says nothing of a NAT that the peer may be behind.
        private = None if event.kind in ("static", "nhs") else event.private_nbma
        peer = self.peers.for_mapping(tunnel.profile, event.nbma, private)
        if peer is None and event.kind != "observed":
            peer = self.peering.make_peer(tunnel.profile, event.nbma, private)
        return peer

    def _adopt(self, peer: Peer, now: float) -> None:
        """Give a peer that has called the mappings that were waiting for a call from there."""
        for name in peer.adjacencies:
            tunnel = self.tunnels[name]
            for mapping in tunnel.waiting_at(peer.nbma):
                self._on_mapping(tunnel, mapping.event, now)

    # -- reporting -------------------------------------------------------------------------------------------

    def _event(self, level: Level, name: str, message: str) -> None:
        self._events.append(GatewayEvent(level, name, message))
