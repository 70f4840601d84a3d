"""Redirects: a hub hands its spokes on to another one, and spokes go (RFC 5685).

The peer stays the one that a mapping wants, at the NBMA address of that mapping: only its IKE SA, and with it ESP,
leads to another gateway, which has to serve the same tunnel addresses. When that one is gone, the mapping's own address
is called again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from dsvpn.addresses import Address
from dsvpn.ike import events as ike_events

if TYPE_CHECKING:
    from dsvpn.gateway.peering import Peering
    from dsvpn.gateway.peers import Peer

#: Redirects that are followed within a period, seconds: MAX_REDIRECTS and REDIRECT_LOOP_DETECT_PERIOD of RFC 5685
#: section 7.
MAX_REDIRECTS: Final = 5
LOOP_DETECT_PERIOD: Final = 300.0


class Redirects:
    """Where peers have been handed on to."""

    def __init__(self, peering: Peering) -> None:
        self._peering = peering
        self._targets: dict[Peer, tuple[Address, Address]] = {}
        self._times: dict[Peer, deque[float]] = {}
        #: IKE SAs that a redirect has ended before they were established.
        self._sent_on: set[int] = set()
        #: IKE SAs that end when the peer's next one is there.
        self._leaving: dict[Peer, list[int]] = {}

    def target(self, peer: Peer) -> Address:
        """Whom to call for a peer."""
        return self._targets[peer][0] if peer in self._targets else peer.nbma

    def origin(self, peer: Peer) -> Address | None:
        """Who sent us to `target`."""
        return self._targets[peer][1] if peer in self._targets else None

    def is_away(self, peer: Peer) -> bool:
        """Whether the peer was handed on."""
        return peer in self._targets

    def on_redirected(self, event: ike_events.IkeRedirected, now: float) -> None:
        """A gateway hands us on. One that is in a loop is left at what it has, or called again where it belongs."""
        peering = self._peering
        peer = peering.peers.by_ike_sa(event.ike_sa)
        if peer is None:
            return
        times = self._times.setdefault(peer, deque(maxlen=MAX_REDIRECTS))
        if len(times) == MAX_REDIRECTS and now < times[0] + LOOP_DETECT_PERIOD:
            self._targets.pop(peer, None)
            peering.note(
                "warning",
                "redirect_loop",
                f"{event.sender} redirects to {event.target}: not followed, that was {MAX_REDIRECTS} times in "
                f"{LOOP_DETECT_PERIOD:.0f} s",
            )
            return
        times.append(now)
        self._targets[peer] = event.target, event.sender
        peering.note("info", "redirected", f"{event.sender} redirects to {event.target}")
        if event.established:
            if peer.attempt is None:
                # Before the break: what there is carries on until the new gateway has proved itself.
                self._leaving[peer] = list(peer.ike_sas)
                peering.call(peer, now)
        else:
            self._sent_on.add(event.ike_sa)

    def on_failed(self, peer: Peer, ike_sa: int, now: float) -> None:
        """An attempt of ours has ended: by a redirect, or the next gateway is no better than none."""
        if ike_sa in self._sent_on:
            self._sent_on.discard(ike_sa)
            self._peering.call_soon(peer, now)
        else:
            self.forget(peer)

    def on_child(self, peer: Peer, ike_sa: int, now: float) -> None:
        """There is a CHILD_SA with the next gateway: the one before is left, and the registration goes along."""
        leaving = self._leaving.get(peer, [])
        if not leaving or ike_sa in leaving:
            return
        del self._leaving[peer]
        for older in leaving:
            self._peering.ike.delete(older, now, "redirected")
        for name, adjacency in peer.adjacencies.items():
            self._peering.tunnels[name].nhrp.register_with(adjacency, now)

    def forget(self, peer: Peer) -> None:
        """The peer is called where its mapping says."""
        self._targets.pop(peer, None)
        self._leaving.pop(peer, None)

    def remove(self, peer: Peer) -> None:
        """The peer is gone."""
        self.forget(peer)
        self._times.pop(peer, None)
