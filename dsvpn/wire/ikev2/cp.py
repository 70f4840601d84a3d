"""Configuration payload. RFC 7296 section 3.15."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsvpn.errors import DecodeError
from dsvpn.wire.cursor import Reader
from dsvpn.wire.ikev2.constants import PayloadType

#: Most attributes that one payload may hold.
MAX_CONFIGURATION_ATTRIBUTES = 256

_TYPE_MASK = 0x7FFF


@dataclass(frozen=True, slots=True)
class ConfigurationAttribute:
    """One attribute. An empty value in a request asks for any. RFC 7296 section 3.15.1."""

    type: int
    value: bytes = b""

    def encode(self) -> bytes:
        """The attribute with its own header."""
        return self.type.to_bytes(2, "big") + len(self.value).to_bytes(2, "big") + self.value


@dataclass(frozen=True, slots=True)
class Configuration:
    """CP payload: a ConfigurationType and its attributes."""

    payload_type: ClassVar[int] = PayloadType.CP

    cfg_type: int
    attributes: tuple[ConfigurationAttribute, ...] = ()

    @classmethod
    def decode(cls, reader: Reader) -> Configuration:
        """Read the body of a CP payload."""
        cfg_type = reader.u8("configuration type")
        reader.take(3, "CP payload's reserved octets")
        attributes: list[ConfigurationAttribute] = []
        while reader.remaining():
            if len(attributes) == MAX_CONFIGURATION_ATTRIBUTES:
                raise DecodeError(f"more than {MAX_CONFIGURATION_ATTRIBUTES} configuration attributes", reader.offset)
            # The top bit is reserved and ignored on receipt (RFC 7296 section 3.15.1).
            kind = reader.u16("configuration attribute type") & _TYPE_MASK
            length = reader.u16("configuration attribute length")
            attributes.append(ConfigurationAttribute(kind, reader.take(length, "configuration attribute value")))
        return cls(cfg_type, tuple(attributes))

    def encode(self) -> bytes:
        """The payload's body."""
        return bytes((self.cfg_type, 0, 0, 0)) + b"".join([attribute.encode() for attribute in self.attributes])
