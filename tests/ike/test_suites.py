from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsvpn.errors import MisuseError
from dsvpn.ike.identity import Identity, IdentityType
from dsvpn.ike.suites import (
    CBC_CIPHERS,
    CIPHERS,
    CTR_CIPHERS,
    GROUPS,
    INTEGRITIES,
    KEMS,
    PRFS,
    parse_esp_suite,
    parse_ike_suite,
)


def test_every_ike_suite_has_a_name_that_parses() -> None:
    for cipher in CIPHERS:
        for prf in PRFS:
            for group in GROUPS:
                suite = parse_ike_suite(f"{cipher}-{prf}-{group}")
                assert (suite.cipher.name, suite.prf.name, suite.group.name) == (cipher, prf, group)
                assert parse_ike_suite(suite.name) == suite


def test_every_esp_suite_has_a_name_that_parses() -> None:
    for cipher in CIPHERS:
        assert parse_esp_suite(cipher).group is None
        for group in GROUPS:
            suite = parse_esp_suite(f"{cipher}-{group}")
            assert suite.group is GROUPS[group]
            assert parse_esp_suite(suite.name) == suite
            for kem in KEMS:
                suite = parse_esp_suite(f"{cipher}-{group}-ke1_{kem}")
                assert suite.additional == ((1, KEMS[kem]),)
                assert parse_esp_suite(suite.name) == suite


def test_esp_with_old_peers_names_its_integrity() -> None:
    for cipher in [*CBC_CIPHERS, *CTR_CIPHERS]:
        for integrity in INTEGRITIES:
            suite = parse_esp_suite(f"{cipher}-{integrity}")
            assert suite.transform == suite.name == f"{cipher}-{integrity}"
            suite = parse_esp_suite(f"{cipher}-{integrity}-modp2048")
            assert suite.transform == f"{cipher}-{integrity}"
            assert parse_esp_suite(suite.name) == suite
            assert suite.integrity is INTEGRITIES[integrity]
            # Cipher key, salt of AES-CTR, and an HMAC key as long as the hash.
            expected = int(cipher[3:6]) // 8 + (4 if "ctr" in cipher else 0) + int(integrity[3:]) // 8
            assert suite.keymat_length == expected


def test_additional_key_exchanges_have_names() -> None:
    suite = parse_ike_suite("aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke3_ecp384-ke7_mlkem1024")
    assert [(number, group.name) for number, group in suite.additional] == [
        (1, "mlkem768"),
        (3, "ecp384"),
        (7, "mlkem1024"),
    ]
    assert parse_ike_suite(suite.name) == suite


def test_cbc_suites_name_their_integrity_and_may_leave_out_the_prf() -> None:
    for cipher in CBC_CIPHERS:
        for integrity in INTEGRITIES:
            suite = parse_ike_suite(f"{cipher}-{integrity}-modp2048")
            assert suite.name == f"{cipher}-{integrity}-prf{integrity}-modp2048"
            assert parse_ike_suite(suite.name) == suite
            assert suite.integrity is INTEGRITIES[integrity]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("aes128gcm16", "1 part"),
        ("aes128gcm16-prfsha256", "2 parts"),
        ("aes128gcm16-prfsha256-x25519-more", "4 parts"),
        ("aes128gcm8-prfsha256-x25519", "known are aes128gcm16, aes256gcm16, chacha20poly1305"),
        ("aes128gcm16-prfsha224-x25519", "known are prfsha256, prfsha384, prfsha512"),
        ("aes128gcm16-prfsha256-x25518", "known are x25519, x448, ecp256, ecp384, ecp521, modp2048, modp3072"),
        ("aes128gcm16-prfsha256-x25519-ke1_mlkem768-ke1_mlkem1024", "out of order"),
        ("aes128gcm16-prfsha256-x25519-ke2_mlkem768-ke1_mlkem1024", "out of order"),
        ("aes128gcm16-prfsha256-x25519-ke1_x25519", "twice; write each once"),
        ("aes128gcm16-prfsha256-x25519-ke1_mlkem768-ke2_mlkem768", "twice; write each once"),
        ("aes128gcm16-prfsha256-x25519-ke0_mlkem768", "none of ke1 to ke7; write ke1_mlkem768"),
        ("aes128gcm16-prfsha256-x25519-ke8_mlkem768", "none of ke1 to ke7"),
        ("aes128gcm16-prfsha256-x25519-ke1_kyber768", "known are x25519"),
        ("aes128gcm16-prfsha256-x25519-ke1_modp1024", "MODP-1024 is broken and refused"),
        ("aes128gcm16-prfsha256-mlkem768", "write x25519-ke1_mlkem768"),
        ("aes128-prfsha256-modp2048", "needs an integrity algorithm; write aes128-sha256-prfsha256-ecp256"),
        ("aes128", "needs an integrity algorithm; write"),
        ("aes128-sha1-modp2048", "SHA-1 is broken and refused"),
        ("aes256-md5-modp2048", "MD5 is broken and refused"),
        ("aes128ctr-sha256-modp2048", "AES-CTR is for ESP alone; write aes128gcm16"),
        ("aes128gcm16-prfsha256-modp1536", "MODP-1536 is broken and refused"),
        ("3des-prfsha256-x25519", "3DES is broken and refused"),
        ("des-md5-modp1024", "DES is broken and refused"),
        ("aes128gcm16-prfmd5-x25519", "MD5 is broken and refused"),
        ("aes128gcm16-sha1-x25519", "SHA-1 is broken and refused"),
        ("aes128gcm16-prfsha256-modp1024", "MODP-1024 is broken and refused"),
        ("", "1 part"),
    ],
)
def test_ike_suites_that_are_refused(text: str, says: str) -> None:
    with pytest.raises(MisuseError, match="IKE suite") as caught:
        parse_ike_suite(text)
    assert says in str(caught.value)
    assert "write" in str(caught.value) or "known are" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("aes128gcm16-x25519-esn", "3 parts"),
        ("null", "NULL encryption is broken"),
        ("aes128gcm16-modp1536", "MODP-1536 is broken"),
        ("aes128gcm", "known are"),
        (
            "aes128",
            "is AES-CBC, which needs an integrity algorithm; write aes128-sha256 or, better, aes128gcm16",
        ),
        ("aes192-modp2048", "write aes192-sha256 or, better, aes256gcm16"),
        ("aes256ctr", "is AES-CTR, which needs an integrity algorithm; write aes256ctr-sha256 or, better, aes256gcm16"),
        ("aes128-sha1", "SHA-1 is broken and refused"),
        ("aes128-sha1_160", "needs an integrity algorithm"),
        ("aes256-sha256-modp2048-more", "3 parts"),
        ("aes128gcm16-sha256", "no known key exchange"),
        ("aes128gcm16-ke1_mlkem768", "without a first; write aes128gcm16-x25519-ke1_mlkem768"),
        ("aes128gcm16-x25519-ke1_mlkem768-ke1_ecp256", "out of order"),
        ("aes128gcm16-prfsha256", "no known key exchange"),
    ],
)
def test_esp_suites_that_are_refused(text: str, says: str) -> None:
    with pytest.raises(MisuseError, match="ESP suite") as caught:
        parse_esp_suite(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind", "data"),
    [
        ("spoke1", IdentityType.FQDN, b"spoke1"),
        ("spoke1.example.net", IdentityType.FQDN, b"spoke1.example.net"),
        ("a@b", IdentityType.RFC822_ADDR, b"a@b"),
        ("192.0.2.1", IdentityType.IPV4_ADDR, bytes((192, 0, 2, 1))),
        ("2001:db8::1", IdentityType.IPV6_ADDR, bytes.fromhex("20010db8000000000000000000000001")),
    ],
)
def test_identities(text: str, kind: int, data: bytes) -> None:
    identity = Identity.parse(text)
    assert (identity.kind, identity.data) == (kind, data)
    assert str(identity) == text
    assert identity.matches(identity)


@pytest.mark.parametrize("text", ["", "two words", "a@", "@b", "-dash", "a\nb", "é"])
def test_identities_that_are_refused(text: str) -> None:
    with pytest.raises(MisuseError, match="neither an address nor a name"):
        Identity.parse(text)


def test_names_have_no_case_but_a_kind() -> None:
    assert Identity.parse("Spoke1").matches(Identity.parse("spoke1"))
    assert not Identity(IdentityType.FQDN, b"a").matches(Identity(IdentityType.RFC822_ADDR, b"a"))
    assert not Identity.parse("192.0.2.1").matches(Identity(IdentityType.FQDN, b"192.0.2.1"))


@given(st.integers(0, 255), st.binary(max_size=2000))
def test_any_identity_prints_on_one_bounded_line(kind: int, data: bytes) -> None:
    text = str(Identity(kind, data))
    assert text.isprintable()
    assert len(text) <= 4 * 256
