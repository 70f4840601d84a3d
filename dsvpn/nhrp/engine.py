"""The NHRP engine of one tunnel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

from dsvpn.addresses import Address, Prefix
from dsvpn.errors import DecodeError, MisuseError
from dsvpn.nhrp.authentication import check
from dsvpn.nhrp.authorization import Claim
from dsvpn.nhrp.cache import Mapping
from dsvpn.nhrp.config import NhrpConfig, Route
from dsvpn.nhrp.context import NhrpContext, is_unicast, offending, packet_name
from dsvpn.nhrp.events import Event
from dsvpn.nhrp.limits import (
    COMMON_BURST,
    COMMON_RATE,
    PEER_BURST,
    PEER_RATE,
    SHARE_BURST,
    SHARE_RATE,
    STRANGER_BURST,
    STRANGER_RATE,
    FairLimiter,
    RateLimiter,
)
from dsvpn.nhrp.purge import PurgeTable
from dsvpn.nhrp.redirect import Redirects
from dsvpn.nhrp.registration import RegistrationClient
from dsvpn.nhrp.registration_server import RegistrationServer
from dsvpn.nhrp.resolution import ResolutionClient
from dsvpn.nhrp.resolution_server import ResolutionServer
from dsvpn.nhrp.snapshot import MappingStatus, NhrpSnapshot, ShortcutStatus
from dsvpn.nhrp.transit import Transit
from dsvpn.wire.nhrp import ErrorCode, ErrorIndication, NhrpMessage, PacketType, TrafficIndication, decode

_PEERS = 65536
#: Why a mapping went with its peer.
PEER_DOWN = "peer down"

_ERRORS = {
    ErrorCode.UNRECOGNIZED_EXTENSION: "unrecognized extension",
    ErrorCode.LOOP_MISNUMBERED: "loop detected",
    ErrorCode.LOOP_DETECTED: "loop detected",
    ErrorCode.PROTOCOL_ADDRESS_UNREACHABLE: "protocol address unreachable",
    ErrorCode.PROTOCOL_ERROR: "protocol error",
    ErrorCode.SDU_SIZE_EXCEEDED: "SDU size exceeded",
    ErrorCode.INVALID_EXTENSION: "invalid extension",
    ErrorCode.INVALID_RESOLUTION_REPLY: "invalid resolution reply",
    ErrorCode.AUTHENTICATION_FAILURE: "authentication failure (the two ends have different words)",
    ErrorCode.HOP_COUNT_EXCEEDED: "hop count exceeded",
}


class NhrpEngine:
    """NHRP client and server of one tunnel: bytes, peers and time in; packets, deadlines and events out.

    A peer is the owner's adjacency id. Nothing is sent to an NBMA address before `peer_up` names a peer for it.
    After any input, drain `next_event` first (an event may make a peer), then `packets_to_send`, then look at
    `get_timer`. `now` is in seconds of a clock that never goes back.
    """

    def __init__(
        self,
        config: NhrpConfig,
        random: Callable[[int], bytes],
        route_lookup: Callable[[Address], Route | None],
        port_seen: Callable[[int], int | None] = lambda peer: None,
    ) -> None:
        """`route_lookup` gives the kernel's longest match without shortcuts, None when there is no route.

        `port_seen` gives the UDP port at which a peer behind NAT is seen here, None without NAT or ports.

        NHS and static mappings are reported as MappingAdded at once.
        """
        if not 3 <= config.holding_time <= 0xFFFF:
            raise MisuseError(f"holding time {config.holding_time} s is not within 3 to 65535 s")
        if not config.protocol_addresses:
            raise MisuseError("a tunnel without a protocol address cannot speak NHRP")
        self._context = NhrpContext(config, random, route_lookup, self._mapping_removed, port_seen)
        self._transit = Transit(self._context)
        self._purges = PurgeTable(self._context, self._transit)
        self._registrations = RegistrationClient(self._context)
        self._registrar = RegistrationServer(self._context, self._mapping_moved)
        self._resolutions = ResolutionClient(self._context, self._transit)
        self._resolver = ResolutionServer(self._context, self._transit, self._purges)
        self._redirects = Redirects(self._context, self._resolutions)
        self._peer_budget = FairLimiter(
            (SHARE_RATE, SHARE_BURST), (COMMON_RATE, COMMON_BURST), (PEER_RATE, PEER_BURST), _PEERS
        )
        self._stranger_budget = RateLimiter(STRANGER_RATE, STRANGER_BURST, 1)
        for nhs in config.nhs:
            if nhs.nbma is not None:
                self._context.cache.put(Mapping(nhs.protocol, nhs.nbma, nhs.nbma, "nhs"))
        for protocol, nbma in config.static_maps:
            self._context.cache.put(Mapping(protocol, nbma, nbma, "static"))

    # -- inputs --------------------------------------------------------------------------------------------
    def receive_packet(self, data: bytes, peer: int | None, nbma: Address, now: float) -> None:
        """An NHRP packet (what follows the GRE header). Never raises for what `data` says.

        `peer` is the adjacency that it came from, None for a stranger without protection; `nbma` is the outer source
        address as it arrived, after any NAT.
        """
        context = self._context
        if peer is None:
            peer = context.peers.at(nbma)
        if not (self._peer_budget.allow(peer, now) if peer is not None else self._stranger_budget.allow("all", now)):
            context.count("drop.rate")
            return
        try:
            packet = decode(data)
        except DecodeError:
            context.count("drop.malformed")
            return
        context.count(f"rx.{packet_name(packet)}")
        if isinstance(packet, ErrorIndication):
            self._receive_error(packet, peer, now)
            return
        why = check(packet.extensions, context.config.authentication)
        if why is not None:
            context.count("drop.authentication")
            context.send_error(ErrorCode.AUTHENTICATION_FAILURE, 0, packet, data, peer, now)
            if peer is not None:
                self._registrations.distrust(peer, why)
            return
        if isinstance(packet, NhrpMessage) and packet.type == PacketType.REGISTRATION_REQUEST:
            self._receive_registration(packet, data, peer, nbma, now)
        elif peer is None:
            # Only a registration makes a peer of a stranger.
            context.count("drop.stranger")
        elif isinstance(packet, TrafficIndication):
            self._redirects.receive(packet, now)
        else:
            self._receive_message(packet, data, peer, nbma, now)

    def handle_miss(self, destination: Address, now: float) -> None:
        """A packet to `destination` used a next hop that is not resolved: resolve that next hop."""
        context = self._context
        route = context.route_lookup(destination)
        if route is None or not route.tunnel or route.local:
            context.count("miss.not_our_route")
            return
        target = route.next_hop if route.next_hop is not None else destination
        mapping = context.cache.get(target)
        # An observed mapping is the other end's word about itself: good enough to use, not to keep.
        if mapping is not None and mapping.kind != "observed":
            return
        if context.shortcuts.covering(target) is None:
            self._resolutions.resolve(target, now)

    def verify_source(self, source: Address, now: float) -> None:
        """Data came by a direct path from a source that only the hub is known for: find out whose it is, so that the
        answers go there and nobody else can go on sending from it."""
        context = self._context
        route = context.route_lookup(source)
        if route is None or not route.tunnel or route.local:
            return
        if route.next_hop is not None and not context.config.shortcut:
            return
        if context.cache.get(source) is None and context.shortcuts.covering(source) is None:
            self._resolutions.resolve(source, now)

    def deny_source(self, peer: int, source: Address, reason: str, now: float) -> None:
        """Data from a source that is not the peer's was dropped."""
        self._context.deny(peer, "send", source, reason, now)

    def trusts(self, peer: int) -> bool:
        """Whether a peer speaks for others: it is a configured NHS, or the gateway of a static mapping."""
        return self._context.authorization.trusts(peer)

    def kernel_next_hop(self, protocol: Address) -> Address | None:
        """The gateway that the kernel's route for an address leads to, shortcuts left out; None when on-link."""
        route = self._context.route_lookup(protocol)
        return route.next_hop if route is not None and route.tunnel else None

    def routed_to(self, peer: int, protocol: Address) -> Prefix | None:
        """The kernel's route for an address if its next hop is one of the peer's."""
        return self._context.authorization.routed_to(peer, protocol)

    def handle_redirect(self, head: bytes, peer: int, now: float) -> None:
        """As hub: the packet that starts with `head` came from `peer` and leaves to another peer. Tell `peer`."""
        self._redirects.send(head, peer, now)

    def peer_up(self, nbma: Address, peer: int, now: float, claim: Claim | None = None) -> None:
        """A protected path to an NBMA address exists, or an existing peer has moved to that address.

        `claim` is what the peer has proved, None where the path proves nothing (plain GRE).
        """
        context = self._context
        context.authorization.set_claim(peer, claim)
        moved = context.peers.add(nbma, peer) is not None
        context.peers.set_server(peer, claim is None or claim.server)
        context.cache.bind(nbma, peer)
        if moved:
            context.cache.move(peer, nbma)
        context.release_parked(nbma, peer)
        self._registrations.peer_up(nbma, peer, now)

    def peer_down(self, peer: int, now: float) -> None:
        """The path to a peer is gone, and with it what was learned through it: traffic goes by the hub again."""
        context = self._context
        nbma = context.peers.nbma(peer)
        context.forget_peer(peer)
        self._peer_budget.forget(peer)
        self._registrations.peer_down(peer, now)
        for protocol in context.cache.registered_by(peer):
            context.cache.remove(protocol, PEER_DOWN, now)
        if nbma is not None and context.peers.at(nbma) is None:
            for protocol in context.cache.learned_at(nbma):
                context.cache.remove(protocol, PEER_DOWN, now)

    def note_traffic(self, used: Prefix | Address, now: float) -> None:
        """Traffic used a shortcut, or a next hop with all its shortcuts: in the last third of its life, renew it."""
        context = self._context
        if isinstance(used, IPv4Network | IPv6Network):
            shortcut = context.shortcuts.get(used)
            shortcuts = [shortcut] if shortcut is not None else []
        else:
            shortcuts = context.shortcuts.via(used)
            mapping = context.cache.get(used)
            learned = mapping is not None and mapping.kind in ("resolved", "observed")
            expires = mapping.expires if learned and mapping is not None else None
            if not shortcuts and expires is not None and expires - now <= context.config.holding_time / 3:
                self._resolutions.resolve(used, now)
        for shortcut in shortcuts:
            shortcut.used_at = now
            if shortcut.renewal_due(now):
                self._resolutions.resolve(shortcut.target, now)

    def nhs_lost(self, protocol: Address, reason: str, now: float) -> None:
        """An NHS does not answer the owner's probes: NhsDown now, NhsUp as soon as it answers a registration."""
        self._registrations.lost(protocol, reason, now)

    def set_nhs_nbma(self, protocol: Address, nbma: Address, now: float) -> None:
        """The NHS with this protocol address is at another NBMA address than before, or is known for the first time."""
        context = self._context
        context.nhs = [replace(nhs, nbma=nbma) if nhs.protocol == protocol else nhs for nhs in context.nhs]
        self._registrations.moved(protocol, nbma, now)
        context.cache.put(Mapping(protocol, nbma, nbma, "nhs"))

    def set_nbma(self, nbma: Address, now: float, *, register: bool = True) -> None:
        """This gateway's own underlay address is known or has changed: register with it, unless `register_with` is to
        follow once the NHSs know the path from there."""
        if self._context.nbma != nbma:
            self._context.nbma = nbma
            if register:
                self._registrations.restart(now)

    def register_with(self, peer: int, now: float) -> None:
        """Register anew with the NHSs behind one peer, whom the path to this gateway has changed for."""
        self._registrations.restart(now, peer)

    @property
    def nat_address(self) -> Address | None:
        """This end's public NBMA address as an NHS sees it, None without NAT."""
        return self._context.nat_address

    def withdraw(self, prefix: Prefix, now: float) -> None:
        """This gateway has stopped being the way to `prefix`: purge it from all who were told so."""
        self._purges.withdraw(prefix, now)

    def clear(self, now: float, protocol: Address | None = None) -> None:
        """Forget what was learned (about one protocol address, or all) and register anew."""
        context = self._context
        for mapping in context.cache:
            if not mapping.permanent() and protocol in (None, mapping.protocol):
                context.cache.remove(mapping.protocol, "cleared", now)
        context.authorization.release(protocol)
        for shortcut in context.shortcuts:
            if protocol in (None, shortcut.next_hop):
                context.shortcuts.remove(shortcut.prefix, "cleared")
        if protocol is None:
            self._resolutions.clear()
            context.denials.clear()
            self._registrations.restart(now)

    def shutdown(self, now: float) -> None:
        """Purge this gateway from its NHSs and from all who resolved it. Send what comes of it, then stop."""
        self._purges.withdraw_all(now)
        for nhs, peer in self._registrations.registered_with():
            self._purges.unregister(nhs.protocol, peer)

    def handle_timer(self, now: float) -> None:
        """Do all that is due."""
        self._context.timers.run_due(now)

    # -- outputs -------------------------------------------------------------------------------------------
    def get_timer(self) -> float | None:
        """When `handle_timer` wants to be called, None for never."""
        return self._context.timers.next_deadline()

    def packets_to_send(self, now: float) -> list[tuple[bytes, int]]:
        """Packets, each with the peer that it goes to."""
        packets, self._context.outbox = self._context.outbox, []
        return packets

    def next_event(self) -> Event | None:
        """The oldest event that was not taken yet."""
        return self._context.events.popleft() if self._context.events else None

    def snapshot(self, now: float) -> NhrpSnapshot:
        """The state as values."""
        context = self._context
        mappings = [
            MappingStatus(
                mapping.protocol,
                mapping.nbma,
                mapping.private_nbma,
                mapping.kind,
                context.peer_of(mapping),
                mapping.unique,
                max(mapping.expires - now, 0.0) if mapping.expires is not None else None,
                context.authorization.holder(mapping.protocol, now),
            )
            for mapping in context.cache
        ]
        shortcuts = [
            ShortcutStatus(
                shortcut.prefix,
                shortcut.next_hop,
                "renewing" if self._resolutions.is_pending(shortcut.target) else "active",
                max(shortcut.expires - now, 0.0),
                now - shortcut.used_at if shortcut.used_at is not None else None,
            )
            for shortcut in context.shortcuts
        ]
        return NhrpSnapshot(
            context.nbma,
            context.nat_address,
            tuple(mappings),
            self._registrations.status(now),
            tuple(shortcuts),
            self._resolutions.status(now),
            dict(context.counters),
            context.denials.status(now),
        )

    # -- packets -------------------------------------------------------------------------------------------
    def _receive_registration(
        self, message: NhrpMessage, data: bytes, peer: int | None, nbma: Address, now: float
    ) -> None:
        destination = message.destination_protocol
        if self._registrar.is_for_us(message) or destination is None:
            self._registrar.receive_request(message, data, peer, nbma, now)
        elif not self._transit.forward(message, data, destination, peer, now):
            self._unreachable(message, data, peer, now)

    def _receive_message(self, message: NhrpMessage, data: bytes, peer: int, nbma: Address, now: float) -> None:
        context = self._context
        if message.type == PacketType.RESOLUTION_REQUEST:
            self._resolver.receive_request(message, data, peer, nbma, now)
            return
        # A reply goes to whom its request came from, a Purge Request to its destination.
        purge = message.type == PacketType.PURGE_REQUEST
        toward = message.destination_protocol if purge else message.source_protocol
        if toward is None or not is_unicast(toward):
            context.count("drop.incomplete")
        elif not context.is_own(toward):
            if not self._transit.forward(message, data, toward, peer, now):
                self._unreachable(message, data, peer, now)
        elif message.type == PacketType.RESOLUTION_REPLY:
            self._resolutions.receive_reply(message, data, peer, now)
        elif message.type == PacketType.REGISTRATION_REPLY:
            self._registrations.receive_reply(message, peer, now)
        elif purge:
            self._purges.receive_request(message, peer, now)
        else:
            self._purges.receive_reply(message)

    def _receive_error(self, error: ErrorIndication, peer: int | None, now: float) -> None:
        """Nothing is ever sent about an Error Indication; it is at most passed on to whom it is for."""
        context = self._context
        name = _ERRORS.get(ErrorCode(error.code)) if error.code in _ERRORS else None
        reason = name or f"error {error.code}"
        context.count(f"error.{error.code if error.code in _ERRORS else 'other'}")
        if peer is None:
            context.count("drop.stranger")
            return
        kind, request_id, source, _ = offending(error)
        if request_id is not None and source is not None and context.is_own(source):
            if kind == PacketType.REGISTRATION_REQUEST:
                self._registrations.receive_error(request_id, reason)
            elif kind == PacketType.RESOLUTION_REQUEST:
                self._resolutions.receive_error(request_id, reason, now)
            elif kind == PacketType.PURGE_REQUEST:
                self._purges.end(request_id)
            return
        toward = error.destination_protocol
        if toward is None or context.is_own(toward) or error.hop_count == 0:
            return
        onward = self._transit.next_peer(toward, peer)
        if onward is not None:
            error.hop_count -= 1
            context.send(error, onward)

    def _unreachable(self, message: NhrpMessage, data: bytes, peer: int | None, now: float) -> None:
        self._context.count("drop.unreachable")
        self._context.send_error(ErrorCode.PROTOCOL_ADDRESS_UNREACHABLE, 0, message, data, peer, now)

    # -- consequences of changes in the cache --------------------------------------------------------------
    def _mapping_removed(self, mapping: Mapping, reason: str, now: float) -> None:
        self._context.shortcuts.remove_via(mapping.protocol, reason)
        # A client that this NHS cannot reach may well be reached by others: their direct paths are not for it to cut.
        if mapping.kind == "registered" and reason != PEER_DOWN:
            self._mapping_moved(mapping.protocol, None, now)

    def _mapping_moved(self, protocol: Address, nbma: Address | None, now: float) -> None:
        """Those who learned of a client through this NHS must not go on believing that it is elsewhere."""
        self._purges.purge_relays(protocol, self._transit.forget(protocol, now, nbma), now)
