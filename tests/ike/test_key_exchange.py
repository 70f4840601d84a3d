from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest

from dsvpn.errors import PeerError
from dsvpn.ike.kem import LIBRARY_KEMS, Kem
from dsvpn.ike.key_exchange import (
    MODP_2048,
    MODP_3072,
    MODP_4096,
    EcpKeyExchange,
    MlKemKeyExchange,
    ModpKeyExchange,
    MontgomeryKeyExchange,
    answer_key_exchange,
    make_key_exchange,
)
from dsvpn.ike.suites import GROUPS, KEMS
from dsvpn.io.kem import native_kems
from tests.ike import ml_kem

ALL_KEMS = {**LIBRARY_KEMS, **native_kems()}
#: Every implementation that there is of each parameter set.
IMPLEMENTATIONS = [
    pytest.param(name, kems, id=f"{name} of {source}")
    for source, kems in (("the native module", native_kems()), ("the library", LIBRARY_KEMS))
    for name in kems
]
#: Key generation and encapsulation for ML-KEM-512 of NIST's Automated Cryptographic Validation Protocol (FIPS 203).
ACVP_512 = json.loads((Path(__file__).parent.parent / "vectors/ml_kem_512.json").read_text())

#: (private, public, peer's private, peer's public, secret): RFC 5903 sections 8.1 to 8.3.
ECP = {
    "ecp256": (
        "C88F01F510D9AC3F70A292DAA2316DE544E9AAB8AFE84049C62A9C57862D1433",
        "DAD0B65394221CF9B051E1FECA5787D098DFE637FC90B9EF945D0C3772581180"
        "5271A0461CDB8252D61F1C456FA3E59AB1F45B33ACCF5F58389E0577B8990BB3",
        "C6EF9C5D78AE012A011164ACB397CE2088685D8F06BF9BE0B283AB46476BEE53",
        "D12DFB5289C8D4F81208B70270398C342296970A0BCCB74C736FC7554494BF63"
        "56FBF3CA366CC23E8157854C13C58D6AAC23F046ADA30F8353E74F33039872AB",
        "D6840F6B42F6EDAFD13116E0E12565202FEF8E9ECE7DCE03812464D04B9442DE",
    ),
    "ecp384": (
        "099F3C7034D4A2C699884D73A375A67F7624EF7C6B3C0F160647B67414DCE655E35B538041E649EE3FAEF896783AB194",
        "667842D7D180AC2CDE6F74F37551F55755C7645C20EF73E31634FE72B4C55EE6DE3AC808ACB4BDB4C88732AEE95F41AA"
        "9482ED1FC0EEB9CAFC4984625CCFC23F65032149E0E144ADA024181535A0F38EEB9FCFF3C2C947DAE69B4C634573A81C",
        "41CB0779B4BDB85D47846725FBEC3C9430FAB46CC8DC5060855CC9BDA0AA2942E0308312916B8ED2960E4BD55A7448FC",
        "E558DBEF53EECDE3D3FCCFC1AEA08A89A987475D12FD950D83CFA41732BC509D0D1AC43A0336DEF96FDA41D0774A3571"
        "DCFBEC7AACF3196472169E838430367F66EEBE3C6E70C416DD5F0C68759DD1FFF83FA40142209DFF5EAAD96DB9E6386C",
        "11187331C279962D93D604243FD592CB9D0A926F422E47187521287E7156C5C4D603135569B9E9D09CF5D4A270F59746",
    ),
    "ecp521": (
        "0037ADE9319A89F4DABDB3EF411AACCCA5123C61ACAB57B5393DCE47608172A0"
        "95AA85A30FE1C2952C6771D937BA9777F5957B2639BAB072462F68C27A57382D4A52",
        "0015417E84DBF28C0AD3C278713349DC7DF153C897A1891BD98BAB4357C9ECBEE1E3BF42E00B8E380AEAE57C2D107564941885942AF5"
        "A7F4601723C4195D176CED3E"
        "017CAE20B6641D2EEB695786D8C946146239D099E18E1D5A514C739D7CB4A10AD8A788015AC405D7799DC75E7B7D5B6CF2261A6A7F15"
        "07438BF01BEB6CA3926F9582",
        "0145BA99A847AF43793FDD0E872E7CDFA16BE30FDC780F97BCCC3F078380201E"
        "9C677D600B343757A3BDBF2A3163E4C2F869CCA7458AA4A4EFFC311F5CB151685EB9",
        "00D0B3975AC4B799F5BEA16D5E13E9AF971D5E9B984C9F39728B5E5739735A219B97C356436ADC6E95BB0352F6BE64A6C2912D4EF2D0"
        "433CED2B6171640012D9460F"
        "015C68226383956E3BD066E797B623C27CE0EAC2F551A10C2C724D9852077B87220B6536C5C408A1D2AEBB8E86D678AE49CB57091F47"
        "32296579AB44FCD17F0FC56A",
        "01144C7D79AE6956BC8EDB8E7C787C4521CB086FA64407F97894E5E6B2D79B04"
        "D1427E73CA4BAA240A34786859810C06B3C715A3A8CC3151F2BEE417996D19F3DDEA",
    ),
}


def test_x25519_rfc7748_section_6_1() -> None:
    group = GROUPS["x25519"]
    alice = MontgomeryKeyExchange(
        group, bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    )
    bob = MontgomeryKeyExchange(
        group, bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    )
    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    secret = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice.shared_secret(bob.public).hex() == secret
    assert bob.shared_secret(alice.public).hex() == secret


def test_x448_rfc7748_section_6_2() -> None:
    group = GROUPS["x448"]
    alice = MontgomeryKeyExchange(
        group,
        bytes.fromhex(
            "9a8f4925d1519f5775cf46b04b5800d4ee9ee8bae8bc5565d498c28dd9c9baf574a9419744897391006382a6f127ab1d9ac2d8c0a598726b"
        ),
    )
    bob = MontgomeryKeyExchange(
        group,
        bytes.fromhex(
            "1c306a7ac2a0e2e0990b294470cba339e6453772b075811d8fad0d1d6927c120bb5ee8972b0d3e21374c9c921b09d1b0366f10b65173992d"
        ),
    )
    assert alice.public.hex() == (
        "9b08f7cc31b7e3e67d22d5aea121074a273bd2b83de09c63faa73d2c22c5d9bbc836647241d953d40c5b12da88120d53177f80e532c41fa0"
    )
    assert bob.public.hex() == (
        "3eb7a829b0cd20f5bcfc0b599b6feccf6da4627107bdb0d4f345b43027d8b972fc3e34fb4232a13ca706dcb57aec3dae07bdc1c67bf33609"
    )
    secret = (
        "07fff4181ac6cc95ec1c16a94a0f74d12da232ce40a77552281d282b"
        "b60c0b56fd2464c335543936521c24403085d59a449a5037514a879d"
    )
    assert alice.shared_secret(bob.public).hex() == secret
    assert bob.shared_secret(alice.public).hex() == secret


@pytest.mark.parametrize("name", ECP)
def test_ecp_rfc5903_section_8(name: str) -> None:
    private, public, peer_private, peer_public, secret = ECP[name]
    ours = EcpKeyExchange(GROUPS[name], int(private, 16))
    theirs = EcpKeyExchange(GROUPS[name], int(peer_private, 16))
    assert ours.public == bytes.fromhex(public)
    assert theirs.public == bytes.fromhex(peer_public)
    assert ours.shared_secret(theirs.public) == bytes.fromhex(secret)
    assert theirs.shared_secret(ours.public) == bytes.fromhex(secret)


def _floor_pi_times_2_to_the(bits: int) -> int:
    """By Machin's formula, with 64 bits more than are wanted."""
    one = 1 << (bits + 64)

    def arctan_of_inverse(x: int) -> int:
        total = term = one // x
        n = 3
        sign = -1
        while term:
            term //= x * x
            total += sign * (term // n)
            sign = -sign
            n += 2
        return total

    return (4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))) >> 64


def test_modp2048_is_the_prime_of_rfc3526_section_3() -> None:
    assert 2**2048 - 2**1984 - 1 + 2**64 * (_floor_pi_times_2_to_the(1918) + 124476) == MODP_2048


def test_modp3072_is_the_prime_of_rfc3526_section_4() -> None:
    assert 2**3072 - 2**3008 - 1 + 2**64 * (_floor_pi_times_2_to_the(2942) + 1690314) == MODP_3072


def test_modp4096_is_the_prime_of_rfc3526_section_5() -> None:
    assert 2**4096 - 2**4032 - 1 + 2**64 * (_floor_pi_times_2_to_the(3966) + 240904) == MODP_4096


def test_modp_secret_keeps_leading_zeros() -> None:
    """RFC 7296 section 2.14: the secret is as long as the modulus."""
    ours = ModpKeyExchange(GROUPS["modp2048"], 1)
    assert ours.public == bytes(255) + b"\x02"
    assert ours.shared_secret(bytes(255) + b"\x05") == bytes(255) + b"\x05"


@pytest.mark.parametrize("name", GROUPS)
def test_both_ends_share_a_secret_and_random_alone_decides(name: str) -> None:
    group = GROUPS[name]
    ours, again, theirs = (make_key_exchange(group, Random(seed).randbytes, ALL_KEMS) for seed in (1, 1, 2))
    assert len(ours.public) == group.public_length
    assert ours.public == again.public != theirs.public
    assert ours.shared_secret(theirs.public) == theirs.shared_secret(ours.public)


@pytest.mark.parametrize("name", GROUPS)
def test_public_values_of_wrong_length(name: str) -> None:
    exchange = make_key_exchange(GROUPS[name], Random(1).randbytes, ALL_KEMS)
    for length in (0, 1, GROUPS[name].public_length - 1, GROUPS[name].public_length + 1):
        with pytest.raises(PeerError, match="octets"):
            exchange.shared_secret(bytes(length))


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("x25519", bytes(32)),
        ("x448", bytes(56)),
        ("x448", b"\x01" + bytes(55)),
        ("ecp521", bytes(132)),
        ("ecp521", b"\xff" * 132),
        ("modp3072", bytes(384)),
        ("modp3072", (MODP_3072 - 1).to_bytes(384, "big")),
        ("modp4096", bytes(511) + b"\x01"),
        ("modp4096", b"\xff" * 512),
        ("x25519", b"\x01" + bytes(31)),
        ("ecp256", bytes(64)),
        ("ecp256", bytes(63) + b"\x01"),
        ("ecp384", b"\xff" * 96),
        ("modp2048", bytes(256)),
        ("modp2048", bytes(255) + b"\x01"),
        ("modp2048", (MODP_2048 - 1).to_bytes(256, "big")),
        ("modp2048", MODP_2048.to_bytes(256, "big")),
        ("modp2048", b"\xff" * 256),
    ],
)
def test_public_values_outside_the_group(name: str, public: bytes) -> None:
    exchange = make_key_exchange(GROUPS[name], Random(1).randbytes, ALL_KEMS)
    with pytest.raises(PeerError, match=name):
        exchange.shared_secret(public)


# -- ML-KEM --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kems", [native_kems(), LIBRARY_KEMS], ids=["the native module", "the library"])
def test_ml_kem_768_accumulated_vectors(kems: Mapping[str, Kem]) -> None:
    """Community Cryptography Test Vectors: keys, ciphertexts, secrets and implicit rejections of 100 ML-KEM-768 runs
    whose seeds come of SHAKE128, in one hash. Encapsulation, which takes no seed in the library, is the reference's."""
    source = ml_kem.Shake128()
    digest = hashlib.shake_128()
    group = KEMS["mlkem768"]
    for _ in range(100):
        ours = MlKemKeyExchange(group, kems[group.name], source.read(64))
        digest.update(ours.public)
        ciphertext, secret = ml_kem.encapsulate(3, ours.public, source.read(32))
        assert ours.shared_secret(ciphertext) == secret
        digest.update(ciphertext + secret)
        digest.update(ours.shared_secret(source.read(1088)))
    assert digest.hexdigest(32) == "1114b1b6699ed191734fa339376afa7e285c9e6acf6ff0177d346696ce564415"


@pytest.mark.parametrize("vector", ACVP_512["key_pairs"], ids=range(len(ACVP_512["key_pairs"])))
def test_ml_kem_512_key_pairs_of_nist(vector: dict[str, str]) -> None:
    seed = bytes.fromhex(vector["d"] + vector["z"])
    assert MlKemKeyExchange(KEMS["mlkem512"], ALL_KEMS["mlkem512"], seed).public.hex() == vector["ek"]


@pytest.mark.parametrize("vector", ACVP_512["encapsulations"], ids=range(len(ACVP_512["encapsulations"])))
def test_ml_kem_512_encapsulations_of_nist(vector: dict[str, str]) -> None:
    def message(length: int) -> bytes:
        assert length == 32
        return bytes.fromhex(vector["m"])

    ciphertext, secret = answer_key_exchange(KEMS["mlkem512"], bytes.fromhex(vector["ek"]), message, ALL_KEMS)
    assert (ciphertext.hex(), secret.hex()) == (vector["c"], vector["k"])


def test_ml_kem_512_of_many_seeds() -> None:
    """What one half encapsulates the other opens, and any other ciphertext gives J(z || c) (FIPS 203 algorithm 18)."""
    group, kem, randbytes = KEMS["mlkem512"], ALL_KEMS["mlkem512"], Random(512).randbytes
    for _ in range(1000):
        seed, other = randbytes(64), randbytes(768)
        ours = MlKemKeyExchange(group, kem, seed)
        ciphertext, secret = answer_key_exchange(group, ours.public, randbytes, ALL_KEMS)
        assert ours.shared_secret(ciphertext) == secret
        assert ours.shared_secret(other) == hashlib.shake_256(seed[32:] + other).digest(32)


@pytest.mark.parametrize(("name", "kems"), IMPLEMENTATIONS)
def test_ml_kem_against_an_independent_computation(name: str, kems: Mapping[str, Kem]) -> None:
    group, rank = KEMS[name], {"mlkem512": 2, "mlkem768": 3, "mlkem1024": 4}[name]
    for seed in range(5):
        randbytes = Random(seed).randbytes
        ours = make_key_exchange(group, randbytes, kems)
        assert len(ours.public) == group.public_length
        # Our decapsulation of a ciphertext that the reference made.
        ciphertext, secret = ml_kem.encapsulate(rank, ours.public, randbytes(32))
        assert len(ciphertext) == group.response_length
        assert ours.shared_secret(ciphertext) == secret
        # Both halves of one implementation, as the two ends have them.
        ciphertext, secret = answer_key_exchange(group, ours.public, randbytes, kems)
        assert ours.shared_secret(ciphertext) == secret
        # Implicit rejection: another secret, and always the same.
        altered = bytes((ciphertext[0] ^ 1,)) + ciphertext[1:]
        assert ours.shared_secret(altered) == ours.shared_secret(altered) != secret
        again = make_key_exchange(group, Random(seed).randbytes, kems)
        assert again.public == ours.public


@pytest.mark.parametrize("name", sorted(LIBRARY_KEMS))
def test_ml_kem_implementations_understand_each_other(name: str) -> None:
    group, randbytes = KEMS[name], Random(3).randbytes
    for here, there in ((native_kems(), LIBRARY_KEMS), (LIBRARY_KEMS, native_kems())):
        ours = make_key_exchange(group, randbytes, here)
        ciphertext, secret = answer_key_exchange(group, ours.public, randbytes, there)
        assert ours.shared_secret(ciphertext) == secret


@pytest.mark.parametrize(("name", "kems"), IMPLEMENTATIONS)
def test_ml_kem_refuses_what_is_no_key_or_ciphertext(name: str, kems: Mapping[str, Kem]) -> None:
    group = KEMS[name]
    assert group.response_length is not None
    exchange = make_key_exchange(group, Random(1).randbytes, kems)
    for length in (0, 1, group.response_length - 1, group.response_length + 1):
        with pytest.raises(PeerError, match="octets"):
            exchange.shared_secret(bytes(length))
    for length in (0, 1, group.public_length - 1, group.public_length + 1):
        with pytest.raises(PeerError, match="octets"):
            answer_key_exchange(group, bytes(length), Random(2).randbytes, kems)
    # A coefficient that is not below the modulus (FIPS 203 section 7.2).
    with pytest.raises(PeerError, match="malformed"):
        answer_key_exchange(group, b"\xff" * 3 + exchange.public[3:], Random(2).randbytes, kems)
