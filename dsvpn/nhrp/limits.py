"""The bounds of what strangers and peers can make an NHRP engine do or remember."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

#: Mappings that registration may create, in all and for one peer. A spoke registers one address per family.
MAX_REGISTRATIONS = 65536
MAX_REGISTRATIONS_PER_PEER = 16
#: Mappings learned by resolution or from the source of requests.
MAX_LEARNED_MAPPINGS = 16384
MAX_SHORTCUTS = 16384
#: Addresses that are being resolved, and addresses that could not be.
MAX_PENDING_RESOLUTIONS = 1024
MAX_NEGATIVE_RESOLUTIONS = 4096
#: Answers given as egress and answers passed on as NHS, remembered so that they can be purged.
MAX_ANSWERED = 16384
MAX_RELAYED = 65536
MAX_PREFIXES_PER_RELAY = 16
#: Purge Requests that wait for their reply.
MAX_PENDING_PURGES = 4096
#: Protocol addresses whose holder is known, and denied claims that are remembered for people.
MAX_HELD = MAX_REGISTRATIONS
MAX_DENIALS = 64
#: CIEs of one packet that are looked at.
MAX_CIES = 64
#: Replies that wait for the owner to make an adjacency for a stranger's NBMA address, and how long, in seconds.
MAX_PARKED = 1024
PARKED_TIME = 5.0

#: Packets per second that one peer may have processed, and the burst.
PEER_RATE = 500.0
PEER_BURST = 1000.0
#: Of these, what it may have processed however much others send: enough to register, purge and ask for a path a second.
SHARE_RATE = 4.0
SHARE_BURST = 16.0
#: What all peers together may have processed beyond their shares: an engine takes some 15,000 packets a second.
COMMON_RATE = 3000.0
COMMON_BURST = 6000.0
#: All packets together that come without an adjacency (plain GRE from unknown addresses).
STRANGER_RATE = 100.0
STRANGER_BURST = 200.0
#: Error Indications per second to one peer, and the burst.
ERROR_RATE = 1.0
ERROR_BURST = 4.0
#: Seconds between two Traffic Indications about one source and destination, and the bound of the memory of them.
REDIRECT_INTERVAL = 1.0
MAX_REDIRECT_PAIRS = 8192
#: Traffic Indications per second to one peer, and the burst.
REDIRECT_RATE = 100.0
REDIRECT_BURST = 200.0


class RateLimiter:
    """Token buckets, one per key, at most `capacity` of them (the least recently used bucket is forgotten)."""

    def __init__(self, rate: float, burst: float, capacity: int) -> None:
        self._rate = rate
        self._burst = burst
        self._capacity = capacity
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def allow(self, key: Hashable, now: float) -> bool:
        """Take a token from the bucket of `key`; False when it is empty."""
        tokens, since = self._buckets.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + max(now - since, 0.0) * self._rate)
        allowed = tokens >= 1.0
        self._buckets[key] = (tokens - 1.0 if allowed else tokens, now)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return allowed

    def forget(self, key: Hashable) -> None:
        """Drop the bucket of a key that is gone."""
        self._buckets.pop(key, None)

    def __len__(self) -> int:
        return len(self._buckets)


class FairLimiter:
    """Each key has a share that nobody can take from it; beyond that all draw on one bucket, each up to a limit.

    So peers that flood, however many, slow down each other, and not those that have little to say.
    """

    def __init__(self, share: tuple[float, float], common: tuple[float, float], each: tuple[float, float], keys: int):
        """Rates per second with their bursts; `each` is what one key may have in all."""
        self._shares = RateLimiter(*share, keys)
        self._common = RateLimiter(*common, 1)
        self._each = RateLimiter(each[0] - share[0], each[1] - share[1], keys)

    def allow(self, key: Hashable, now: float) -> bool:
        """Whether `key` may have one more."""
        return self._shares.allow(key, now) or (self._each.allow(key, now) and self._common.allow(None, now))

    def forget(self, key: Hashable) -> None:
        """Drop the buckets of a key that is gone."""
        self._shares.forget(key)
        self._each.forget(key)

    def __len__(self) -> int:
        return max(len(self._shares), len(self._each))
