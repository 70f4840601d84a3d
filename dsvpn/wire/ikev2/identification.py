"""Identification payloads. RFC 7296 section 3.5."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dsvpn.wire.cursor import Reader
from dsvpn.wire.ikev2.constants import PayloadType


@dataclass(frozen=True, slots=True)
class IdentificationInitiator:
    """IDi payload. `encode()` is the RestOfInitIDPayload that AUTH covers (RFC 7296 section 2.15).

    `reserved` keeps the three reserved octets as they came, because the sender's AUTH covers them.
    """

    payload_type: ClassVar[int] = PayloadType.IDI

    id_type: int
    data: bytes
    reserved: bytes = field(default=b"\0\0\0", repr=False)

    @classmethod
    def decode(cls, reader: Reader) -> IdentificationInitiator:
        """Read the body of an IDi payload."""
        id_type = reader.u8("ID type")
        reserved = reader.take(3, "IDi payload's reserved octets")
        return cls(id_type, reader.rest(), reserved)

    def encode(self) -> bytes:
        """The payload's body."""
        return bytes((self.id_type,)) + self.reserved + self.data


@dataclass(frozen=True, slots=True)
class IdentificationResponder:
    """IDr payload. `encode()` is the RestOfRespIDPayload that AUTH covers (RFC 7296 section 2.15).

    `reserved` keeps the three reserved octets as they came, because the sender's AUTH covers them.
    """

    payload_type: ClassVar[int] = PayloadType.IDR

    id_type: int
    data: bytes
    reserved: bytes = field(default=b"\0\0\0", repr=False)

    @classmethod
    def decode(cls, reader: Reader) -> IdentificationResponder:
        """Read the body of an IDr payload."""
        id_type = reader.u8("ID type")
        reserved = reader.take(3, "IDr payload's reserved octets")
        return cls(id_type, reader.rest(), reserved)

    def encode(self) -> bytes:
        """The payload's body."""
        return bytes((self.id_type,)) + self.reserved + self.data
