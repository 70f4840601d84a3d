"""Keys, certificates and revocation lists of a configuration: what is read, and what is said about what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from dsvpn.config.credentials import Material, crl_urls, read_materials
from dsvpn.config.load import load_config, parse_config
from dsvpn.errors import ConfigurationError, HostError
from dsvpn.ike.identity import Identity
from tests.ike.authority import DAY, NOW, Holder, make_key, root
from tests.ike.harness import WALL

NAME = "spoke1.example.net"


def write_key(file: Path, key: Any, encryption: Any = None) -> None:
    file.touch(mode=0o600)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))


def pem(*holders: Holder) -> bytes:
    return b"".join(holder.certificate.x509.public_bytes(Encoding.PEM) for holder in holders)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Certificate, key, CA and CRL of a gateway, and some that are wrong."""
    holder = root().issue(NAME, (NAME, "192.0.2.11"))
    (tmp_path / "gw.crt").write_bytes(pem(holder))
    (tmp_path / "gw.der").write_bytes(holder.certificate.der)
    write_key(tmp_path / "gw.key", holder.key)
    (tmp_path / "ca.crt").write_bytes(pem(root()))
    (tmp_path / "ca.crl").write_bytes(root().crl_octets())
    (tmp_path / "other.crt").write_bytes(pem(root("Other")))
    write_key(tmp_path / "other.key", make_key("ecdsa256", "Other"))
    write_key(tmp_path / "secret.key", holder.key, BestAvailableEncryption(b"passphrase"))
    (tmp_path / "rubbish").write_bytes(b"rubbish")
    (tmp_path / "long").write_bytes(bytes(2 << 20))
    return tmp_path


def read(directory: Path, now: float = WALL, fetched: dict[str, bytes] | None = None, **changes: Any) -> Material:
    auth: dict[str, Any] = {"certificate": "gw.crt", "private_key": "gw.key", "ca": "ca.crt", "crl": "ca.crl"}
    auth = {key: value for key, value in (auth | changes).items() if value is not None}
    data = {
        "gateway": {"name": "spoke1"},
        "tunnel": {"dsvpn0": {"address": "10.0.0.11/24", "source": "lo"}},
        "ipsec": {"default": {"auth": auth}},
    }
    file = directory / "gateway.toml"
    config = parse_config(data, file)
    return read_materials(config, file, now, fetched)["default"]


def test_a_certificate_with_all_that_belongs_to_it(directory: Path) -> None:
    found = read(directory)
    assert found.credentials is not None
    assert found.trust is not None
    assert found.local_identity == Identity.parse(NAME)  # the gateway's own name is not in the certificate
    assert found.warnings == ()
    assert found.psk == b""
    assert [crl.revoked for crl in found.trust.crls] == [0]
    assert read(directory, local_identity="192.0.2.11").local_identity == Identity.parse("192.0.2.11")
    assert read(directory, certificate="gw.der").credentials is not None


def test_a_chain_follows_the_certificate(directory: Path) -> None:
    middle = root().authority("Middle")
    holder = middle.issue(NAME, (NAME,))
    (directory / "chain.crt").write_bytes(pem(holder, middle))
    write_key(directory / "chain.key", holder.key)
    found = read(directory, certificate="chain.crt", private_key="chain.key")
    assert found.credentials is not None
    assert [entry.name for entry in found.credentials.chain] == ["CN=Middle,O=Test"]
    assert found.warnings == ()


def test_shared_keys_by_identity(directory: Path) -> None:
    (directory / "psk").write_text("a secret\n")
    found = read(
        directory,
        certificate=None,
        private_key=None,
        ca=None,
        crl=None,
        psks={"a.example.net": {"file": "psk"}, "*.example.net": "for all"},
    )
    assert [(str(who), key) for who, key in found.psks] == [
        ("a.example.net", b"a secret"),
        ("*.example.net", b"for all"),
    ]
    assert found.local_identity == Identity.parse("spoke1")


@pytest.mark.parametrize(
    ("changes", "key", "why", "instead"),
    [
        ({"private_key": None}, "", "certificate is of no use without private_key", "private_key too"),
        ({"ca": None}, "", "certificate is of no use without ca", "ca too"),
        ({"certificate": None, "private_key": None}, "", "ca is of no use without certificate", ""),
        ({"private_key": "other.key"}, ".private_key", "is not that of the certificate CN=spoke1", "its own key"),
        ({"private_key": "rubbish"}, ".private_key", "rubbish holds no private key", "a key in PEM or DER"),
        ({"private_key": "secret.key"}, ".private_key", "secret.key is encrypted", "a key without a passphrase"),
        ({"certificate": "rubbish"}, ".certificate", "does not decode", "X.509 certificates in PEM or DER"),
        ({"certificate": "gw.key"}, ".certificate", "does not decode", "X.509 certificates"),
        ({"certificate": "long"}, ".certificate", "is longer than 1048576 octets", "a smaller file"),
        ({"ca": "gw.crt"}, ".ca.0", "is not of a CA", "the certificate of a CA"),
        ({"ca": ["ca.crt", "rubbish"]}, ".ca.1", "does not decode", "X.509 certificates"),
        ({"crl": "rubbish"}, ".crl.0", "is no CRL in PEM or DER", ""),
        ({"local_identity": "spoke2.example.net"}, ".local_identity", "does not carry the identity spoke2", ""),
        ({"remote_identity": "not a name!"}, ".remote_identity", "neither an address nor a name", "a name such as"),
        ({"psks": {"not a name!": "x"}}, ".psks.not a name!", "neither an address nor a name", "a name such as"),
        ({"psks": {"a": ""}}, ".psks.a", "the pre-shared key is empty", "at least one octet"),
        ({"certificate": None, "private_key": None, "ca": None, "crl": None}, "", "nothing to prove who we are", "psk"),
        ({"crl_policy": "never"}, ".crl_policy", "", ""),
    ],
)
def test_errors_name_key_reason_and_cure(
    directory: Path, changes: dict[str, Any], key: str, why: str, instead: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read(directory, **changes)
    assert raised.value.key == f"ipsec.default.auth{key}"
    assert why in raised.value.why
    assert instead in raised.value.instead


@pytest.mark.parametrize("key", ["certificate", "private_key", "ca", "crl"])
def test_files_that_cannot_be_read(directory: Path, key: str) -> None:
    changes: dict[str, Any] = {key: "none"}
    with pytest.raises(HostError, match=rf"ipsec\.default\.auth\.{key}.*: .*none cannot be read: No such file"):
        read(directory, **changes)


@pytest.mark.parametrize(
    ("days", "says"),
    [(2, "expired on"), (-2, "is not valid before")],
)
def test_dates_are_warnings(directory: Path, days: int, says: str) -> None:
    found = read(directory, (NOW + days * DAY).timestamp())
    assert says in found.warnings[0]
    assert "peers will refuse it until it is replaced" in found.warnings[0]


def test_warnings(directory: Path) -> None:
    (directory / "gw.key").chmod(0o644)
    assert "can be read by others; chmod 600 it" in read(directory).warnings[0]
    (directory / "gw.key").chmod(0o600)
    assert "which no trusted CA vouches for; peers" in read(directory, ca="other.crt").warnings[-1]
    (directory / "other.crl").write_bytes(root("Other").crl_octets())
    assert "is signed by none of the CAs in ca" in read(directory, crl=["ca.crl", "other.crl"]).warnings[0]
    (directory / "ca.crl").write_bytes(root().crl_octets(issued=NOW - 3 * DAY, due=NOW - DAY))
    assert "is out of date" in read(directory).warnings[0]


def test_lists_by_url(directory: Path) -> None:
    url = "http://pki.example.net/ca.crl"
    found = read(directory, crl=["ca.crl", url])
    assert found.trust is not None
    assert len(found.trust.crls) == 1
    fetched = read(directory, crl=["ca.crl", url], fetched={url: root().crl_octets()})
    assert fetched.trust is not None
    assert [crl.source for crl in fetched.trust.crls][1] == url
    assert "is no CRL" in read(directory, crl=[url], fetched={url: b"<html>"}).warnings[0]


def test_the_urls_of_a_configuration(directory: Path) -> None:
    text = """
[gateway]
name = "spoke1"
[tunnel.dsvpn0]
address = ["10.0.0.11/24"]
source = "lo"
[ipsec.default.auth]
certificate = "gw.crt"
private_key = "gw.key"
ca = "ca.crt"
crl = ["ca.crl", "https://one.example/a", "http://two.example/b"]
"""
    (directory / "gateway.toml").write_text(text)
    config = load_config(directory / "gateway.toml")
    assert crl_urls(config) == ("https://one.example/a", "http://two.example/b")
    assert config.file == directory / "gateway.toml"
    for name in ("materials", "file"):
        (directory / "gateway.toml").write_text(f"{name} = 1\n" + text)
        with pytest.raises(ConfigurationError, match=f"{name}: there is no such key"):
            load_config(directory / "gateway.toml")
