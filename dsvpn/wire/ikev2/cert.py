"""Certificate and Certificate Request payloads. RFC 7296 sections 3.6 and 3.7."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsvpn.wire.cursor import Reader
from dsvpn.wire.ikev2.constants import PayloadType


@dataclass(frozen=True, slots=True)
class Certificate:
    """CERT payload: a CertificateEncoding and the encoded certificate."""

    payload_type: ClassVar[int] = PayloadType.CERT

    encoding: int
    data: bytes

    @classmethod
    def decode(cls, reader: Reader) -> Certificate:
        """Read the body of a CERT payload."""
        encoding = reader.u8("certificate encoding")
        return cls(encoding, reader.rest())

    def encode(self) -> bytes:
        """The payload's body."""
        return bytes((self.encoding,)) + self.data


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """CERTREQ payload. For X.509, `data` is the SHA-1 hashes (20 octets each) of trusted authorities' public keys."""

    payload_type: ClassVar[int] = PayloadType.CERTREQ

    encoding: int
    data: bytes

    @classmethod
    def decode(cls, reader: Reader) -> CertificateRequest:
        """Read the body of a CERTREQ payload."""
        encoding = reader.u8("certificate request encoding")
        return cls(encoding, reader.rest())

    def encode(self) -> bytes:
        """The payload's body."""
        return bytes((self.encoding,)) + self.data
