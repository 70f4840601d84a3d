"""The SK payload: sealing and opening (RFC 7296 section 3.14).

With an AEAD (RFC 5282, RFC 7634 section 2), or for old peers with AES-CBC and an HMAC over everything in front of it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from dsvpn.errors import DecodeError
from dsvpn.ike.suites import IkeSuite
from dsvpn.wire import ikev2 as wire

Random = Callable[[int], bytes]

_AEAD_IV_LENGTH: Final = 8
_AEAD_ICV_LENGTH: Final = 16
#: Octets of a block of AES, and of the IV in CBC mode.
_BLOCK: Final = 16


class SealingKey:
    """One direction of an IKE SA. The same object either seals or opens, never both: each direction has its key.

    `keymat` is cipher key then salt, `integrity_key` is empty with an AEAD.
    """

    iv_length: int
    icv_length: int

    def sealed_length(self, length: int) -> int:
        """Octets of IV, ciphertext and ICV when `length` octets of payloads are sealed."""
        raise NotImplementedError

    def seal_octets(self, associated_data: bytes, chain: bytes) -> bytes:
        """IV, ciphertext and ICV of a payload chain. `associated_data` is every octet of the datagram in front."""
        raise NotImplementedError

    def open(self, payload: wire.Encrypted | wire.EncryptedFragment) -> bytes | None:
        """The padded plaintext, or None for octets that the peer did not seal."""
        raise NotImplementedError

    def seal(self, header: wire.Header, payloads: Sequence[wire.Payload]) -> bytes:
        """The datagram with `payloads` inside its SK payload."""
        first_payload, chain = wire.encode_payloads(payloads)
        associated_data = wire.encode_associated_data(header, first_payload, self.sealed_length(len(chain)))
        return associated_data + self.seal_octets(associated_data, chain)


class AeadSealingKey(SealingKey):
    """AES-GCM or ChaCha20-Poly1305."""

    iv_length = _AEAD_IV_LENGTH
    icv_length = _AEAD_ICV_LENGTH

    def __init__(self, suite: IkeSuite, keymat: bytes) -> None:
        cipher = suite.cipher
        key, self._salt = keymat[: cipher.key_length], keymat[cipher.key_length :]
        self._aead = ChaCha20Poly1305(key) if cipher.name == "chacha20poly1305" else AESGCM(key)
        # A counter cannot repeat under one key, as an AEAD needs of its IV (RFC 5282 section 3).
        self._iv = 0

    def sealed_length(self, length: int) -> int:
        """No padding, but its length octet."""
        return _AEAD_IV_LENGTH + length + 1 + _AEAD_ICV_LENGTH

    def seal_octets(self, associated_data: bytes, chain: bytes) -> bytes:
        """IV, ciphertext, tag."""
        iv = self._iv.to_bytes(_AEAD_IV_LENGTH, "big")
        self._iv += 1
        return iv + self._aead.encrypt(self._salt + iv, wire.add_padding(chain), associated_data)

    def open(self, payload: wire.Encrypted | wire.EncryptedFragment) -> bytes | None:
        """The padded plaintext, or None."""
        data = payload.data
        if len(data) <= _AEAD_IV_LENGTH + _AEAD_ICV_LENGTH:
            return None
        iv = data[:_AEAD_IV_LENGTH]
        try:
            return self._aead.decrypt(self._salt + iv, data[_AEAD_IV_LENGTH:], payload.associated_data)
        except InvalidTag:
            return None


class CbcSealingKey(SealingKey):
    """AES-CBC (RFC 3602) under HMAC-SHA2 (RFC 4868): encrypted first, then authenticated."""

    iv_length = _BLOCK

    def __init__(self, suite: IkeSuite, key: bytes, integrity_key: bytes, random: Random) -> None:
        assert suite.integrity is not None
        self._aes = algorithms.AES(key)
        self._integrity_key = integrity_key
        self._hash_name = suite.integrity.hash_name
        self._random = random
        self.icv_length = suite.integrity.icv_length

    def sealed_length(self, length: int) -> int:
        """Padded to whole blocks with the Pad Length octet."""
        return _BLOCK + length + 1 + _padding(length) + self.icv_length

    def seal_octets(self, associated_data: bytes, chain: bytes) -> bytes:
        """IV, ciphertext, ICV."""
        # Unpredictable, as CBC needs it (RFC 7296 section 3.14).
        iv = self._random(_BLOCK)
        encryptor = Cipher(self._aes, modes.CBC(iv)).encryptor()
        sealed = iv + encryptor.update(wire.add_padding(chain, _padding(len(chain)))) + encryptor.finalize()
        return sealed + self._icv(associated_data, sealed)

    def open(self, payload: wire.Encrypted | wire.EncryptedFragment) -> bytes | None:
        """The padded plaintext, or None. Nothing is decrypted before the ICV holds, so padding tells no secret."""
        sealed, icv = payload.data[: -self.icv_length], payload.data[-self.icv_length :]
        if len(sealed) < 2 * _BLOCK or len(sealed) % _BLOCK:
            return None
        if not hmac.compare_digest(self._icv(payload.associated_data, sealed), icv):
            return None
        decryptor = Cipher(self._aes, modes.CBC(sealed[:_BLOCK])).decryptor()
        return decryptor.update(sealed[_BLOCK:]) + decryptor.finalize()

    def _icv(self, associated_data: bytes, sealed: bytes) -> bytes:
        return hmac.digest(self._integrity_key, associated_data + sealed, self._hash_name)[: self.icv_length]


def make_sealing_key(suite: IkeSuite, keymat: bytes, integrity_key: bytes, random: Random) -> SealingKey:
    """The key of one direction under `suite`."""
    if suite.integrity is None:
        return AeadSealingKey(suite, keymat)
    return CbcSealingKey(suite, keymat, integrity_key, random)


def open_chain(key: SealingKey, payload: wire.Encrypted | wire.EncryptedFragment) -> bytes | DecodeError | None:
    """The payload chain inside an SK or SKF payload; None when it is not authentic; the error, when its padding is
    none."""
    plaintext = key.open(payload)
    if plaintext is None:
        return None
    try:
        return wire.remove_padding(plaintext, len(payload.associated_data) + key.iv_length)
    except DecodeError as error:
        return error


def decode_chain(
    key: SealingKey, payload: wire.Encrypted | wire.EncryptedFragment, chain: bytes
) -> tuple[wire.Payload, ...] | DecodeError:
    """The payloads of an opened chain, or the error when it does not decode."""
    try:
        return wire.decode_payloads(payload.first_payload, chain, len(payload.associated_data) + key.iv_length)
    except DecodeError as error:
        return error


def open_payloads(key: SealingKey, payload: wire.Encrypted) -> tuple[wire.Payload, ...] | DecodeError | None:
    """The payloads inside an SK payload; None when it is not authentic; the error, when it is but does not decode."""
    chain = open_chain(key, payload)
    return decode_chain(key, payload, chain) if isinstance(chain, bytes) else chain


def _padding(length: int) -> int:
    """Octets of padding that make `length` octets and the Pad Length octet whole blocks."""
    return -(length + 1) % _BLOCK
