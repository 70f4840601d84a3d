"""The IKE header. RFC 7296 section 3.1."""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct

from dsvpn.errors import DecodeError
from dsvpn.wire.cursor import Reader
from dsvpn.wire.ikev2.constants import Flag

#: Octets of the header.
HEADER_LENGTH = 28
#: Octets of an IKE SPI.
SPI_LENGTH = 8
#: The responder SPI of the first message.
ZERO_SPI = bytes(SPI_LENGTH)
#: Version 2.0: major version in the high four bits, minor in the low four.
VERSION = 0x20

_HEADER_TAIL = Struct("!BBBBII")
_KNOWN_FLAGS = Flag.INITIATOR | Flag.VERSION | Flag.RESPONSE


@dataclass(frozen=True, slots=True)
class Header:
    """The IKE header.

    SPIs are 8 octets each. `next_payload` and `length` (octets of the whole message) are what a decoded header
    said; `encode` takes them as arguments, and they take no part in comparison.
    """

    initiator_spi: bytes
    responder_spi: bytes
    exchange_type: int
    flags: int
    message_id: int
    version: int = VERSION
    next_payload: int = field(default=0, compare=False)
    length: int = field(default=0, compare=False)

    @property
    def from_initiator(self) -> bool:
        """The sender is the original initiator of the IKE SA (I flag)."""
        return bool(self.flags & Flag.INITIATOR)

    @property
    def is_response(self) -> bool:
        """The message answers a request (R flag)."""
        return bool(self.flags & Flag.RESPONSE)

    @property
    def major_version(self) -> int:
        """The major version of the sender."""
        return self.version >> 4

    @classmethod
    def decode(cls, reader: Reader) -> Header:
        """Read a header, of any version: a receiver answers a higher major version (RFC 7296 section 2.5)."""
        initiator_spi = reader.take(SPI_LENGTH, "initiator SPI")
        responder_spi = reader.take(SPI_LENGTH, "responder SPI")
        next_payload = reader.u8("next payload")
        version = reader.u8("version")
        exchange_type = reader.u8("exchange type")
        # The other bits MUST be ignored on receipt (RFC 7296 section 3.1).
        flags = reader.u8("flags") & _KNOWN_FLAGS
        message_id = reader.u32("message id")
        at = reader.offset
        length = reader.u32("length")
        if length < HEADER_LENGTH:
            raise DecodeError(f"IKE length {length} below the header's {HEADER_LENGTH}", at)
        return cls(initiator_spi, responder_spi, exchange_type, flags, message_id, version, next_payload, length)

    def encode(self, next_payload: int, length: int) -> bytes:
        """The 28 octets. `length` counts the whole message, this header included."""
        tail = _HEADER_TAIL.pack(next_payload, self.version, self.exchange_type, self.flags, self.message_id, length)
        return self.initiator_spi + self.responder_spi + tail
