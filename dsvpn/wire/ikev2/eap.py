"""EAP payload: one EAP packet. RFC 7296 section 3.16, RFC 3748 section 4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsvpn.errors import DecodeError
from dsvpn.wire.cursor import Reader
from dsvpn.wire.ikev2.constants import EapCode, PayloadType

_EAP_HEADER_LENGTH = 4


@dataclass(frozen=True, slots=True)
class Eap:
    """EAP payload. `type` is None in packets that have none (Success and Failure); `data` is the type data."""

    payload_type: ClassVar[int] = PayloadType.EAP

    code: int
    identifier: int
    type: int | None = None
    data: bytes = b""

    @classmethod
    def decode(cls, reader: Reader) -> Eap:
        """Read the body of an EAP payload."""
        at = reader.offset
        available = reader.remaining()
        code = reader.u8("EAP code")
        identifier = reader.u8("EAP identifier")
        length = reader.u16("EAP length")
        if length != available:
            raise DecodeError(f"EAP length {length} in a payload of {available} octets", at + 2)
        if not reader.remaining():
            # RFC 3748 section 4.1: requests and responses always carry a type.
            if code in (EapCode.REQUEST, EapCode.RESPONSE):
                raise DecodeError("EAP request or response without a type", at)
            return cls(code, identifier)
        kind = reader.u8("EAP type")
        return cls(code, identifier, kind, reader.rest())

    def encode(self) -> bytes:
        """The payload's body."""
        body = b"" if self.type is None else bytes((self.type,)) + self.data
        return bytes((self.code, self.identifier)) + (_EAP_HEADER_LENGTH + len(body)).to_bytes(2, "big") + body
