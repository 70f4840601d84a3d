"""Authentication payload. RFC 7296 section 3.8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsvpn.wire.cursor import Reader
from dsvpn.wire.ikev2.constants import PayloadType


@dataclass(frozen=True, slots=True)
class Authentication:
    """AUTH payload: an AuthMethod and the octets that prove it."""

    payload_type: ClassVar[int] = PayloadType.AUTH

    method: int
    data: bytes

    @classmethod
    def decode(cls, reader: Reader) -> Authentication:
        """Read the body of an AUTH payload."""
        method = reader.u8("auth method")
        reader.take(3, "AUTH payload's reserved octets")
        return cls(method, reader.rest())

    def encode(self) -> bytes:
        """The payload's body."""
        return bytes((self.method, 0, 0, 0)) + self.data
