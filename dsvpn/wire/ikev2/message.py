"""Whole IKE messages, and the octets in front of sealed ones. RFC 7296 section 3.1, RFC 5282 section 5.1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsvpn.errors import DecodeError, MisuseError
from dsvpn.wire.cursor import Reader
from dsvpn.wire.ikev2.constants import PayloadType
from dsvpn.wire.ikev2.encrypted import Encrypted, EncryptedFragment
from dsvpn.wire.ikev2.header import HEADER_LENGTH, Header
from dsvpn.wire.ikev2.payload import GENERIC_HEADER_LENGTH, Payload, decode_chain, encode_payloads

_FRAGMENT_HEADER_LENGTH = 4
_MAJOR_VERSION = 2


@dataclass(frozen=True, slots=True)
class Message:
    """A datagram: the header and its outermost payloads in order."""

    header: Header
    payloads: tuple[Payload, ...]

    @classmethod
    def decode(cls, data: bytes) -> Message:
        """Read a whole datagram (without non-ESP marker). Raises nothing but DecodeError."""
        reader = Reader(data)
        header = Header.decode(reader)
        if header.major_version != _MAJOR_VERSION:
            raise DecodeError(f"IKE major version {header.major_version}, want {_MAJOR_VERSION}", 17)
        if header.length != len(data):
            raise DecodeError(f"IKE length {header.length} in a datagram of {len(data)} octets", 24)
        return cls(header, decode_chain(reader, header.next_payload, True))

    def encode(self) -> bytes:
        """The datagram."""
        first_payload, body = encode_payloads(self.payloads)
        return self.header.encode(first_payload, HEADER_LENGTH + len(body)) + body


def encode_associated_data(
    header: Header, first_payload: int, sealed_length: int, unencrypted: Sequence[Payload] = ()
) -> bytes:
    """Every octet of a datagram in front of the sealed octets of its SK payload.

    `first_payload` is the type of the first payload inside, `sealed_length` the octets of IV, ciphertext and ICV.
    `unencrypted` payloads stand in front of the SK payload.
    """
    length = GENERIC_HEADER_LENGTH + sealed_length
    return _encode_front(header, PayloadType.SK, unencrypted, length) + _generic_header(first_payload, length)


def encode_fragment_associated_data(
    header: Header,
    first_payload: int,
    number: int,
    total: int,
    sealed_length: int,
    unencrypted: Sequence[Payload] = (),
) -> bytes:
    """Every octet of a datagram in front of the sealed octets of its SKF payload (RFC 7383 section 2.5).

    `first_payload` goes into fragment 1 alone, whatever the caller passes for the others.
    """
    length = GENERIC_HEADER_LENGTH + _FRAGMENT_HEADER_LENGTH + sealed_length
    return (
        _encode_front(header, PayloadType.SKF, unencrypted, length)
        + _generic_header(first_payload if number == 1 else 0, length)
        + number.to_bytes(2, "big")
        + total.to_bytes(2, "big")
    )


def _generic_header(next_payload: int, length: int) -> bytes:
    return bytes((next_payload, 0)) + length.to_bytes(2, "big")


def _encode_front(header: Header, last_type: int, unencrypted: Sequence[Payload], last_length: int) -> bytes:
    if not unencrypted:
        return header.encode(last_type, HEADER_LENGTH + last_length)
    if isinstance(unencrypted[-1], Encrypted | EncryptedFragment):
        raise MisuseError("an encrypted payload is always the last of its message")
    first_payload, chain = encode_payloads(unencrypted)
    # The generic header of the last unencrypted payload names the encrypted payload behind it.
    last_body = len(unencrypted[-1].encode())
    at = len(chain) - last_body - GENERIC_HEADER_LENGTH
    chain = chain[:at] + bytes((last_type,)) + chain[at + 1 :]
    return header.encode(first_payload, HEADER_LENGTH + len(chain) + last_length) + chain
