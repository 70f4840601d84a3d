"""Reading and writing network-order fields, with errors that say what was missing and where."""

from __future__ import annotations

from dsvpn.errors import DecodeError


class Reader:
    """A cursor over one packet.

    `data` is the whole packet, so that offsets in errors count from its start; `end` bounds a nested part.
    """

    def __init__(self, data: bytes, offset: int = 0, end: int = -1) -> None:
        self.data = data
        self.offset = offset
        self.end = len(data) if end < 0 else end

    def remaining(self) -> int:
        """Octets left before `end`."""
        return self.end - self.offset

    def take(self, length: int, what: str) -> bytes:
        """The next `length` octets."""
        start = self.offset
        if length < 0 or length > self.end - start:
            raise DecodeError(f"{what} truncated: {length} octets wanted, {self.end - start} left", start)
        self.offset = start + length
        return self.data[start : self.offset]

    def rest(self) -> bytes:
        """All octets that are left."""
        start = self.offset
        self.offset = self.end
        return self.data[start : self.end]

    def u8(self, what: str) -> int:
        """One octet."""
        start = self.offset
        if start >= self.end:
            self.take(1, what)
        self.offset = start + 1
        return self.data[start]

    def u16(self, what: str) -> int:
        """Two octets, network order."""
        # Indexed rather than taken: these two read most of a packet, and a slice costs more than its octets.
        start = self.offset
        if start + 2 > self.end:
            self.take(2, what)
        self.offset = start + 2
        return self.data[start] << 8 | self.data[start + 1]

    def u32(self, what: str) -> int:
        """Four octets, network order."""
        return int.from_bytes(self.take(4, what), "big")

    def u64(self, what: str) -> int:
        """Eight octets, network order."""
        return int.from_bytes(self.take(8, what), "big")

    def sub(self, length: int, what: str) -> Reader:
        """A reader over the next `length` octets, which this one skips."""
        start = self.offset
        self.take(length, what)
        return Reader(self.data, start, start + length)

    def expect_end(self, what: str) -> None:
        """Refuse octets behind the end of `what`."""
        if self.offset != self.end:
            raise DecodeError(f"{self.end - self.offset} octets behind the end of {what}", self.offset)
