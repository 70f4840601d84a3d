"""Half-open IKE SAs: what strangers can make us remember (RFC 7296 section 2.6)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from dsvpn.addresses import Endpoint
from dsvpn.ike.state import IkeState

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa

#: The most that are remembered. The oldest makes room: an honest peer needs its place for one round trip.
MAX_HALF_OPEN: Final = 2000

_Key = tuple[Endpoint, bytes]


class HalfOpenTable:
    """IKE SAs between IKE_SA_INIT and IKE_AUTH, found by the request that made them."""

    def __init__(self) -> None:
        self._by_request: dict[_Key, IkeSa] = {}
        self._keys: dict[IkeSa, _Key] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, remote: Endpoint, request: bytes) -> IkeSa | None:
        """The IKE SA that the same request made before."""
        return self._by_request.get((remote, _digest(request)))

    def add(self, sa: IkeSa, remote: Endpoint, request: bytes, now: float) -> None:
        """Remember an IKE SA, and forget the oldest if there are too many."""
        if len(self._keys) >= MAX_HALF_OPEN:
            oldest = next(iter(self._keys))
            self.discard(oldest)
            if oldest.state in (IkeState.HALF_OPEN, IkeState.DEAD):
                oldest.association.remove_ike_sa(oldest, now)
        key = (remote, _digest(request))
        self._by_request[key] = sa
        self._keys[sa] = key

    def discard(self, sa: IkeSa) -> None:
        """It is established or gone."""
        key = self._keys.pop(sa, None)
        if key is not None:
            del self._by_request[key]


def _digest(request: bytes) -> bytes:
    return hashlib.sha256(request).digest()
