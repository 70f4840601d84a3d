from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from dsvpn.ike.auth import shared_key_mic, verify_shared_key_mic
from dsvpn.ike.keymat import (
    derive_child_keymat,
    derive_ike_keys,
    derive_rekeyed_ike_keys,
    prf,
    prf_plus,
)
from dsvpn.ike.suites import CIPHERS, PRFS, parse_ike_suite

#: RFC 4231 test case 2: key "Jefe".
RFC4231_CASE_2 = {
    "prfsha256": "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    "prfsha384": "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
    "prfsha512": (
        "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554"
        "9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737"
    ),
}
_HASHES = {"prfsha256": hashes.SHA256(), "prfsha384": hashes.SHA384(), "prfsha512": hashes.SHA512()}


@pytest.mark.parametrize("name", PRFS)
def test_prf_rfc4231(name: str) -> None:
    assert prf(PRFS[name], b"Jefe", b"what do ya want for nothing?").hex() == RFC4231_CASE_2[name]
    assert len(bytes.fromhex(RFC4231_CASE_2[name])) == PRFS[name].key_length


def test_prf_plus_rfc5869() -> None:
    """prf+ of RFC 7296 section 2.13 is the expansion of HKDF, so its vectors hold (RFC 5869 appendix A.1)."""
    key = bytes.fromhex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5")
    output = prf_plus(PRFS["prfsha256"], key, bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"), 42)
    assert output.hex() == ("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")


@given(st.sampled_from(sorted(PRFS)), st.binary(max_size=200), st.binary(max_size=200), st.integers(1, 1000))
def test_prf_plus_as_another_author_has_it(name: str, key: bytes, seed: bytes, length: int) -> None:
    # HKDF-Expand takes no key shorter than its hash, prf+ does; HMAC pads both with zeros.
    padded = key.ljust(PRFS[name].key_length, b"\0")
    if len(padded) <= 64:
        assert prf_plus(PRFS[name], padded, seed, length) == prf_plus(PRFS[name], key, seed, length)
    expected = HKDFExpand(_HASHES[name], length, seed).derive(padded)
    assert prf_plus(PRFS[name], padded, seed, length) == expected


def test_prf_plus_ends_at_255_blocks() -> None:
    assert len(prf_plus(PRFS["prfsha256"], b"k", b"s", 255 * 32)) == 255 * 32
    with pytest.raises(ValueError, match="at most 8160"):
        prf_plus(PRFS["prfsha256"], b"k", b"s", 255 * 32 + 1)


@pytest.mark.parametrize("text", ["aes128gcm16-prfsha256-x25519", "aes256gcm16-prfsha384-x25519"])
def test_sk_keys_are_slices_of_prf_plus_in_the_rfc_order(text: str) -> None:
    """RFC 7296 section 2.14: {SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr}, none of SK_a* for an AEAD."""
    suite = parse_ike_suite(text)
    ni, nr, secret, spi_i, spi_r = b"i" * 32, b"r" * 32, b"s" * 32, b"I" * 8, b"R" * 8
    keys = derive_ike_keys(suite, secret, ni, nr, spi_i, spi_r)
    seed = prf(suite.prf, ni + nr, secret)
    total = 3 * suite.prf.key_length + 2 * suite.cipher.keymat_length
    assert keys.d + keys.ei + keys.er + keys.pi + keys.pr == prf_plus(suite.prf, seed, ni + nr + spi_i + spi_r, total)
    assert len(keys.d) == len(keys.pi) == len(keys.pr) == suite.prf.key_length
    assert len(keys.ei) == len(keys.er) == suite.cipher.keymat_length


def test_rekeyed_sk_keys_start_from_the_old_prf() -> None:
    """RFC 7296 section 2.18: SKEYSEED = prf(SK_d (old), g^ir (new) | Ni | Nr), with the old SA's PRF."""
    suite = parse_ike_suite("aes256gcm16-prfsha512-x25519")
    old = PRFS["prfsha256"]
    keys = derive_rekeyed_ike_keys(suite, old, b"d" * 32, b"s" * 32, b"i" * 16, b"r" * 16, b"I" * 8, b"R" * 8)
    seed = prf(old, b"d" * 32, b"s" * 32 + b"i" * 16 + b"r" * 16)
    assert keys.d == prf_plus(suite.prf, seed, b"i" * 16 + b"r" * 16 + b"I" * 8 + b"R" * 8, 64)


@pytest.mark.parametrize("name", CIPHERS)
def test_child_keymat(name: str) -> None:
    """RFC 7296 section 2.17: the initiator's direction first, g^ir in front of the nonces."""
    cipher, function = CIPHERS[name], PRFS["prfsha256"]
    ours, theirs = derive_child_keymat(function, b"d" * 32, cipher, b"i" * 32, b"r" * 32, b"s" * 32)
    assert ours + theirs == prf_plus(
        function, b"d" * 32, b"s" * 32 + b"i" * 32 + b"r" * 32, 2 * (cipher.key_length + 4)
    )
    assert len(ours) == len(theirs) == cipher.key_length + 4


def test_shared_key_mic_is_the_rfc_formula() -> None:
    function = PRFS["prfsha256"]
    mic = shared_key_mic(function, b"psk", b"octets")
    assert mic == prf(function, prf(function, b"psk", b"Key Pad for IKEv2"), b"octets")
    assert verify_shared_key_mic(function, b"psk", b"octets", mic)
    assert not verify_shared_key_mic(function, b"PSK", b"octets", mic)
    assert not verify_shared_key_mic(function, b"psk", b"octets", mic[:-1])
    assert not verify_shared_key_mic(function, b"psk", b"octets", b"")
