"""Vendor ID payload. RFC 7296 section 3.12."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsvpn.wire.cursor import Reader
from dsvpn.wire.ikev2.constants import PayloadType


@dataclass(frozen=True, slots=True)
class VendorId:
    """V payload: octets that only the vendor understands."""

    payload_type: ClassVar[int] = PayloadType.VENDOR

    data: bytes

    @classmethod
    def decode(cls, reader: Reader) -> VendorId:
        """Read the body of a V payload."""
        return cls(reader.rest())

    def encode(self) -> bytes:
        """The payload's body."""
        return self.data
