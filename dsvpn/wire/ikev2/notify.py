"""Notify payload. RFC 7296 section 3.10."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar

from dsvpn.wire.cursor import Reader
from dsvpn.wire.ikev2.constants import FIRST_STATUS_NOTIFY, NotifyType, PayloadType, name_of

_NOTIFY = Struct("!BBH")


@dataclass(frozen=True, slots=True)
class Notify:
    """N payload. `spi` and `protocol` name the SA that it concerns; both are empty/0 when it concerns the IKE SA."""

    payload_type: ClassVar[int] = PayloadType.NOTIFY

    type: int
    data: bytes = b""
    protocol: int = 0
    spi: bytes = b""

    @property
    def is_error(self) -> bool:
        """Error types end the exchange, status types accompany it."""
        return self.type < FIRST_STATUS_NOTIFY

    @property
    def name(self) -> str:
        """The registered name of the type, or its number."""
        return name_of(NotifyType, self.type)

    @classmethod
    def decode(cls, reader: Reader) -> Notify:
        """Read the body of an N payload."""
        protocol = reader.u8("notify protocol id")
        spi_size = reader.u8("notify SPI size")
        kind = reader.u16("notify message type")
        spi = reader.take(spi_size, "notify SPI")
        return cls(kind, reader.rest(), protocol, spi)

    def encode(self) -> bytes:
        """The payload's body."""
        return _NOTIFY.pack(self.protocol, len(self.spi), self.type) + self.spi + self.data
