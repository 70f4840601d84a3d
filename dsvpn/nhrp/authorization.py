"""Who may claim what: the identity that IKE proved decides for which protocol addresses a peer may speak.

NHRP itself believes whoever asks: RFC 2332 section 5.3.4 leaves it to authentication, and a shared word is no identity.
Here every packet comes out of one peer's SA, so it is known whose it is.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsvpn.addresses import Address, Prefix
from dsvpn.nhrp.cache import Mapping
from dsvpn.nhrp.limits import MAX_HELD
from dsvpn.nhrp.shortcut import host_prefix, network

if TYPE_CHECKING:
    from dsvpn.nhrp.context import NhrpContext


@dataclass(frozen=True, slots=True)
class Claim:
    """What a peer has proved and may claim.

    `identity`: two peers with the same one are the same. `addresses`: the protocol addresses that it may register,
    None for any that is free. `prefixes`: what it may answer for and purge, None for what is routed to it.
    `server`: False when it is not the gateway that the configuration names at its NBMA address.
    """

    identity: str
    addresses: tuple[Prefix, ...] | None = None
    prefixes: tuple[Prefix, ...] | None = None
    server: bool = True


class Authorization:
    """The claims of the peers of a tunnel, and which identity holds which protocol address."""

    def __init__(self, context: NhrpContext) -> None:
        self._context = context
        self._claims: dict[int, Claim] = {}
        #: Protocol address -> (identity, until), the one that was refreshed longest ago first.
        self._held: OrderedDict[Address, tuple[str, float]] = OrderedDict()

    def set_claim(self, peer: int, claim: Claim | None) -> None:
        """A peer has proved an identity, None for plain GRE where there is none."""
        if claim is None:
            self._claims.pop(peer, None)
        else:
            self._claims[peer] = claim

    def identity(self, peer: int | None) -> str:
        """Who a peer is, for people: its identity, else its NBMA address."""
        claim = self._claims.get(peer) if peer is not None else None
        if claim is not None:
            return claim.identity
        nbma = self._context.peers.nbma(peer) if peer is not None else None
        return str(nbma) if nbma is not None else "a stranger"

    def names_address(self, peer: int | None, protocol: Address) -> bool:
        """Whether the configuration or its certificate gives a peer exactly this protocol address or one around it."""
        claim = self._claims.get(peer) if peer is not None else None
        return claim is not None and claim.addresses is not None and _within(protocol, claim.addresses)

    def refusal(self, peer: int | None, protocol: Address) -> str:
        """Why a peer may not register a protocol address at all; empty when it may."""
        claim = self._claims.get(peer) if peer is not None else None
        if claim is not None and claim.addresses is not None and not _within(protocol, claim.addresses):
            return f"it may claim {_listed(claim.addresses)}"
        return ""

    def holder(self, protocol: Address, now: float) -> str | None:
        """The identity that holds a protocol address."""
        held = self._held.get(protocol)
        return held[0] if held is not None and held[1] > now else None

    def held_by_another(self, peer: int | None, protocol: Address, now: float) -> str:
        """Why a peer may not register a protocol address at the moment; empty when it may.

        An identity keeps its address until its holding time is over, even while its SA is down: nobody can take an
        address by cutting off the one that has it.
        """
        claim = self._claims.get(peer) if peer is not None else None
        held = self._held.get(protocol)
        if held is None or held[1] <= now or claim is None or held[0] == claim.identity:
            return ""
        return f"{held[0]} holds it for another {held[1] - now:.0f} s"

    def hold(self, peer: int | None, protocol: Address, until: float) -> None:
        """A peer has registered a protocol address."""
        claim = self._claims.get(peer) if peer is not None else None
        if claim is None:
            return
        self._held[protocol] = (claim.identity, until)
        self._held.move_to_end(protocol)
        if len(self._held) > MAX_HELD:
            self._held.popitem(last=False)

    def release(self, protocol: Address | None = None) -> None:
        """The holder has given an address back; None: forget who holds what."""
        if protocol is None:
            self._held.clear()
        else:
            self._held.pop(protocol, None)

    def trusts(self, peer: int | None) -> bool:
        """Whether a peer speaks for others: it is a configured NHS, or a gateway with a static mapping."""
        return self._context.is_nhs_peer(peer)

    def speaks_for(self, peer: int | None, protocol: Address, now: float) -> bool:
        """Whether a peer may speak in the name of a protocol address: it has it, or what is sent there goes to it."""
        context = self._context
        if peer is None:
            return False
        if self.trusts(peer):
            return True
        claim = self._claims.get(peer)
        if claim is not None and claim.prefixes is not None:
            return _within(protocol, claim.prefixes)
        mapping = context.cache.get(protocol)
        if mapping is not None:
            if self._is_of(mapping, peer):
                return True
            # A direct path to a client of a hub below does not keep that hub from passing on what the client says.
            if mapping.kind not in ("resolved", "observed"):
                return False
        route = context.route_lookup(protocol)
        if route is not None and route.tunnel and route.next_hop is not None:
            mapping = context.cache.get(route.next_hop)
            return mapping is not None and self._is_of(mapping, peer)
        holder = self.holder(protocol, now)
        return holder is None or (claim is not None and holder == claim.identity)

    def routed_to(self, peer: int, protocol: Address) -> Prefix | None:
        """The kernel's route for a protocol address, shortcuts left out, if its next hop is one of the peer's."""
        route = self._context.route_lookup(protocol)
        if route is None or not route.tunnel or route.next_hop is None:
            return None
        mapping = self._context.cache.get(route.next_hop)
        return route.prefix if mapping is not None and self._is_of(mapping, peer) else None

    def answerable(self, peer: int, destination: Address, length: int, onward: int | None) -> Prefix | None:
        """The part of `destination`/`length` that a peer may answer for; None when it is not even the destination.

        `onward` is where requests for the destination are passed on to. Where nothing is configured, a peer is believed
        for what is routed to it: the prefix of the route that made the question go there.
        """
        if not 0 <= length <= destination.max_prefixlen:
            length = destination.max_prefixlen
        claim = self._claims.get(peer)
        if claim is not None and claim.prefixes is not None:
            own = [prefix for prefix in claim.prefixes if destination in prefix]
            if not own:
                return None
            return network(destination, max(length, min(prefix.prefixlen for prefix in own)))
        if onward != peer:
            return None
        if self._context.cache.get(destination) is not None:
            return host_prefix(destination)
        route = self._context.route_lookup(destination)
        if route is None or not route.tunnel:
            return host_prefix(destination)
        return network(destination, max(length, route.prefix.prefixlen))

    def _is_of(self, mapping: Mapping, peer: int) -> bool:
        if mapping.peer is not None:
            return mapping.peer == peer
        peers = self._context.peers
        if mapping.kind in ("nhs", "static") and not peers.is_server(peer):
            return False
        return mapping.nbma == peers.nbma(peer)


def _within(address: Address, prefixes: tuple[Prefix, ...]) -> bool:
    return any(address in prefix for prefix in prefixes)


def _listed(prefixes: tuple[Prefix, ...]) -> str:
    if not prefixes:
        return "nothing"
    shown = [str(p.network_address) if p.prefixlen == p.max_prefixlen else str(p) for p in prefixes[:4]]
    return ", ".join(shown) + (" and more" if len(prefixes) > 4 else "")
