"""Encrypted (SK) and Encrypted Fragment (SKF) payloads. RFC 7296 section 3.14, RFC 5282, RFC 7383 section 2.5.

The codec treats the sealed octets (IV, ciphertext, ICV) as opaque. Sealing goes: `encode_payloads` and
`add_padding` give the plaintext, `encode_associated_data` (or `encode_fragment_associated_data`) gives every octet
of the datagram that precedes the sealed octets, which is what the AEAD authenticates, and the datagram is the two
joined. Opening goes: the decoded payload has `associated_data`, and `remove_padding` and `decode_payloads` take the
plaintext.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dsvpn.errors import DecodeError
from dsvpn.wire.cursor import Reader
from dsvpn.wire.ikev2.constants import PayloadType

_MAX_PAD_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Encrypted:
    """SK payload: `first_payload` is the type of the first payload inside, `data` is IV, ciphertext and ICV.

    `associated_data` is filled by decoding: the datagram up to `data`, byte by byte as it came (RFC 5282 section 5.1).
    """

    payload_type: ClassVar[int] = PayloadType.SK

    first_payload: int
    data: bytes
    associated_data: bytes = field(default=b"", compare=False, repr=False)

    def encode(self) -> bytes:
        """The payload's body."""
        return self.data


@dataclass(frozen=True, slots=True)
class EncryptedFragment:
    """SKF payload: fragment `number` (from 1) of `total`. `data` is IV, ciphertext and ICV of this fragment.

    `first_payload` is the type of the first payload inside in fragment 1, and 0 in the others.
    """

    payload_type: ClassVar[int] = PayloadType.SKF

    first_payload: int
    number: int
    total: int
    data: bytes
    associated_data: bytes = field(default=b"", compare=False, repr=False)

    def encode(self) -> bytes:
        """The payload's body."""
        return self.number.to_bytes(2, "big") + self.total.to_bytes(2, "big") + self.data


def decode_encrypted(reader: Reader, first_payload: int) -> Encrypted:
    """Read the body of an SK payload; `reader.data` is the whole datagram."""
    associated_data = reader.data[: reader.offset]
    return Encrypted(first_payload, reader.rest(), associated_data)


def decode_encrypted_fragment(reader: Reader, first_payload: int) -> EncryptedFragment:
    """Read the body of an SKF payload; `reader.data` is the whole datagram."""
    at = reader.offset
    number = reader.u16("fragment number")
    total = reader.u16("total fragments")
    if not 1 <= number <= total:
        raise DecodeError(f"fragment {number} of {total}", at)
    if number > 1 and first_payload:
        # RFC 7383 section 2.5: only the first fragment names the first payload inside.
        raise DecodeError(f"first payload type {first_payload} in fragment {number}", at)
    associated_data = reader.data[: reader.offset]
    return EncryptedFragment(first_payload, number, total, reader.rest(), associated_data)


def add_padding(payloads: bytes, length: int = 0) -> bytes:
    """`payloads` with `length` zero octets and the Pad Length octet behind them."""
    return payloads + bytes(length) + bytes((length,))


def remove_padding(plaintext: bytes, base_offset: int = 0) -> bytes:
    """The payloads without the padding and Pad Length octet. Errors count their offset from `base_offset`."""
    if not plaintext:
        raise DecodeError("Pad Length octet missing", base_offset)
    length = plaintext[-1]
    if length + 1 > len(plaintext):
        raise DecodeError(f"Pad Length {length} in {len(plaintext)} octets", base_offset + len(plaintext) - 1)
    return plaintext[: len(plaintext) - length - 1]
