"""Calls that failed, remembered beyond the mapping that asked for them.

A direct path that cannot be made is not used, so that its mapping ends with its holding time, and the peer with it; the
next packet by the hub brings both back. Without a memory they would be called as often as new ones, again and again.
"""

from __future__ import annotations

from typing import NamedTuple

from dsvpn.addresses import Address
from dsvpn.gateway.peers import Peer

#: For how long after its mapping has ended, seconds, and of how many peers. The oldest are forgotten first.
_REMEMBERED = 900.0
_MAX_REMEMBERED = 1024

_Place = tuple[str | None, Address, Address | None]


class _Failed(NamedTuple):
    failures: int
    nat_port: int | None
    until: float


class FailedCalls:
    """How often peers that are gone were called in vain, and at which port of their boxes."""

    def __init__(self) -> None:
        #: The oldest first.
        self._failed: dict[_Place, _Failed] = {}

    def keep(self, peer: Peer, now: float) -> None:
        """The peer goes. Nothing is kept of one that was not called, or got through."""
        if not peer.failures or peer.up:
            return
        place = _place(peer)
        self._failed.pop(place, None)
        self._failed[place] = _Failed(peer.failures, peer.nat_port, now + _REMEMBERED)
        while len(self._failed) > _MAX_REMEMBERED or next(iter(self._failed.values())).until <= now:
            del self._failed[next(iter(self._failed))]

    def recall(self, peer: Peer, port: int | None, now: float) -> bool:
        """Give a peer back what is known of its place. False if that is nothing, or if it was at another `port` that it
        was called in vain."""
        failed = self._failed.pop(_place(peer), None)
        if failed is None or failed.until <= now or port not in (None, failed.nat_port):
            return False
        peer.failures, peer.nat_port = failed.failures, failed.nat_port
        return True

    def clear(self) -> None:
        """This end is elsewhere: what failed from the old place says nothing."""
        self._failed.clear()


def _place(peer: Peer) -> _Place:
    return peer.profile, peer.nbma, peer.private_nbma
