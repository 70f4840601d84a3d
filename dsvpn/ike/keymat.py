"""Keying material: prf, prf+, SKEYSEED, the SK_* keys and the keys of CHILD_SAs (RFC 7296 sections 2.13-2.18)."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from dsvpn.ike.suites import Cipher, EspSuite, IkeSuite, Prf

_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


def prf(function: Prf, key: bytes, data: bytes) -> bytes:
    """prf(key, data): HMAC (RFC 4868)."""
    return hmac.digest(key, data, function.hash_name)


def prf_plus(function: Prf, key: bytes, seed: bytes, length: int) -> bytes:
    """`length` octets of prf+ (RFC 7296 section 2.13)."""
    if length > 255 * function.key_length:
        raise ValueError(f"prf+ gives at most {255 * function.key_length} octets, not {length}")
    # HKDF-Expand with the seed for its info (RFC 5869 section 2.3), which the library has in one call.
    return HKDFExpand(_HASHES[function.hash_name], length, seed).derive(key)


@dataclass(frozen=True, slots=True)
class IkeKeys:
    """The keys of one IKE SA. `ei` and `er` are cipher key then salt; `i` is the direction from the original
    initiator of this IKE SA. SK_ai and SK_ar are empty with an AEAD (RFC 5282 section 7.1)."""

    d: bytes = field(repr=False)
    ai: bytes = field(repr=False)
    ar: bytes = field(repr=False)
    ei: bytes = field(repr=False)
    er: bytes = field(repr=False)
    pi: bytes = field(repr=False)
    pr: bytes = field(repr=False)


def derive_ike_keys(
    suite: IkeSuite,
    secret: bytes,
    nonce_i: bytes,
    nonce_r: bytes,
    spi_i: bytes,
    spi_r: bytes,
) -> IkeKeys:
    """The keys of an IKE SA made by IKE_SA_INIT (RFC 7296 section 2.14). `secret` is g^ir."""
    skeyseed = prf(suite.prf, nonce_i + nonce_r, secret)
    return _expand(suite, skeyseed, nonce_i, nonce_r, spi_i, spi_r)


def derive_intermediate_ike_keys(
    suite: IkeSuite, sk_d: bytes, secret: bytes, nonce_i: bytes, nonce_r: bytes, spi_i: bytes, spi_r: bytes
) -> IkeKeys:
    """The keys after an additional key exchange in IKE_INTERMEDIATE (RFC 9370 section 2.2.2): SKEYSEED(n) comes from
    SK_d(n-1) and this exchange's `secret`, SK(n); nonces and SPIs are those of IKE_SA_INIT."""
    skeyseed = prf(suite.prf, sk_d, secret + nonce_i + nonce_r)
    return _expand(suite, skeyseed, nonce_i, nonce_r, spi_i, spi_r)


def mix_ppk(function: Prf, ppk: bytes, key: bytes) -> bytes:
    """SK_d, SK_pi or SK_pr with a post-quantum preshared key in it: prf+(PPK, SK') (RFC 8784 section 3)."""
    return prf_plus(function, ppk, key, len(key))


def derive_rekeyed_ike_keys(
    suite: IkeSuite,
    old_prf: Prf,
    old_sk_d: bytes,
    secret: bytes,
    nonce_i: bytes,
    nonce_r: bytes,
    spi_i: bytes,
    spi_r: bytes,
    additional: bytes = b"",
) -> IkeKeys:
    """The keys of an IKE SA that replaces another (RFC 7296 section 2.18): SKEYSEED comes from the old SA's SK_d and
    the old SA's PRF, everything behind it from the new PRF. `additional` is the secrets SK(1) to SK(n) of additional
    key exchanges one behind the other (RFC 9370 section 2.2.4)."""
    skeyseed = prf(old_prf, old_sk_d, secret + nonce_i + nonce_r + additional)
    return _expand(suite, skeyseed, nonce_i, nonce_r, spi_i, spi_r)


def derive_child_keymat(
    function: Prf,
    sk_d: bytes,
    suite: Cipher | EspSuite,
    nonce_i: bytes,
    nonce_r: bytes,
    secret: bytes = b"",
    additional: bytes = b"",
) -> tuple[bytes, bytes]:
    """Keying material of a CHILD_SA: (from the exchange's initiator, from its responder), RFC 7296 section 2.17.

    `secret` is g^ir of the CREATE_CHILD_SA exchange, empty without perfect forward secrecy. `additional` is the secrets
    of additional key exchanges one behind the other (RFC 9370 section 2.2.4).
    The suite of an AEAD needs no more than its cipher.
    """
    length = suite.keymat_length
    output = prf_plus(function, sk_d, secret + nonce_i + nonce_r + additional, 2 * length)
    return output[:length], output[length:]


def _expand(suite: IkeSuite, skeyseed: bytes, nonce_i: bytes, nonce_r: bytes, spi_i: bytes, spi_r: bytes) -> IkeKeys:
    prf_length, cipher_length = suite.prf.key_length, suite.cipher.keymat_length
    integrity_length = 0 if suite.integrity is None else suite.integrity.key_length
    lengths = (
        prf_length,
        integrity_length,
        integrity_length,
        cipher_length,
        cipher_length,
        prf_length,
        prf_length,
    )
    output = prf_plus(suite.prf, skeyseed, nonce_i + nonce_r + spi_i + spi_r, sum(lengths))
    parts = []
    offset = 0
    for length in lengths:
        parts.append(output[offset : offset + length])
        offset += length
    return IkeKeys(*parts)
