"""What ML-KEM of the native module refuses; its results are tested in tests/ike."""

from __future__ import annotations

from typing import Any

import pytest

import dsvpn_native

#: Octets of the encapsulation key and of the ciphertext (FIPS 203 table 3).
SETS = [
    pytest.param(dsvpn_native.MlKem512, 800, 768, id="512"),
    pytest.param(dsvpn_native.MlKem768, 1184, 1088, id="768"),
    pytest.param(dsvpn_native.MlKem1024, 1568, 1568, id="1024"),
]


@pytest.mark.parametrize(("parameter_set", "public_length", "ciphertext_length"), SETS)
def test_arguments(parameter_set: Any, public_length: int, ciphertext_length: int) -> None:
    pair = parameter_set(bytes(64))
    key = pair.public_key
    ciphertext, secret = parameter_set.encapsulate(key, bytes(32))
    assert isinstance(ciphertext, bytes)
    assert (len(key), len(ciphertext), len(secret)) == (public_length, ciphertext_length, 32)
    assert pair.decapsulate(ciphertext) == secret
    for length in (0, 63, 65):
        with pytest.raises(ValueError, match=f"seed: {length} octets are not 64"):
            parameter_set(bytes(length))
    for length in (0, ciphertext_length - 1, ciphertext_length + 1):
        with pytest.raises(ValueError, match=f"ciphertext: {length} octets are not {ciphertext_length}"):
            pair.decapsulate(bytes(length))
    for public, message, says in (
        (key[:-1], bytes(32), f"public_key: {public_length - 1} octets are not {public_length}"),
        (key, bytes(31), "message: 31 octets are not 32"),
        (b"\xff" * 3 + key[3:], bytes(32), "public_key: a coefficient is not below the modulus"),
    ):
        with pytest.raises(ValueError, match=says):
            parameter_set.encapsulate(public, message)
