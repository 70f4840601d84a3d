"""Half-open IKE SAs: what strangers can make us remember (RFC 7296 section 2.6)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsvpn.addresses import Address, Endpoint
from dsvpn.errors import MisuseError
from dsvpn.ike.state import IkeState

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa

_Key = tuple[Endpoint, bytes]


@dataclass(frozen=True, slots=True)
class HalfOpenLimits:
    """How many half-open IKE SAs there may be, in total and per remote address, and from how many on an IKE_SA_INIT has
    to bring a cookie. A threshold of 0 asks for one always."""

    total: int = 2000
    per_address: int = 100
    cookie_threshold: int = 100
    cookie_threshold_per_address: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.per_address <= self.total or not 0 <= self.cookie_threshold <= self.total:
            raise MisuseError(f"half-open limits {self} have no meaning: thresholds and per_address are up to total")
        if not 0 <= self.cookie_threshold_per_address <= self.per_address:
            raise MisuseError(f"half-open limits {self} have no meaning: the threshold is beyond per_address")


class HalfOpenTable:
    """IKE SAs between IKE_SA_INIT and IKE_AUTH, found by the request that made them.

    `evicted` counts those that had to make room.
    """

    def __init__(self, limits: HalfOpenLimits) -> None:
        self.limits = limits
        self.evicted = 0
        self._pressed = False
        self._by_request: dict[_Key, IkeSa] = {}
        self._keys: dict[IkeSa, _Key] = {}
        self._per_address: dict[Address, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, remote: Endpoint, request: bytes) -> IkeSa | None:
        """The IKE SA that the same request made before."""
        return self._by_request.get((remote, _digest(request)))

    def demands_cookie(self, address: Address) -> bool:
        """Whether an IKE_SA_INIT from `address` must prove that its sender is there."""
        limits = self.limits
        return (
            len(self._keys) >= limits.cookie_threshold
            or self._per_address.get(address, 0) >= limits.cookie_threshold_per_address
        )

    def is_pressed(self) -> bool:
        """Whether every IKE_SA_INIT must bring a cookie, wherever it comes from. Once it must, this holds until half of
        the threshold has gone, so that it does not change with every handshake."""
        threshold = self.limits.cookie_threshold
        self._pressed = len(self._keys) >= (threshold // 2 + 1 if self._pressed and threshold else threshold)
        return self._pressed

    def has_from(self, address: Address) -> bool:
        """Whether there are any from `address`."""
        return address in self._per_address

    def is_full_for(self, address: Address) -> bool:
        """Whether `address` has all it may have."""
        return self._per_address.get(address, 0) >= self.limits.per_address

    def add(self, sa: IkeSa, remote: Endpoint, request: bytes, now: float) -> None:
        """Remember an IKE SA, and forget the oldest if there are too many.

        An honest peer needs its place for a few round trips. Where the limit bites, every sender has shown by a cookie
        that it is at its address, and no address has more than its share.
        """
        if len(self._keys) >= self.limits.total:
            oldest = next(iter(self._keys))
            self.discard(oldest)
            self.evicted += 1
            if oldest.state in (IkeState.HALF_OPEN, IkeState.DEAD):
                oldest.association.remove_ike_sa(oldest, now)
        key = (remote, _digest(request))
        self._by_request[key] = sa
        self._keys[sa] = key
        self._per_address[remote.address] = self._per_address.get(remote.address, 0) + 1

    def discard(self, sa: IkeSa) -> None:
        """It is established or gone."""
        key = self._keys.pop(sa, None)
        if key is None:
            return
        del self._by_request[key]
        address = key[0].address
        left = self._per_address[address] - 1
        if left:
            self._per_address[address] = left
        else:
            del self._per_address[address]


def _digest(request: bytes) -> bytes:
    return hashlib.sha256(request).digest()
