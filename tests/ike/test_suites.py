from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsvpn.errors import MisuseError
from dsvpn.ike.identity import Identity, IdentityType
from dsvpn.ike.suites import CIPHERS, GROUPS, PRFS, parse_esp_suite, parse_ike_suite


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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("aes128gcm16", "1 part"),
        ("aes128gcm16-prfsha256", "2 parts"),
        ("aes128gcm16-prfsha256-x25519-more", "4 parts"),
        ("aes128gcm8-prfsha256-x25519", "known are aes128gcm16, aes256gcm16, chacha20poly1305"),
        ("aes128gcm16-prfsha224-x25519", "known are prfsha256, prfsha384, prfsha512"),
        ("aes128gcm16-prfsha256-x448", "known are x25519, ecp256, ecp384, modp2048"),
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
        ("aes128", "known are"),
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
