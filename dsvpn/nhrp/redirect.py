"""Traffic Indications: the hub tells a spoke that its traffic leaves to another spoke (Cisco's packet type 8)."""

from __future__ import annotations

from collections import OrderedDict

from dsvpn.addresses import Address
from dsvpn.errors import DecodeError
from dsvpn.nhrp.context import ONE_HOP, NhrpContext, is_unicast
from dsvpn.nhrp.limits import MAX_REDIRECT_PAIRS, REDIRECT_BURST, REDIRECT_INTERVAL, REDIRECT_RATE, RateLimiter
from dsvpn.nhrp.resolution import ResolutionClient
from dsvpn.wire.nhrp import TrafficIndication, read_ip_addresses
from dsvpn.wire.nhrp_cie import protocol_type

#: Octets of the data packet that an indication quotes, as FRR does.
QUOTE = 128
_PEERS = 65536


class Redirects:
    """Sends indications as hub, follows them as spoke."""

    def __init__(self, context: NhrpContext, resolutions: ResolutionClient) -> None:
        self._context = context
        self._resolutions = resolutions
        self._sent: OrderedDict[tuple[Address, Address], float] = OrderedDict()
        self._peers = RateLimiter(REDIRECT_RATE, REDIRECT_BURST, _PEERS)

    def send(self, head: bytes, peer: int, now: float) -> None:
        """Tell `peer` that the packet that starts with `head` would better go another way. Limited per pair."""
        context = self._context
        if not context.config.redirect:
            context.count("redirect.off")
            return
        try:
            source, destination = read_ip_addresses(head)
        except DecodeError:
            context.count("redirect.malformed")
            return
        own = context.own_address(source)
        if own is None or not is_unicast(source) or not is_unicast(destination):
            context.count("redirect.not_unicast")
            return
        pair = (source, destination)
        last = self._sent.pop(pair, None)
        if last is not None and now - last < REDIRECT_INTERVAL:
            self._sent[pair] = last
            context.count("redirect.limited")
            return
        if not self._peers.allow(peer, now):
            context.count("redirect.limited")
            return
        self._sent[pair] = now
        if len(self._sent) > MAX_REDIRECT_PAIRS:
            self._sent.popitem(last=False)
        family = context.family()
        indication = TrafficIndication(
            family, protocol_type(own), ONE_HOP, context.own_nbma(family), own, source, head[:QUOTE]
        )
        context.send(indication, peer)

    def receive(self, indication: TrafficIndication, now: float) -> None:
        """Resolve the destination of the quoted packet, if this gateway sends it through the tunnel by a hub."""
        context = self._context
        if not context.config.shortcut:
            context.count("drop.shortcut_off")
            return
        try:
            _, destination = read_ip_addresses(indication.packet)
        except DecodeError:
            context.count("drop.malformed")
            return
        route = context.route_lookup(destination)
        if route is None or not route.tunnel or route.local:
            context.count("drop.not_our_route")
            return
        if context.shortcuts.covering(destination) is not None:
            # Packets that were on their way when the shortcut came up.
            return
        self._resolutions.resolve(destination, now)
