"""Wycheproof's vectors through key exchanges and signatures as IKE uses them: KE and AUTH payloads in, secrets, proofs
or refusals out.

`secrets` are rows of number, private value or seed, public value or ciphertext, and the secret, which is empty where
the value has to be refused. `encapsulations` are rows of number, public key, message, ciphertext and secret.
Signatures are by the name of their scheme, or of the classic method of RFC 4754: each key with rows of number, what is
signed, signature, and whether it is one.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key

from dsvpn.errors import PeerError
from dsvpn.ike.authentication.signatures import SCHEMES, verify
from dsvpn.ike.kem import LIBRARY_KEMS
from dsvpn.ike.key_exchange import (
    EcpKeyExchange,
    KeyExchange,
    MlKemKeyExchange,
    MontgomeryKeyExchange,
    answer_key_exchange,
)
from dsvpn.ike.suites import GROUPS, KEMS
from dsvpn.io.kem import native_kems
from dsvpn.wire.ikev2 import AuthMethod

VECTORS = json.loads((Path(__file__).parent.parent / "vectors/wycheproof_key_exchange.json").read_text())
SIGNATURES = json.loads((Path(__file__).parent.parent / "vectors/wycheproof_signatures.json").read_text())
ALL_KEMS = {**LIBRARY_KEMS, **native_kems()}


def exchange_of(name: str, private: str) -> KeyExchange:
    if name in KEMS:
        return MlKemKeyExchange(KEMS[name], ALL_KEMS[name], bytes.fromhex(private))
    if name in ("x25519", "x448"):
        return MontgomeryKeyExchange(GROUPS[name], bytes.fromhex(private))
    return EcpKeyExchange(GROUPS[name], int(private, 16))


@pytest.mark.parametrize("name", VECTORS["secrets"])
def test_secrets(name: str) -> None:
    """Edge cases of the arithmetic, twists, points of small order and of other curves, values that are not canonical,
    other encodings, altered ciphertexts."""
    refused = 0
    for number, private, public, secret in VECTORS["secrets"][name]:
        ours = exchange_of(name, private)
        if secret:
            assert ours.shared_secret(bytes.fromhex(public)).hex() == secret, number
        else:
            refused += 1
            with pytest.raises(PeerError, match=name):
                ours.shared_secret(bytes.fromhex(public))
    assert 0 < refused < len(VECTORS["secrets"][name])


@pytest.mark.parametrize("name", VECTORS["encapsulations"])
def test_encapsulations(name: str) -> None:
    """Keys of other lengths and with coefficients beyond the modulus are refused."""
    for number, key, message, ciphertext, secret in VECTORS["encapsulations"][name]:
        public = bytes.fromhex(key)
        if ciphertext:
            answer = answer_key_exchange(KEMS[name], public, lambda _, m=message: bytes.fromhex(m), ALL_KEMS)  # type: ignore[misc]
            assert (answer[0].hex(), answer[1].hex()) == (ciphertext, secret), number
        else:
            with pytest.raises(PeerError, match=name):
                answer_key_exchange(KEMS[name], public, Random(number).randbytes, ALL_KEMS)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    """Other encodings of a signature, values out of range, edge cases of the arithmetic, other paddings and salts."""
    classic = AuthMethod.__members__.get(name)
    algorithm = b"" if classic else next(der for der, scheme in SCHEMES.items() if str(scheme) == name)
    taken = refused = 0
    for key, rows in SIGNATURES[name]:
        try:
            public: Any = load_der_public_key(bytes.fromhex(key))
        except ValueError:
            # A key that is none: nothing is ever checked with it.
            assert not any(valid for *_, valid in rows)
            continue
        for number, octets, signature, valid in rows:
            data = bytes.fromhex(signature)
            if not classic:
                data = bytes((len(algorithm),)) + algorithm + data
            try:
                verify(public, classic or AuthMethod.DIGITAL_SIGNATURE, data, bytes.fromhex(octets))
            except PeerError:
                assert not valid, number
                refused += 1
            else:
                assert valid, number
                taken += 1
    assert taken >= 4
    assert refused >= 3
