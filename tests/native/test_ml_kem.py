"""What ML-KEM-512 of the native module refuses; its results are tested in tests/ike/test_key_exchange.py."""

from __future__ import annotations

import pytest

import dsvpn_native


@pytest.mark.parametrize("length", [0, 63, 65])
def test_seed_of_wrong_length(length: int) -> None:
    with pytest.raises(ValueError, match=f"seed: {length} octets are not 64"):
        dsvpn_native.MlKem512(bytes(length))


@pytest.mark.parametrize("length", [0, 767, 769])
def test_ciphertext_of_wrong_length(length: int) -> None:
    with pytest.raises(ValueError, match=f"ciphertext: {length} octets are not 768"):
        dsvpn_native.MlKem512(bytes(64)).decapsulate(bytes(length))


def test_arguments_of_an_encapsulation() -> None:
    key = dsvpn_native.MlKem512(bytes(64)).public_key
    ciphertext, secret = dsvpn_native.MlKem512.encapsulate(key, bytes(32))
    assert isinstance(ciphertext, bytes)
    assert (len(key), len(ciphertext), len(secret)) == (800, 768, 32)
    for public, message, says in (
        (key[:-1], bytes(32), "public_key: 799 octets are not 800"),
        (key, bytes(31), "message: 31 octets are not 32"),
        (b"\xff" * 3 + key[3:], bytes(32), "public_key: a coefficient is not below the modulus"),
    ):
        with pytest.raises(ValueError, match=says):
            dsvpn_native.MlKem512.encapsulate(public, message)
