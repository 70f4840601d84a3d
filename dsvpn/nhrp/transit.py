"""Forwarding of NHRP packets by an NHS: next hop, hop count, loops, transit records, NAT (RFC 2332 section 5.3.2)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from dsvpn.addresses import Address, Prefix
from dsvpn.nhrp.cache import Mapping
from dsvpn.nhrp.context import NhrpContext, find_extension, is_unicast, nat_nbma
from dsvpn.nhrp.limits import MAX_PREFIXES_PER_RELAY, MAX_RELAYED
from dsvpn.nhrp.nat_ports import set_nat_port
from dsvpn.nhrp.shortcut import host_prefix, network
from dsvpn.nhrp.vetting import limit_answer, limit_purge, request_is_own
from dsvpn.wire.nhrp import ErrorCode, NhrpMessage, PacketType
from dsvpn.wire.nhrp_cie import AddressFamily, Cie, CieCode
from dsvpn.wire.nhrp_extensions import ExtensionType

_REPLIES = (PacketType.RESOLUTION_REPLY, PacketType.REGISTRATION_REPLY, PacketType.PURGE_REPLY)


@dataclass(slots=True)
class Relay:
    """An answer that passed through here: `requester` was told where `prefixes` of a responder are."""

    requester: Address
    #: Where the responder was registered at that time.
    nbma: Address
    expires: float
    prefixes: dict[Prefix, None] = field(default_factory=dict)


class Transit:
    """The part of an engine that passes packets on."""

    def __init__(self, context: NhrpContext) -> None:
        self._context = context
        self._relays: OrderedDict[tuple[Address, Address], Relay] = OrderedDict()
        #: Responder -> its requesters, in the order of the first answer.
        self._requesters: dict[Address, dict[Address, None]] = {}

    def next_peer(self, toward: Address, came_from: int | None) -> int | None:
        """The adjacency to pass a packet for `toward` on to, never the one it came from.

        A mapping of `toward` itself, else of the route's next hop, else the best NHS.
        """
        context = self._context
        mapping = context.cache.get(toward)
        peer = self._usable(mapping, came_from)
        if peer is None:
            route = context.route_lookup(toward)
            if route is not None and route.tunnel and route.next_hop is not None:
                mapping = context.cache.get(route.next_hop)
                # A route by an NHS that is silent leads to nobody: the best of the others may know.
                if mapping is not None and (mapping.kind != "nhs" or mapping.protocol in context.nhs_up):
                    peer = self._usable(mapping, came_from)
        return peer if peer is not None else self.nhs_peer(toward.version, came_from)

    def nhs_peer(self, version: int, came_from: int | None = None) -> int | None:
        """The adjacency of the best NHS that has one: registered with before not, then the lowest priority number."""
        up = self._context.nhs_up
        for nhs in sorted(self._context.nhs, key=lambda nhs: (nhs.protocol not in up, nhs.priority)):
            peer = None if nhs.nbma is None else self._context.peers.server_at(nhs.nbma)
            if nhs.protocol.version == version and peer is not None and peer != came_from:
                return peer
        return None

    def forward(self, message: NhrpMessage, data: bytes, toward: Address, came_from: int | None, now: float) -> bool:
        """Pass a packet on; False when there is no way to `toward`. A broken rule is answered and counts as done."""
        context = self._context
        reply = message.type in _REPLIES
        peer = self._way_back(message, toward, came_from) if reply else None
        if peer is None:
            peer = self.next_peer(toward, came_from)
        if peer is None:
            return False
        if not self._is_own(message, came_from, peer, now):
            context.count("drop.denied")
            return True
        if message.hop_count == 0:
            context.count("drop.hop_count")
            context.send_error(ErrorCode.HOP_COUNT_EXCEEDED, 9, message, data, came_from, now)
            return True
        records = find_extension(
            message.extensions, ExtensionType.REVERSE_TRANSIT if reply else ExtensionType.FORWARD_TRANSIT
        )
        if records is not None:
            if any(self._is_own_record(cie) for cie in records.cies):
                context.count("drop.loop")
                context.send_error(ErrorCode.LOOP_DETECTED, 0, message, data, came_from, now)
                return True
            records.cies.append(context.own_cie(message, toward))
        message.hop_count -= 1
        if message.type == PacketType.RESOLUTION_REQUEST and message.source_protocol is not None:
            self._fill_nat(message, message.source_protocol, message.source_nbma)
            self._fill_port(message, message.source_protocol)
        if message.type == PacketType.RESOLUTION_REPLY and message.cies:
            responder = message.cies[0]
            if responder.protocol is not None:
                self._fill_nat(message, responder.protocol, responder.nbma)
                self._fill_port(message, responder.protocol)
            self.remember(message, responder, toward, now)
        context.count("forwarded")
        context.send(message, peer)
        return True

    def _way_back(self, message: NhrpMessage, toward: Address, came_from: int | None) -> int | None:
        """The hop that sent a reply's request here, when the requester is no client of this NHS.

        The requester is registered with an NHS below this one. The request's transit records tell which (RFC 2332
        section 5.3.2).
        """
        records = find_extension(message.extensions, ExtensionType.FORWARD_TRANSIT)
        known = self._context.cache.get(toward)
        # A direct path to the requester does not count: it takes the answer from a gateway that it has asked alone.
        if records is None or (known is not None and known.kind not in ("resolved", "observed")):
            return None
        before: Cie | None = None
        for cie in records.cies:
            if self._is_own_record(cie):
                break
            before = cie
        else:
            return None
        if before is None or before.protocol is None:
            return None
        return self._usable(self._context.cache.get(before.protocol), came_from)

    def forget(self, responder: Address, now: float, still_at: Address | None = None) -> list[Relay]:
        """Who was told about a responder through here, with answers that would still be believed; forgets them.

        Answers that put it at `still_at` are right and stay.
        """
        relays = []
        for requester in list(self._requesters.get(responder, ())):
            relay = self._relays[responder, requester]
            if relay.nbma == still_at and relay.expires > now:
                continue
            self._drop((responder, requester))
            if relay.expires > now:
                relays.append(relay)
        return relays

    def _is_own(self, message: NhrpMessage, came_from: int | None, onward: int, now: float) -> bool:
        """Whether a peer speaks for itself; what is beyond that is taken out of the packet."""
        context = self._context
        if came_from is None:
            return True
        source, destination = message.source_protocol, message.destination_protocol
        if message.type == PacketType.REGISTRATION_REQUEST:
            return request_is_own(context, message, came_from, now, "register")
        if message.type == PacketType.RESOLUTION_REPLY and destination is not None:
            return limit_answer(context, message, came_from, self.next_peer(destination, onward), now)
        if message.type == PacketType.PURGE_REQUEST and source is not None and destination is not None:
            relay = self._relays.get((source, destination))
            return limit_purge(context, message, came_from, relay.prefixes if relay is not None else (), now)
        return True

    def _usable(self, mapping: Mapping | None, came_from: int | None) -> int | None:
        if mapping is None:
            return None
        peer = self._context.peer_of(mapping)
        return peer if peer != came_from else None

    def _is_own_record(self, cie: Cie) -> bool:
        # Two NHSs behind different NATs may have the same private NBMA address: the protocol address tells them apart.
        if is_unicast(cie.protocol) and cie.protocol is not None:
            return self._context.is_own(cie.protocol)
        return cie.nbma is not None and cie.nbma == self._context.nbma

    def _fill_nat(self, message: NhrpMessage, protocol: Address, claimed: Address | None) -> None:
        """Say where a station is registered when that differs from what it says of itself: it is behind a NAT."""
        extension = find_extension(message.extensions, ExtensionType.NAT_ADDRESS)
        mapping = self._context.cache.get(protocol)
        if extension is None or mapping is None or mapping.kind != "registered" or mapping.nbma == claimed:
            return
        wanted = 4 if message.family == AddressFamily.IPV4 else 6
        if mapping.nbma.version != wanted or nat_nbma(message.extensions, protocol) is not None:
            return
        extension.cies.append(Cie(prefix_length=protocol.max_prefixlen, nbma=mapping.nbma, protocol=protocol))

    def _fill_port(self, message: NhrpMessage, protocol: Address) -> None:
        """Say at which UDP port a client behind NAT is seen here, in place of what it says itself.

        Clients of other NHSs have been told of by these.
        """
        mapping = self._context.cache.get(protocol)
        if mapping is None or mapping.kind != "registered":
            return
        # The port goes with the address that is seen here: by another path the client may have another one.
        seen = mapping.peer is not None and nat_nbma(message.extensions, protocol) == mapping.nbma
        port = self._context.port_seen(mapping.peer) if seen and mapping.peer is not None else None
        set_nat_port(message.extensions, protocol, port)

    def remember(self, message: NhrpMessage, cie: Cie, requester: Address, now: float) -> None:
        """A requester learns of a client of this NHS: it has to be told when that is not true any more."""
        destination = message.destination_protocol
        if cie.code != CieCode.SUCCESS or cie.protocol is None or destination is None or not cie.holding_time:
            return
        mapping = self._context.cache.get(cie.protocol)
        if mapping is None or mapping.kind != "registered":
            return
        key = (cie.protocol, requester)
        relay = self._relays.pop(key, None) or Relay(requester, mapping.nbma, now)
        relay.nbma = mapping.nbma
        relay.expires = max(relay.expires, now + cie.holding_time)
        length = cie.prefix_length
        if 0 < length <= destination.max_prefixlen:
            prefix = network(destination, length)
        else:
            prefix = host_prefix(destination)
        if len(relay.prefixes) < MAX_PREFIXES_PER_RELAY:
            relay.prefixes[prefix] = None
        self._relays[key] = relay
        self._requesters.setdefault(cie.protocol, {})[requester] = None
        while len(self._relays) > MAX_RELAYED:
            self._drop(next(iter(self._relays)))

    def _drop(self, key: tuple[Address, Address]) -> None:
        del self._relays[key]
        responder, requester = key
        requesters = self._requesters[responder]
        del requesters[requester]
        if not requesters:
            del self._requesters[responder]
