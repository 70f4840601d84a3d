"""Nonce payload. RFC 7296 section 3.9."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsvpn.errors import DecodeError
from dsvpn.wire.cursor import Reader
from dsvpn.wire.ikev2.constants import PayloadType

MIN_NONCE_LENGTH = 16
MAX_NONCE_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Nonce:
    """Ni or Nr payload: 16 to 256 octets."""

    payload_type: ClassVar[int] = PayloadType.NONCE

    data: bytes

    @classmethod
    def decode(cls, reader: Reader) -> Nonce:
        """Read the body of a nonce payload."""
        length = reader.remaining()
        if not MIN_NONCE_LENGTH <= length <= MAX_NONCE_LENGTH:
            raise DecodeError(f"nonce of {length} octets, want {MIN_NONCE_LENGTH} to {MAX_NONCE_LENGTH}", reader.offset)
        return cls(reader.rest())

    def encode(self) -> bytes:
        """The payload's body."""
        return self.data
