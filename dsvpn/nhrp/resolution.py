"""Resolution of protocol addresses, the requester's side (RFC 2332 section 5.2.1)."""

from __future__ import annotations

from dataclasses import dataclass

from dsvpn.addresses import Address, Prefix
from dsvpn.nhrp.cache import Mapping
from dsvpn.nhrp.context import HOP_COUNT, NhrpContext, is_unicast, nat_nbma, request_extensions
from dsvpn.nhrp.limits import MAX_CIES, MAX_NEGATIVE_RESOLUTIONS, MAX_PENDING_RESOLUTIONS
from dsvpn.nhrp.nat_ports import nat_port
from dsvpn.nhrp.shortcut import MIN_PREFIX_LENGTH, host_prefix, network
from dsvpn.nhrp.snapshot import ResolutionStatus
from dsvpn.nhrp.transit import Transit
from dsvpn.nhrp.vetting import answer_is_own
from dsvpn.wire.nhrp import (
    FLAG_AUTHORITATIVE,
    FLAG_NAT,
    FLAG_ROUTER,
    FLAG_SOURCE_STABLE,
    ErrorCode,
    NhrpMessage,
    PacketType,
)
from dsvpn.wire.nhrp_cie import UNIQUE_PREFIX_LENGTH, Cie, CieCode, nbma_family, protocol_type

#: Seconds between the requests for one address: 1, 2, 4, then 7 each.
RETRY_DELAYS = (1.0, 2.0, 4.0, 7.0)
#: An address that is not resolved after this many seconds is given up.
GIVE_UP = 30.0
#: An address that was refused or given up is not asked again for this many seconds.
NEGATIVE_TIME = 5.0

_NO_BINDING = (CieCode.NO_BINDING, CieCode.NO_BINDING_MISNUMBERED)


@dataclass(slots=True)
class Resolution:
    """A Resolution Request that is out."""

    target: Address
    request_id: int
    give_up_at: float
    attempts: int = 0


class ResolutionClient:
    """Asks for addresses, and turns the answers into mappings and shortcuts."""

    def __init__(self, context: NhrpContext, transit: Transit) -> None:
        self._context = context
        self._transit = transit
        self._pending: dict[Address, Resolution] = {}
        #: Target -> (until, reason).
        self._negative: dict[Address, tuple[float, str]] = {}

    def is_pending(self, target: Address) -> bool:
        """Whether a request for an address is out."""
        return target in self._pending

    def resolve(self, target: Address, now: float) -> None:
        """Ask for an address unless that is under way or was refused a moment ago."""
        context = self._context
        if target in self._pending:
            return
        if target in self._negative:
            context.count("resolution.negative_hit")
            return
        if not is_unicast(target) or context.is_own(target) or context.own_address(target) is None:
            return
        if self._server_peer(target) is None:
            # No NHS with a path: nothing would be sent, and the next packet asks again.
            context.count("resolution.no_server")
            return
        if len(self._pending) >= MAX_PENDING_RESOLUTIONS:
            context.count("drop.resolutions_full")
            return
        resolution = Resolution(target, context.request_id(), now + GIVE_UP)
        self._pending[target] = resolution
        self._attempt(resolution, now)

    def receive_reply(self, message: NhrpMessage, data: bytes, peer: int | None, now: float) -> None:
        """A Resolution Reply for this gateway. Only one that carries the id of a request that is out counts."""
        context = self._context
        target = message.destination_protocol
        resolution = self._pending.get(target) if target is not None else None
        if resolution is None or resolution.request_id != message.request_id or target is None:
            context.count("drop.unexpected_reply")
            return
        if peer is None:
            return
        # Whom the traffic goes by may say where it is to go: a hub below this one answers for the spokes behind it.
        if peer != self._server_peer(target) and not answer_is_own(context, message, peer, now):
            return
        self._end(resolution)
        good = [cie for cie in message.cies[:MAX_CIES] if cie.code == CieCode.SUCCESS]
        if not good:
            code = message.cies[0].code if message.cies else None
            self._refuse(target, "no binding exists" if code in _NO_BINDING else f"refused with code {code}", now)
            return
        # The highest preference is best (RFC 2332 section 5.2.0.1).
        cie = max(good, key=lambda entry: entry.preference)
        why = self._accept(message, cie, target, peer, now)
        if why is not None:
            context.count("drop.invalid_reply")
            context.send_error(ErrorCode.INVALID_RESOLUTION_REPLY, 0, message, data, peer, now)
            self._refuse(target, why, now)

    def receive_error(self, request_id: int, reason: str, now: float) -> bool:
        """An Error Indication about a request with this id; False when it is none of ours."""
        for resolution in self._pending.values():
            if resolution.request_id == request_id:
                self._end(resolution)
                self._refuse(resolution.target, reason, now)
                return True
        return False

    def clear(self) -> None:
        """Forget what is out and what was refused."""
        for resolution in list(self._pending.values()):
            self._end(resolution)
        for target in list(self._negative):
            self._forget_negative(target)

    def status(self, now: float) -> tuple[ResolutionStatus, ...]:
        """All of it for people."""
        pending = [
            ResolutionStatus(r.target, "pending", r.attempts, max(r.give_up_at - now, 0.0), "")
            for r in self._pending.values()
        ]
        negative = [
            ResolutionStatus(target, "negative", 0, max(until - now, 0.0), reason)
            for target, (until, reason) in self._negative.items()
        ]
        return tuple(pending + negative)

    def _server_peer(self, target: Address) -> int | None:
        """Whom to ask: the gateway that the traffic goes by, a hub or one below this hub, else the best NHS; never the
        target itself."""
        context = self._context
        route = context.route_lookup(target)
        if route is not None and route.tunnel and route.next_hop is not None:
            mapping = context.cache.get(route.next_hop)
            if mapping is not None and mapping.kind in ("nhs", "static", "registered"):
                peer = context.peer_of(mapping)
                # A route by an NHS that is silent leads to nobody: the best of the others may know.
                if peer is not None and (mapping.kind != "nhs" or mapping.protocol in context.nhs_up):
                    return peer
        return self._transit.nhs_peer(target.version)

    def _attempt(self, resolution: Resolution, now: float) -> None:
        """Send the request, each time with the same id (RFC 2332 section 5.2.1)."""
        context = self._context
        if now >= resolution.give_up_at:
            self._end(resolution)
            self._refuse(resolution.target, f"no answer within {GIVE_UP:.0f} s", now)
            return
        delay = RETRY_DELAYS[min(resolution.attempts, len(RETRY_DELAYS) - 1)]
        resolution.attempts += 1
        deadline = min(now + delay, resolution.give_up_at)
        context.timers.set(("resolution", resolution.target), deadline, lambda later: self._attempt(resolution, later))
        peer = self._server_peer(resolution.target)
        own = context.own_address(resolution.target)
        if peer is None or own is None:
            return
        family = context.family(context.peers.nbma(peer))
        nat = []
        public = context.nat_address
        if public is not None and context.own_nbma(family) is not None and nbma_family(public) == family:
            nat.append(Cie(prefix_length=own.max_prefixlen, nbma=public, protocol=own))
        message = NhrpMessage(
            PacketType.RESOLUTION_REQUEST,
            family,
            protocol_type(own),
            HOP_COUNT,
            FLAG_ROUTER | FLAG_AUTHORITATIVE | FLAG_SOURCE_STABLE | FLAG_NAT,
            resolution.request_id,
            context.own_nbma(family),
            own,
            resolution.target,
            [Cie(prefix_length=own.max_prefixlen, holding_time=context.config.holding_time)],
            request_extensions(nat),
        )
        context.send(message, peer)

    def _end(self, resolution: Resolution) -> None:
        self._pending.pop(resolution.target, None)
        self._context.timers.cancel(("resolution", resolution.target))

    def _refuse(self, target: Address, reason: str, now: float) -> None:
        """There is no answer: a shortcut that was to be renewed goes, and the address rests for a while."""
        context = self._context
        context.count("resolution.refused")
        for shortcut in context.shortcuts:
            if shortcut.target == target:
                context.shortcuts.remove(shortcut.prefix, f"not renewed: {reason}")
        self._rest(target, reason, NEGATIVE_TIME, now)

    def _rest(self, target: Address, reason: str, seconds: float, now: float) -> None:
        if target not in self._negative and len(self._negative) >= MAX_NEGATIVE_RESOLUTIONS:
            self._forget_negative(next(iter(self._negative)))
        self._negative[target] = (now + seconds, reason)
        self._context.timers.set(("negative", target), now + seconds, lambda later: self._forget_negative(target))

    def _forget_negative(self, target: Address) -> None:
        self._negative.pop(target, None)
        self._context.timers.cancel(("negative", target))

    def _accept(self, message: NhrpMessage, cie: Cie, target: Address, peer: int, now: float) -> str | None:
        """Store an answer, or say what is wrong with it."""
        context = self._context
        # Without a protocol address the entry is about the destination itself (RFC 2332 section 5.2.0.1).
        responder = cie.protocol if cie.protocol is not None else target
        prefix = self._prefix(cie, target)
        if prefix is None:
            return f"prefix length {cie.prefix_length} in the answer"
        if not is_unicast(responder) or not is_unicast(cie.nbma) or cie.nbma is None:
            return "no NBMA address in the answer"
        if context.is_own(responder):
            return f"{target} was answered with this gateway's own address"
        if cie.holding_time == 0:
            return "holding time 0 in the answer"
        route = context.route_lookup(target)
        known = context.cache.get(responder)
        if known is not None and known.kind in ("nhs", "static") and route is not None and route.next_hop == responder:
            # The gateway that the traffic goes by already is the one that has the destination.
            self._rest(target, f"{responder} is the way already", float(cie.holding_time), now)
            return None
        nbma = nat_nbma(message.extensions, responder) or cie.nbma
        # Only an NHS knows at which port a NAT box shows a client.
        port = nat_port(message.extensions, responder) if context.is_nhs_peer(peer) and nbma != cie.nbma else None
        mapping = Mapping(responder, nbma, cie.nbma, "resolved", None, now + cie.holding_time, port=port)
        if not context.cache.put(mapping) and known is None:
            context.count("drop.mappings_full")
            return None
        if not context.shortcuts.add(prefix, responder, target, float(cie.holding_time), now):
            context.count("drop.shortcuts_full")
        return None

    def _prefix(self, cie: Cie, target: Address) -> Prefix | None:
        """The prefix that an answer may take over, None when its length is nonsense.

        An answer that would also take over this gateway's or its NHSs' own addresses, or more than a sensible part
        of the address space, is believed for the asked address alone.
        """
        context = self._context
        length = cie.prefix_length
        if length in (0, UNIQUE_PREFIX_LENGTH):
            length = target.max_prefixlen
        if length > target.max_prefixlen:
            return None
        prefix = network(target, length)
        precious = [own.ip for own in context.config.protocol_addresses] + [nhs.protocol for nhs in context.config.nhs]
        if length < MIN_PREFIX_LENGTH[target.version] or any(address in prefix for address in precious):
            return host_prefix(target)
        return prefix
