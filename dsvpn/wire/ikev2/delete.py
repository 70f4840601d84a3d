"""Delete payload. RFC 7296 section 3.11."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsvpn.errors import DecodeError
from dsvpn.wire.cursor import Reader
from dsvpn.wire.ikev2.constants import PayloadType, ProtocolId

#: Most SPIs that one payload may name.
MAX_SPIS = 4096

_IPSEC_SPI_LENGTH = 4


@dataclass(frozen=True, slots=True)
class Delete:
    """D payload: the inbound SPIs (of the sender, 4 octets each) that are gone, or, for protocol IKE, none at all."""

    payload_type: ClassVar[int] = PayloadType.DELETE

    protocol: int
    spis: tuple[bytes, ...] = ()

    @classmethod
    def decode(cls, reader: Reader) -> Delete:
        """Read the body of a D payload."""
        at = reader.offset
        protocol = reader.u8("delete protocol id")
        size = reader.u8("delete SPI size")
        count = reader.u16("number of SPIs")
        if count > MAX_SPIS:
            raise DecodeError(f"{count} SPIs in a delete payload, at most {MAX_SPIS}", at + 2)
        # The IKE SA is named by the header, IPsec SAs by 4-octet SPIs (RFC 7296 section 3.11).
        if protocol == ProtocolId.IKE and (size or count):
            raise DecodeError(f"{count} SPIs of {size} octets in a delete payload of the IKE SA", at + 1)
        if protocol in (ProtocolId.AH, ProtocolId.ESP) and size != _IPSEC_SPI_LENGTH:
            raise DecodeError(f"SPI size {size} in a delete payload, want {_IPSEC_SPI_LENGTH}", at + 1)
        spis = tuple([reader.take(size, "SPI") for _ in range(count)])
        reader.expect_end("the last SPI of a delete payload")
        return cls(protocol, spis)

    def encode(self) -> bytes:
        """The payload's body."""
        if self.spis:
            size = len(self.spis[0])
        else:
            size = _IPSEC_SPI_LENGTH if self.protocol in (ProtocolId.AH, ProtocolId.ESP) else 0
        return bytes((self.protocol, size)) + len(self.spis).to_bytes(2, "big") + b"".join(self.spis)
