from __future__ import annotations

from random import Random

import pytest

from dsvpn.errors import PeerError
from dsvpn.ike.key_exchange import MODP_2048, EcpKeyExchange, ModpKeyExchange, X25519KeyExchange, make_key_exchange
from dsvpn.ike.suites import GROUPS

#: (private, public, peer's private, peer's public, secret): RFC 5903 sections 8.1 and 8.2.
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
}


def test_x25519_rfc7748_section_6_1() -> None:
    group = GROUPS["x25519"]
    alice = X25519KeyExchange(group, bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = X25519KeyExchange(group, bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    secret = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
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


def test_modp_secret_keeps_leading_zeros() -> None:
    """RFC 7296 section 2.14: the secret is as long as the modulus."""
    ours = ModpKeyExchange(GROUPS["modp2048"], 1)
    assert ours.public == bytes(255) + b"\x02"
    assert ours.shared_secret(bytes(255) + b"\x05") == bytes(255) + b"\x05"


@pytest.mark.parametrize("name", GROUPS)
def test_both_ends_share_a_secret_and_random_alone_decides(name: str) -> None:
    group = GROUPS[name]
    ours, theirs = make_key_exchange(group, Random(1).randbytes), make_key_exchange(group, Random(2).randbytes)
    again = make_key_exchange(group, Random(1).randbytes)
    assert len(ours.public) == group.public_length
    assert ours.public == again.public != theirs.public
    assert ours.shared_secret(theirs.public) == theirs.shared_secret(ours.public)


@pytest.mark.parametrize("name", GROUPS)
def test_public_values_of_wrong_length(name: str) -> None:
    exchange = make_key_exchange(GROUPS[name], Random(1).randbytes)
    for length in (0, 1, GROUPS[name].public_length - 1, GROUPS[name].public_length + 1):
        with pytest.raises(PeerError, match="octets"):
            exchange.shared_secret(bytes(length))


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("x25519", bytes(32)),
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
    exchange = make_key_exchange(GROUPS[name], Random(1).randbytes)
    with pytest.raises(PeerError, match=name):
        exchange.shared_secret(public)
