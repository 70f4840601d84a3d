"""Key Exchange payload. RFC 7296 section 3.4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsvpn.wire.cursor import Reader
from dsvpn.wire.ikev2.constants import PayloadType


@dataclass(frozen=True, slots=True)
class KeyExchange:
    """KE payload: the key exchange method (`group`, a KeyExchangeId) and the sender's public value."""

    payload_type: ClassVar[int] = PayloadType.KE

    group: int
    data: bytes

    @classmethod
    def decode(cls, reader: Reader) -> KeyExchange:
        """Read the body of a KE payload."""
        group = reader.u16("key exchange group")
        reader.take(2, "KE payload's reserved octets")
        return cls(group, reader.rest())

    def encode(self) -> bytes:
        """The payload's body."""
        return self.group.to_bytes(2, "big") + b"\0\0" + self.data
