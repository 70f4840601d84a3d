"""Registration of clients, the NHS's side (RFC 2332 section 5.2.3)."""

from __future__ import annotations

from collections.abc import Callable

from dsvpn.addresses import Address
from dsvpn.nhrp.cache import Mapping
from dsvpn.nhrp.context import (
    HOP_COUNT,
    NhrpContext,
    fill_responder,
    find_extension,
    is_unicast,
    unknown_compulsory,
)
from dsvpn.nhrp.limits import MAX_CIES
from dsvpn.wire.nhrp import FLAG_REGISTRATION_UNIQUE, ErrorCode, NhrpMessage, PacketType
from dsvpn.wire.nhrp_cie import UNIQUE_PREFIX_LENGTH, Cie, CieCode, nbma_family
from dsvpn.wire.nhrp_extensions import ExtensionType


class RegistrationServer:
    """Takes registrations into the mapping cache and answers them."""

    def __init__(self, context: NhrpContext, moved: Callable[[Address, Address | None, float], None]) -> None:
        """`moved(protocol, nbma, now)` is told where a client is that was not known to be there."""
        self._context = context
        self._moved = moved

    def is_for_us(self, message: NhrpMessage) -> bool:
        """A client that does not know its NHS's address names itself or nobody as the destination."""
        destination = message.destination_protocol
        if destination is None or destination.is_unspecified or destination == message.source_protocol:
            return True
        return self._context.is_own(destination)

    def receive_request(self, message: NhrpMessage, data: bytes, peer: int | None, nbma: Address, now: float) -> None:
        """A Registration Request for this NHS; `nbma` is where it came from, after any NAT."""
        context = self._context
        source = message.source_protocol
        if source is None or not message.cies:
            context.count("drop.incomplete")
            context.send_error(ErrorCode.PROTOCOL_ERROR, 20, message, data, peer, now)
            return
        if unknown_compulsory(message) is not None:
            context.count("drop.unknown_extension")
            context.send_error(ErrorCode.UNRECOGNIZED_EXTENSION, 0, message, data, peer, now)
            return
        accepted = False
        for number, cie in enumerate(message.cies):
            code = (
                self._register(message, cie, peer, nbma, now) if number < MAX_CIES else CieCode.INSUFFICIENT_RESOURCES
            )
            accepted = accepted or code == CieCode.SUCCESS
            cie.code = code
            if code != CieCode.SUCCESS:
                context.count(f"refused.registration_{code}")
                cie.holding_time = 0
        reply = self._reply(message, source, nbma)
        if accepted:
            context.send_or_park(reply, peer, nbma, now)
        elif peer is not None:
            # A refusal makes no peer, so a stranger without an adjacency gets none.
            context.send(reply, peer)

    def _register(self, message: NhrpMessage, cie: Cie, peer: int | None, nbma: Address, now: float) -> CieCode:
        """Store one entry, or say why not."""
        context = self._context
        source = cie.protocol if cie.protocol is not None else message.source_protocol
        if source is None or not self._may_name(source, message.source_protocol, peer):
            return CieCode.ADMINISTRATIVELY_PROHIBITED
        refusal = context.authorization.refusal(peer, source)
        if refusal:
            context.deny(peer, "register", source, refusal, now)
            return CieCode.ADMINISTRATIVELY_PROHIBITED
        unique = bool(message.flags & FLAG_REGISTRATION_UNIQUE)
        if cie.prefix_length not in (0, UNIQUE_PREFIX_LENGTH, source.max_prefixlen):
            return CieCode.ADMINISTRATIVELY_PROHIBITED if unique else CieCode.BINDING_NOT_UNIQUE
        if not self._is_client_address(source):
            return CieCode.ADMINISTRATIVELY_PROHIBITED
        private = message.source_nbma if message.source_nbma is not None else nbma
        present = context.cache.get(source)
        if present is not None and present.kind in ("nhs", "static"):
            # A configured mapping stands; its own gateway may register without changing anything.
            return CieCode.SUCCESS if present.nbma == nbma else CieCode.ADMINISTRATIVELY_PROHIBITED
        taken = context.authorization.held_by_another(peer, source, now)
        if taken:
            context.deny(peer, "register", source, taken, now)
            return CieCode.UNIQUE_ADDRESS_REGISTERED
        same = present is not None and _is_same_client(present, peer, nbma, private)
        if present is not None and present.kind == "registered" and present.unique and not same:
            return CieCode.UNIQUE_ADDRESS_REGISTERED
        if cie.holding_time == 0:
            # Nothing to hold: a client that withdraws itself. Another client's binding is not its to withdraw.
            if same:
                context.cache.remove(source, "registered with holding time 0", now)
            if same or present is None:
                context.authorization.release(source)
            return CieCode.SUCCESS
        mapping = Mapping(source, nbma, private, "registered", peer, now + cie.holding_time, unique)
        if not context.cache.put(mapping):
            return CieCode.INSUFFICIENT_RESOURCES
        context.authorization.hold(peer, source, now + cie.holding_time)
        if present is None or present.nbma != nbma:
            self._moved(source, nbma, now)
        return CieCode.SUCCESS

    def _may_name(self, protocol: Address, source: Address | None, peer: int | None) -> bool:
        """Whether an entry may be about another address than the packet's source (RFC 2332 section 5.2.3): one that
        was given to the client, or the link-local address that an IPv6 client has besides."""
        if protocol == source:
            return True
        link_local = protocol.version == 6 and protocol.is_link_local
        return link_local or self._context.authorization.names_address(peer, protocol)

    def _is_client_address(self, protocol: Address) -> bool:
        """Whether a client may have a protocol address: one of the tunnel's prefix and not this gateway's."""
        context = self._context
        if not is_unicast(protocol) or context.is_own(protocol):
            return False
        own = context.own_interface(protocol)
        if own is None:
            return False
        if protocol.version == 6 and protocol.is_link_local:
            return True
        # FRR wants host addresses on tunnels: then there is no prefix to compare with.
        return own.network.num_addresses == 1 or protocol in own.network

    def _reply(self, message: NhrpMessage, source: Address, nbma: Address) -> NhrpMessage:
        context = self._context
        message.type = PacketType.REGISTRATION_REPLY
        message.hop_count = HOP_COUNT
        own = context.own_address(source)
        if own is not None:
            message.destination_protocol = own
        fill_responder(message, context.own_cie(message, source))
        nat = find_extension(message.extensions, ExtensionType.NAT_ADDRESS)
        if nat is not None and message.source_nbma != nbma and nbma_family(nbma) == message.family:
            nat.cies.append(Cie(prefix_length=source.max_prefixlen, nbma=nbma, protocol=source))
        return message


def _is_same_client(present: Mapping, peer: int | None, nbma: Address, private: Address) -> bool:
    """A refresh: through the same adjacency, or from the same place."""
    if peer is not None and present.peer == peer:
        return True
    return present.nbma == nbma and present.private_nbma == private
