"""Security Association payload: proposals, transforms and their attributes. RFC 7296 section 3.3."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar

from dsvpn.errors import DecodeError, MisuseError
from dsvpn.wire.cursor import Reader
from dsvpn.wire.ikev2.constants import AttributeType, PayloadType, ProtocolId

#: Most proposals that a payload may hold, and most attributes per transform: bounds on the work a stranger causes.
#: Transforms per proposal are bounded by their one-octet count.
MAX_PROPOSALS = 64
MAX_ATTRIBUTES = 16

_LAST = 0
_MORE_PROPOSALS = 2
_MORE_TRANSFORMS = 3
_PROPOSAL_HEADER_LENGTH = 8
_TRANSFORM_HEADER_LENGTH = 8
_ATTRIBUTE_FORMAT_TV = 0x8000
_KEY_LENGTH_HEAD = AttributeType.KEY_LENGTH | _ATTRIBUTE_FORMAT_TV

_PROPOSAL = Struct("!BBHBBBB")
_TRANSFORM = Struct("!BBHBBH")
_ATTRIBUTE = Struct("!HH")

# SPI sizes in octets: an IKE proposal has none in IKE_SA_INIT and 8 octets when it rekeys (RFC 7296 section 3.3.1).
_SPI_SIZES: dict[int, tuple[int, ...]] = {ProtocolId.IKE: (0, 8), ProtocolId.AH: (4,), ProtocolId.ESP: (4,)}


@dataclass(frozen=True, slots=True)
class TransformAttribute:
    """An attribute other than a Key Length: an int in the two-octet form, bytes in the variable-length form."""

    type: int
    value: int | bytes

    def encode(self) -> bytes:
        """TV or TLV octets."""
        value = self.value
        if isinstance(value, int):
            return _ATTRIBUTE.pack(self.type | _ATTRIBUTE_FORMAT_TV, value)
        return _ATTRIBUTE.pack(self.type, len(value)) + value


@dataclass(frozen=True, slots=True)
class Transform:
    """One algorithm. `key_length` is in bits, None when the algorithm has a fixed one. RFC 7296 section 3.3.2."""

    type: int
    id: int
    key_length: int | None = None
    attributes: tuple[TransformAttribute, ...] = ()

    def encode(self, last: bool) -> bytes:
        """The transform substructure; `last` says that no other follows in its proposal."""
        attributes = b""
        if self.key_length is not None:
            attributes = _ATTRIBUTE.pack(_KEY_LENGTH_HEAD, self.key_length)
        for attribute in self.attributes:
            attributes += attribute.encode()
        more = _LAST if last else _MORE_TRANSFORMS
        length = _TRANSFORM_HEADER_LENGTH + len(attributes)
        return _TRANSFORM.pack(more, 0, length, self.type, 0, self.id) + attributes


@dataclass(frozen=True, slots=True)
class Proposal:
    """One protocol with the transforms offered (or, in an answer, one chosen per type). RFC 7296 section 3.3.1.

    `spi` is the sender's: empty in IKE_SA_INIT, 8 octets when an IKE SA is rekeyed, 4 for ESP and AH.
    """

    number: int
    protocol: int
    spi: bytes
    transforms: tuple[Transform, ...]

    def of_type(self, transform_type: int) -> tuple[Transform, ...]:
        """The transforms of one type, in the sender's order."""
        return tuple(transform for transform in self.transforms if transform.type == transform_type)

    def encode(self, last: bool) -> bytes:
        """The proposal substructure; `last` says that no other follows."""
        count = len(self.transforms)
        body = self.spi
        for index, transform in enumerate(self.transforms):
            body += transform.encode(index == count - 1)
        more = _LAST if last else _MORE_PROPOSALS
        length = _PROPOSAL_HEADER_LENGTH + len(body)
        return _PROPOSAL.pack(more, 0, length, self.number, self.protocol, len(self.spi), count) + body


@dataclass(frozen=True, slots=True)
class SecurityAssociation:
    """SA payload: at least one proposal, in order of preference. RFC 7296 section 3.3."""

    payload_type: ClassVar[int] = PayloadType.SA

    proposals: tuple[Proposal, ...]

    @classmethod
    def decode(cls, reader: Reader) -> SecurityAssociation:
        """Read the body of an SA payload."""
        proposals: list[Proposal] = []
        last = False
        while not last:
            if len(proposals) == MAX_PROPOSALS:
                raise DecodeError(f"more than {MAX_PROPOSALS} proposals", reader.offset)
            at = reader.offset
            proposal, last = _decode_proposal(reader)
            # RFC 7296 section 3.3.1: each number is one more than the one before. The first is 1 in an offer and the
            # chosen one's in an answer.
            if proposals and proposal.number != proposals[-1].number + 1:
                raise DecodeError(f"proposal number {proposal.number} after {proposals[-1].number}", at + 4)
            proposals.append(proposal)
        reader.expect_end("SA payload")
        return cls(tuple(proposals))

    def encode(self) -> bytes:
        """The payload's body."""
        if not self.proposals:
            raise MisuseError("an SA payload needs at least one proposal")
        last = len(self.proposals) - 1
        return b"".join([proposal.encode(index == last) for index, proposal in enumerate(self.proposals)])


def _decode_proposal(reader: Reader) -> tuple[Proposal, bool]:
    at = reader.offset
    more = reader.u8("proposal's last substruc")
    if more not in (_LAST, _MORE_PROPOSALS):
        raise DecodeError(f"proposal's last substruc {more}, want 0 or 2", at)
    reader.u8("proposal's reserved octet")
    length = reader.u16("proposal length")
    if length < _PROPOSAL_HEADER_LENGTH:
        raise DecodeError(f"proposal length {length} below {_PROPOSAL_HEADER_LENGTH}", at + 2)
    body = reader.sub(length - 4, "proposal")
    number = body.u8("proposal number")
    protocol = body.u8("protocol id")
    spi_size = body.u8("SPI size")
    count = body.u8("number of transforms")
    if spi_size not in _SPI_SIZES.get(protocol, (spi_size,)):
        raise DecodeError(f"SPI size {spi_size} for protocol {protocol}", at + 6)
    spi = body.take(spi_size, "proposal SPI")
    transforms = tuple([_decode_transform(body, index == count - 1) for index in range(count)])
    body.expect_end("the last transform of a proposal")
    return Proposal(number, protocol, spi, transforms), more == _LAST


def _decode_transform(reader: Reader, last: bool) -> Transform:
    at = reader.offset
    more = reader.u8("transform's last substruc")
    if more != (_LAST if last else _MORE_TRANSFORMS):
        raise DecodeError(f"transform's last substruc {more}, want {_LAST if last else _MORE_TRANSFORMS}", at)
    reader.u8("transform's reserved octet")
    length = reader.u16("transform length")
    if length < _TRANSFORM_HEADER_LENGTH:
        raise DecodeError(f"transform length {length} below {_TRANSFORM_HEADER_LENGTH}", at + 2)
    body = reader.sub(length - 4, "transform")
    transform_type = body.u8("transform type")
    body.u8("transform's second reserved octet")
    transform_id = body.u16("transform id")
    if not body.remaining():
        return Transform(transform_type, transform_id)
    key_length: int | None = None
    attributes: list[TransformAttribute] = []
    while body.remaining():
        at = body.offset
        if len(attributes) == MAX_ATTRIBUTES:
            raise DecodeError(f"more than {MAX_ATTRIBUTES} transform attributes", at)
        head = body.u16("transform attribute type")
        value = body.u16("transform attribute value or length")
        kind = head & ~_ATTRIBUTE_FORMAT_TV
        if not head & _ATTRIBUTE_FORMAT_TV:
            attributes.append(TransformAttribute(kind, body.take(value, "transform attribute value")))
        elif kind == AttributeType.KEY_LENGTH:
            if key_length is not None:
                raise DecodeError("second Key Length attribute", at)
            key_length = value
        else:
            attributes.append(TransformAttribute(kind, value))
    return Transform(transform_type, transform_id, key_length, tuple(attributes))
