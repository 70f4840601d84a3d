"""The SK payload: sealing and opening with an AEAD (RFC 7296 section 3.14, RFC 5282, RFC 7634 section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from dsvpn.errors import DecodeError
from dsvpn.ike.suites import Cipher
from dsvpn.wire import ikev2 as wire

_IV_LENGTH: Final = 8
_ICV_LENGTH: Final = 16


class SealingKey:
    """One direction of an IKE SA. The same object either seals or opens, never both: each direction has its key."""

    def __init__(self, cipher: Cipher, keymat: bytes) -> None:
        key, self._salt = keymat[: cipher.key_length], keymat[cipher.key_length :]
        self._aead = ChaCha20Poly1305(key) if cipher.name == "chacha20poly1305" else AESGCM(key)
        # A counter cannot repeat under one key, as an AEAD needs of its IV (RFC 5282 section 3).
        self._iv = 0

    def seal(self, header: wire.Header, payloads: Sequence[wire.Payload]) -> bytes:
        """The datagram with `payloads` inside its SK payload."""
        first_payload, chain = wire.encode_payloads(payloads)
        plaintext = wire.add_padding(chain)
        iv = self._iv.to_bytes(_IV_LENGTH, "big")
        self._iv += 1
        associated_data = wire.encode_associated_data(header, first_payload, _IV_LENGTH + len(plaintext) + _ICV_LENGTH)
        return associated_data + iv + self._aead.encrypt(self._salt + iv, plaintext, associated_data)

    def open(self, payload: wire.Encrypted) -> bytes | None:
        """The padded plaintext, or None for octets that the peer did not seal."""
        if len(payload.data) <= _IV_LENGTH + _ICV_LENGTH:
            return None
        iv = payload.data[:_IV_LENGTH]
        try:
            return self._aead.decrypt(self._salt + iv, payload.data[_IV_LENGTH:], payload.associated_data)
        except InvalidTag:
            return None


def open_payloads(key: SealingKey, payload: wire.Encrypted) -> tuple[wire.Payload, ...] | DecodeError | None:
    """The payloads inside an SK payload; None when it is not authentic; the error, when it is but does not decode."""
    plaintext = key.open(payload)
    if plaintext is None:
        return None
    base = len(payload.associated_data) + _IV_LENGTH
    try:
        return wire.decode_payloads(payload.first_payload, wire.remove_padding(plaintext, base), base)
    except DecodeError as error:
        return error
