"""Resolution of protocol addresses, the side that answers or passes the question on (RFC 2332 section 5.2.2)."""

from __future__ import annotations

from dsvpn.addresses import Address, Prefix
from dsvpn.nhrp.context import (
    HOP_COUNT,
    NhrpContext,
    fill_responder,
    find_extension,
    is_unicast,
    nat_nbma,
    unknown_compulsory,
)
from dsvpn.nhrp.nat_ports import nat_port, set_nat_port
from dsvpn.nhrp.purge import PurgeTable
from dsvpn.nhrp.shortcut import MIN_PREFIX_LENGTH, host_prefix
from dsvpn.nhrp.transit import Transit
from dsvpn.nhrp.vetting import request_is_own
from dsvpn.wire.nhrp import (
    FLAG_AUTHORITATIVE,
    FLAG_DESTINATION_STABLE,
    FLAG_NAT,
    FLAG_ROUTER,
    FLAG_SOURCE_STABLE,
    FLAG_UNIQUE,
    ErrorCode,
    NhrpMessage,
    PacketType,
)
from dsvpn.wire.nhrp_cie import UNIQUE_PREFIX_LENGTH, AddressFamily, Cie, CieCode
from dsvpn.wire.nhrp_extensions import ExtensionType

_ECHOED_FLAGS = FLAG_ROUTER | FLAG_UNIQUE | FLAG_SOURCE_STABLE | FLAG_NAT


class ResolutionServer:
    """Answers for what this gateway is the egress of, and forwards the rest."""

    def __init__(self, context: NhrpContext, transit: Transit, purges: PurgeTable) -> None:
        self._context = context
        self._transit = transit
        self._purges = purges

    def receive_request(self, message: NhrpMessage, data: bytes, peer: int, nbma: Address, now: float) -> None:
        """A Resolution Request from an adjacency; `nbma` is its outer source."""
        context = self._context
        source, destination = message.source_protocol, message.destination_protocol
        if source is None or destination is None or not is_unicast(source) or not is_unicast(destination):
            context.count("drop.incomplete")
            context.send_error(ErrorCode.PROTOCOL_ERROR, 20, message, data, peer, now)
            return
        if context.is_own(source):
            context.count("drop.loop")
            return
        if not request_is_own(context, message, peer, now):
            return
        prefix = self._egress_prefix(destination)
        if prefix is None:
            if context.config.answer_from_cache and self._answer_from_cache(message, source, destination, peer, now):
                return
            if not self._transit.forward(message, data, destination, peer, now):
                self._refuse(message, peer)
            return
        if unknown_compulsory(message) is not None:
            context.count("drop.unknown_extension")
            context.send_error(ErrorCode.UNRECOGNIZED_EXTENSION, 0, message, data, peer, now)
            return
        self._observe(message, source, peer, nbma, now)
        cie = Cie(
            prefix_length=prefix.prefixlen,
            holding_time=context.config.holding_time,
            nbma=context.own_nbma(message.family),
            protocol=context.own_address(destination),
        )
        if cie.nbma is None or cie.protocol is None:
            self._refuse(message, peer)
            return
        public = context.nat_address
        nat = [Cie(prefix_length=cie.protocol.max_prefixlen, nbma=public, protocol=cie.protocol)] if public else []
        self._purges.note_answer(source, prefix, now + context.config.holding_time, now)
        self._answer(message, cie, nat, peer)

    def _egress_prefix(self, destination: Address) -> Prefix | None:
        """The prefix to answer with if this gateway is the way out of the tunnel to `destination`, else None."""
        if self._context.is_own(destination):
            return host_prefix(destination)
        route = self._context.route_lookup(destination)
        if route is None or route.tunnel:
            return None
        # A default route is the way out for this destination, but must not draw everything else here.
        if route.local or route.prefix.prefixlen < MIN_PREFIX_LENGTH[destination.version]:
            return host_prefix(destination)
        return route.prefix

    def _answer_from_cache(
        self, message: NhrpMessage, source: Address, destination: Address, peer: int, now: float
    ) -> bool:
        """As NHS, answer for a registered address. False when it is not registered."""
        context = self._context
        mapping = context.cache.get(destination)
        if mapping is None or mapping.kind != "registered" or mapping.expires is None:
            return False
        # Nobody may keep what is known here for longer than it holds here.
        holding_time = min(context.config.holding_time, int(mapping.expires - now))
        if holding_time <= 0:
            return False
        if message.flags & FLAG_UNIQUE and not mapping.unique:
            # The requester wants a binding that only one client can have (RFC 2332 section 5.2.1, U bit).
            self._refuse(message, peer, CieCode.BINDING_NOT_UNIQUE)
            return True
        length = UNIQUE_PREFIX_LENGTH if mapping.unique else destination.max_prefixlen
        version = 4 if message.family == AddressFamily.IPV4 else 6
        if mapping.private_nbma.version != version or mapping.nbma.version != version:
            return False
        cie = Cie(prefix_length=length, holding_time=holding_time, nbma=mapping.private_nbma, protocol=mapping.protocol)
        nat = []
        if mapping.nbma != mapping.private_nbma:
            nat.append(Cie(prefix_length=destination.max_prefixlen, nbma=mapping.nbma, protocol=mapping.protocol))
        self._transit.remember(message, cie, source, now)
        known = mapping.peer is not None and bool(nat)
        port = context.port_seen(mapping.peer) if known and mapping.peer is not None else None
        set_nat_port(message.extensions, mapping.protocol, port)
        self._answer(message, cie, nat, peer)
        return True

    def _answer(self, message: NhrpMessage, cie: Cie, nat: list[Cie], peer: int) -> None:
        """Turn the request into its reply, which goes back the way that it came.

        A reply carries all extensions of its request (RFC 2332 section 5.3).
        """
        context = self._context
        if message.flags & FLAG_UNIQUE and cie.code == CieCode.SUCCESS:
            cie.prefix_length = UNIQUE_PREFIX_LENGTH
        message.type = PacketType.RESOLUTION_REPLY
        message.hop_count = HOP_COUNT
        message.flags = (message.flags & _ECHOED_FLAGS) | FLAG_AUTHORITATIVE
        if cie.code == CieCode.SUCCESS:
            message.flags |= FLAG_DESTINATION_STABLE
        message.cies = [cie]
        destination = message.destination_protocol
        if destination is not None:
            fill_responder(message, context.own_cie(message, destination))
        extension = find_extension(message.extensions, ExtensionType.NAT_ADDRESS)
        if extension is not None:
            extension.cies = [entry for entry in nat if entry.nbma is not None and _fits(entry.nbma, message)]
        context.send(message, peer)

    def _refuse(self, message: NhrpMessage, peer: int, code: CieCode = CieCode.NO_BINDING) -> None:
        self._context.count("refused.resolution")
        self._answer(message, Cie(code=code), [], peer)

    def _observe(self, message: NhrpMessage, source: Address, peer: int, nbma: Address, now: float) -> None:
        """Learn where the requester is, so that the direct path can be made from this end too.

        Only a stable binding with a holding time may be learned (RFC 2332 section 5.2.1, S bit), and only from an
        NHS or from the requester itself.
        """
        context = self._context
        holding_time = message.cies[0].holding_time if message.cies else 0
        private = message.source_nbma
        if not message.flags & FLAG_SOURCE_STABLE or not holding_time or private is None or not is_unicast(private):
            return
        public = nat_nbma(message.extensions, source) or private
        if not context.is_nhs_peer(peer) and public != nbma:
            context.count("drop.observation")
            return
        # Only an NHS knows at which port a NAT box shows a client.
        told = context.is_nhs_peer(peer) and public != private
        port = nat_port(message.extensions, source) if told else None
        context.cache.observe(source, public, private, now + holding_time, port)


def _fits(address: Address, message: NhrpMessage) -> bool:
    return address.version == (4 if message.family == AddressFamily.IPV4 else 6)
