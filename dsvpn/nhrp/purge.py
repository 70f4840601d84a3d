"""Purges: taking back what was told to others, and forgetting what others take back (RFC 2332 section 5.2.5)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from dsvpn.addresses import Address, Prefix
from dsvpn.nhrp.context import HOP_COUNT, NhrpContext
from dsvpn.nhrp.limits import MAX_ANSWERED, MAX_CIES, MAX_PENDING_PURGES
from dsvpn.nhrp.shortcut import host_prefix, network
from dsvpn.nhrp.transit import Relay, Transit
from dsvpn.wire.nhrp import FLAG_PURGE_NO_REPLY, NhrpMessage, PacketType
from dsvpn.wire.nhrp_cie import UNIQUE_PREFIX_LENGTH, Cie, protocol_type
from dsvpn.wire.nhrp_extensions import CieExtension, ExtensionType

#: Seconds until a Purge Request is sent again; after the last one it is left to the holding time.
RETRY_DELAYS = (1.0, 2.0, 4.0)


@dataclass(slots=True)
class PendingPurge:
    """A Purge Request that waits for its reply."""

    request_id: int
    toward: Address
    prefixes: tuple[Prefix, ...]
    attempts: int = 0


class PurgeTable:
    """What this gateway told whom, and the purges that are out."""

    def __init__(self, context: NhrpContext, transit: Transit) -> None:
        self._context = context
        self._transit = transit
        #: (requester, prefix) -> until when the requester may believe it.
        self._answers: OrderedDict[tuple[Address, Prefix], float] = OrderedDict()
        self._pending: dict[int, PendingPurge] = {}

    def note_answer(self, requester: Address, prefix: Prefix, expires: float, now: float) -> None:
        """A requester was told that this gateway is the way to `prefix`."""
        self._answers.pop((requester, prefix), None)
        self._answers[requester, prefix] = expires
        while self._answers and (len(self._answers) > MAX_ANSWERED or next(iter(self._answers.values())) <= now):
            self._answers.popitem(last=False)

    def withdraw(self, prefix: Prefix, now: float) -> None:
        """This gateway is not the way to `prefix` any more: tell all who believe that it is."""
        told = [key for key, expires in self._answers.items() if key[1].overlaps(prefix) and expires > now]
        for requester, answers in self._take(told).items():
            self._send(requester, answers, now, reply=True)

    def withdraw_all(self, now: float) -> None:
        """This gateway stops: tell everyone, and expect no replies."""
        told = [key for key, expires in self._answers.items() if expires > now]
        for requester, answers in self._take(told).items():
            own = self._context.own_address(requester)
            self._send(requester, (*answers, host_prefix(own)) if own is not None else answers, now, reply=False)

    def unregister(self, nhs: Address, peer: int) -> None:
        """Take this gateway's registration back from an NHS."""
        own = self._context.own_address(nhs)
        message = self._request(nhs, (host_prefix(own),), 0, FLAG_PURGE_NO_REPLY) if own is not None else None
        if message is not None:
            self._context.send(message, peer)

    def purge_relays(self, responder: Address, relays: Iterable[Relay], now: float) -> None:
        """As NHS, tell those who learned of a responder through here that it is gone."""
        for relay in relays:
            self._send(relay.requester, (host_prefix(responder), *relay.prefixes), now, reply=True)

    def receive_request(self, message: NhrpMessage, peer: int, now: float) -> None:
        """A Purge Request for this gateway. It is obeyed from an NHS and from the gateway that the binding is of."""
        context = self._context
        source = message.source_protocol
        if source is None or not self._may_purge(source, peer):
            context.count("drop.purge_refused")
            if source is not None:
                context.deny(peer, "purge", source, "it does not have that address", now)
            return
        for cie in message.cies[:MAX_CIES]:
            if cie.protocol is not None:
                self._purge(cie, cie.protocol, source, peer, now)
        if message.flags & FLAG_PURGE_NO_REPLY:
            return
        message.type = PacketType.PURGE_REPLY
        message.hop_count = HOP_COUNT
        context.send(message, peer)

    def receive_reply(self, message: NhrpMessage) -> None:
        """A Purge Reply for this gateway."""
        if not self.end(message.request_id):
            self._context.count("drop.unexpected_reply")

    def end(self, request_id: int) -> bool:
        """A purge is answered, by whatever; False when none has this id."""
        pending = self._pending.pop(request_id, None)
        self._context.timers.cancel(("purge", request_id))
        return pending is not None

    def _may_purge(self, source: Address, peer: int) -> bool:
        context = self._context
        if context.is_nhs_peer(peer):
            return True
        mapping = context.cache.get(source)
        if mapping is None:
            return False
        return mapping.peer == peer if mapping.peer is not None else mapping.nbma == context.peers.nbma(peer)

    def _purge(self, cie: Cie, protocol: Address, source: Address, peer: int, now: float) -> None:
        """Forget what one entry names, as far as the sender has a say in it."""
        context = self._context
        length = cie.prefix_length
        if length in (0, UNIQUE_PREFIX_LENGTH) or length > protocol.max_prefixlen:
            length = protocol.max_prefixlen
        trusted = context.is_nhs_peer(peer)
        for shortcut in context.shortcuts.within(network(protocol, length)):
            if trusted or shortcut.next_hop == source:
                context.shortcuts.remove(shortcut.prefix, f"purged by {source}")
        if length != protocol.max_prefixlen:
            return
        mapping = context.cache.get(protocol)
        if mapping is None or (cie.nbma is not None and cie.nbma not in (mapping.nbma, mapping.private_nbma)):
            return
        if mapping.kind == "registered":
            if mapping.peer == peer:
                context.cache.remove(protocol, f"purged by {source}", now)
                context.authorization.release(protocol)
            else:
                context.deny(peer, "purge", protocol, "it does not have that address", now)
        elif mapping.kind in ("resolved", "observed") and (trusted or protocol == source):
            context.cache.remove(protocol, f"purged by {source}", now)

    def _take(self, keys: list[tuple[Address, Prefix]]) -> dict[Address, tuple[Prefix, ...]]:
        grouped: dict[Address, tuple[Prefix, ...]] = {}
        for requester, prefix in keys:
            del self._answers[requester, prefix]
            grouped[requester] = (*grouped.get(requester, ()), prefix)
        return grouped

    def _send(self, toward: Address, prefixes: tuple[Prefix, ...], now: float, reply: bool) -> None:
        if not reply or len(self._pending) >= MAX_PENDING_PURGES:
            self._transmit(toward, prefixes, self._context.request_id(), FLAG_PURGE_NO_REPLY)
            return
        pending = PendingPurge(self._context.request_id(), toward, prefixes)
        self._pending[pending.request_id] = pending
        self._attempt(pending, now)

    def _attempt(self, pending: PendingPurge, now: float) -> None:
        if pending.attempts > len(RETRY_DELAYS):
            self._pending.pop(pending.request_id, None)
            self._context.count("purge.unanswered")
            return
        delay = RETRY_DELAYS[min(pending.attempts, len(RETRY_DELAYS) - 1)]
        pending.attempts += 1
        key = ("purge", pending.request_id)
        self._context.timers.set(key, now + delay, lambda later: self._attempt(pending, later))
        self._transmit(pending.toward, pending.prefixes, pending.request_id, 0)

    def _transmit(self, toward: Address, prefixes: tuple[Prefix, ...], request_id: int, flags: int) -> None:
        peer = self._transit.next_peer(toward, None)
        message = self._request(toward, prefixes, request_id, flags)
        if peer is not None and message is not None:
            self._context.send(message, peer)

    def _request(
        self, toward: Address, prefixes: tuple[Prefix, ...], request_id: int, flags: int
    ) -> NhrpMessage | None:
        context = self._context
        own = context.own_address(toward)
        if own is None:
            return None
        family = context.family()
        kind = protocol_type(own)
        return NhrpMessage(
            PacketType.PURGE_REQUEST,
            family,
            kind,
            HOP_COUNT,
            flags,
            request_id or context.request_id(),
            context.own_nbma(family),
            own,
            toward,
            [
                Cie(prefix_length=prefix.prefixlen, protocol=prefix.network_address)
                for prefix in prefixes[:MAX_CIES]
                if protocol_type(prefix.network_address) == kind
            ],
            [CieExtension(ExtensionType.FORWARD_TRANSIT), CieExtension(ExtensionType.REVERSE_TRANSIT)],
        )
