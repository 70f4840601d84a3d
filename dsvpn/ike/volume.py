"""Lifetimes of CHILD_SAs by what they carry: octets, packets and sequence numbers (RFC 4301 section 4.4.2.1).

A limit counts for each direction by itself, as the kernel's XFRM counts it. Where it is reached the CHILD_SA
seals nothing any more; the rekey comes earlier, by as much as with the lifetime in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Without extended sequence numbers the last packet of an SA is this one (RFC 4303 section 3.3.3).
LAST_SEQUENCE: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Carried:
    """What a CHILD_SA has carried since it was made. `packets_out`, `bytes_out` and `sequence`, the sequence number
    sent last, are None while another CHILD_SA seals."""

    packets_in: int
    bytes_in: int
    packets_out: int | None = None
    bytes_out: int | None = None
    sequence: int | None = None


class Volume:
    """The limits of one CHILD_SA and how far it is. A limit of 0 is none. `soft` is the part of a limit, 0 to 1, at
    which the CHILD_SA is rekeyed."""

    __slots__ = (
        "_bytes",
        "_packets",
        "_rekey_claimed",
        "_sequence",
        "bytes_in",
        "bytes_out",
        "packets_in",
        "packets_out",
        "sequence",
        "soft",
    )

    def __init__(self, bytes_limit: int, packets_limit: int, esn: bool, soft: float) -> None:
        self._bytes = bytes_limit
        self._packets = packets_limit
        # An SA whose numbers are used up must not send (RFC 4303 section 3.3.3), nor does the peer's.
        self._sequence = 0 if esn else LAST_SEQUENCE
        self.soft = soft
        self._rekey_claimed = False
        self.packets_in = self.bytes_in = self.packets_out = self.bytes_out = self.sequence = 0

    @property
    def used(self) -> float:
        """The part of the nearest limit that is used: 1 and more means that it is reached."""
        used = 0.0
        if self._bytes:
            used = max(self.bytes_in, self.bytes_out) / self._bytes
        if self._packets:
            used = max(used, max(self.packets_in, self.packets_out) / self._packets)
        if self._sequence:
            used = max(used, max(self.packets_in, self.sequence) / self._sequence)
        return used

    def claim_rekey(self) -> bool:
        """Whether the soft limit is reached: True once, for a rekey that fails is tried again by itself."""
        if self._rekey_claimed or self.used < self.soft:
            return False
        self._rekey_claimed = True
        return True

    @property
    def is_over(self) -> bool:
        """Whether the hard limit is reached."""
        return self.used >= 1.0

    def note(self, carried: Carried) -> tuple[bool, bool]:
        """Take new totals; gives whether something came in and whether something went out since the last ones."""
        came = carried.packets_in > self.packets_in
        self.packets_in, self.bytes_in = carried.packets_in, carried.bytes_in
        if carried.packets_out is None:
            return came, False
        went = carried.packets_out > self.packets_out
        self.packets_out, self.bytes_out = carried.packets_out, carried.bytes_out or 0
        self.sequence = carried.sequence or 0
        return came, went
