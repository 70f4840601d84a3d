"""`dsvpn pki`: what it makes is what gateways take."""

from __future__ import annotations

import stat
import subprocess
import time
from ipaddress import ip_network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from rich.console import Console
from typer.testing import CliRunner, Result

from dsvpn.cli.main import app
from dsvpn.config import load_config
from dsvpn.config.credentials import Material
from dsvpn.errors import HostError, MisuseError
from dsvpn.gateway.status import certificates
from dsvpn.ike.authentication.certificate import parse
from dsvpn.ike.authentication.trust import TrustStore
from dsvpn.ike.identity import Identity
from dsvpn.observe.tables import render
from dsvpn.pki import Algorithm, Authority
from tests.cli.command import dsvpn, fails

CONFIG = """\
[gateway]
name = "spoke1.example.net"
[tunnel.dsvpn0]
address = ["10.0.0.11/24"]
source = "lo"
[tunnel.dsvpn0.nhrp]
redirect = true
[ipsec.default.auth]
certificate = "pki/spoke1.example.net.crt"
private_key = "pki/spoke1.example.net.key"
ca = "pki/ca.crt"
crl = "pki/ca.crl"
crl_policy = "require"
"""


def pki(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["pki", *map(str, arguments)])


def good(*arguments: object) -> str:
    done = pki(*arguments)
    assert done.exit_code == 0, done.output
    return done.output


def wrong(*arguments: object) -> str:
    done = pki(*arguments)
    assert isinstance(done.exception, MisuseError | HostError), done.output
    return str(done.exception)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    good("init", tmp_path / "pki", "--name", "Test CA")
    return tmp_path / "pki"


def material(directory: Path) -> Material:
    file = directory.parent / "spoke1.toml"
    file.write_text(CONFIG)
    found = load_config(file).materials["default"]
    assert isinstance(found, Material)
    return found


def certificate(directory: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / f"{name}.crt").read_bytes())


@pytest.mark.parametrize("algorithm", Algorithm)
def test_what_is_issued_is_taken_by_a_gateway(tmp_path: Path, algorithm: str) -> None:
    directory = tmp_path / "pki"
    good("init", directory, "--algorithm", algorithm)
    good("issue", directory, "spoke1.example.net", "--algorithm", algorithm)
    found = material(directory)
    assert found.warnings == ()
    assert found.credentials is not None
    assert found.trust is not None
    assert found.local_identity == Identity.parse("spoke1.example.net")
    assert [crl.revoked for crl in found.trust.crls] == [0]
    assert found.trust.crls[0].is_of(found.trust.authorities[0])


def test_files_and_their_modes(directory: Path) -> None:
    good("issue", directory, "gw")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}
    assert modes == {
        "ca.key": 0o600,
        "gw.key": 0o600,
        "ca.crt": 0o644,
        "ca.crl": 0o644,
        "gw.crt": 0o644,
        "index.json": 0o644,
    }


def test_names_of_every_kind(directory: Path) -> None:
    good(
        "issue",
        directory,
        "gw",
        "--san",
        "gw.example.net",
        "--san",
        "admin@example.net",
        "--san",
        "192.0.2.1",
        "--san",
        "2001:db8::1",
    )
    names = certificate(directory, "gw").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gw.example.net"]
    assert names.get_values_for_type(x509.RFC822Name) == ["admin@example.net"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.1", "2001:db8::1"]


def test_openssl_agrees(directory: Path) -> None:
    good("issue", directory, "gw", "--san", "gw.example.net")
    check = ["openssl", "verify", "-x509_strict", "-crl_check", "-CAfile", str(directory / "ca.crt")]
    check += ["-CRLfile", str(directory / "ca.crl"), str(directory / "gw.crt")]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.stdout.strip().endswith("OK"), done.stderr
    good("revoke", directory, "gw")
    done = subprocess.run(check, capture_output=True, text=True)
    assert "certificate revoked" in done.stderr


def test_prefixes_that_a_gateway_may_claim(tmp_path: Path) -> None:
    directory = tmp_path / "pki"
    good("init", directory, "--prefix", "10.0.0.0/24", "--prefix", "172.16.0.0/12", "--prefix", "fd00::/8")
    good("issue", directory, "gw", "--prefix", "10.0.0.11", "--prefix", "172.16.1.0/24", "--prefix", "fd00::11")
    wanted = tuple(map(ip_network, ("10.0.0.11/32", "172.16.1.0/24", "fd00::11/128")))
    for _ in range(2):
        blocks = parse(certificate(directory, "gw").public_bytes(Encoding.DER)).blocks
        assert blocks is not None
        assert blocks.prefixes() == wanted
        good("renew", directory, "gw")
    check = ["openssl", "verify", "-CAfile", str(directory / "ca.crt"), str(directory / "gw.crt")]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.stdout.strip().endswith("OK"), done.stderr
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-text", "-in", str(directory / "gw.crt")], capture_output=True, text=True
    )
    assert "10.0.0.11/32" in shown.stdout
    assert "issuer does not have" in wrong("issue", directory, "far", "--prefix", "10.1.0.0/16")
    assert "is no prefix" in wrong("issue", directory, "far", "--prefix", "10.0.0.11/24")
    assert not (directory / "far.crt").exists()


def test_revocation_reaches_a_gateway(directory: Path) -> None:
    good("issue", directory, "spoke1.example.net")
    before = material(directory)
    assert "revoked" in good("revoke", directory, "spoke1.example.net")
    after = material(directory)
    assert before.credentials is not None
    assert after.trust is not None
    path = (before.credentials.certificate, after.trust.authorities[0])
    assert "is revoked" in after.trust.revoked(path)
    assert "is revoked" in after.warnings[0]
    assert "revoked" in good("list", directory)
    assert "revoked or expired already" in wrong("revoke", directory, "spoke1.example.net")


def test_one_of_several_certificates_is_revoked_by_serial_number(directory: Path) -> None:
    good("issue", directory, "gw")
    old = certificate(directory, "gw").serial_number
    good("renew", directory, "gw")
    good("revoke", directory, f"{old:x}")
    assert [entry.revoked_at is None for entry in Authority.open(directory).entries()] == [False, True]


@pytest.mark.parametrize("new_key", [False, True])
def test_renewal(directory: Path, new_key: bool) -> None:
    good("issue", directory, "spoke1.example.net", "--days", "10", "--algorithm", "ed25519")
    before, key = certificate(directory, "spoke1.example.net"), (directory / "spoke1.example.net.key").read_bytes()
    good("renew", directory, "spoke1.example.net", "--days", "20", *(["--new-key"] if new_key else []))
    after = certificate(directory, "spoke1.example.net")
    assert after.not_valid_after_utc > before.not_valid_after_utc
    assert after.serial_number != before.serial_number
    assert type(after.public_key()) is type(before.public_key())
    assert ((directory / "spoke1.example.net.key").read_bytes() != key) == new_key
    assert material(directory).warnings == ()


def test_a_list_that_expires_is_made_anew(directory: Path) -> None:
    Authority.open(directory).write_crl(time.time() - 86400 * 9, 5)
    good("issue", directory, "spoke1.example.net")
    assert "is out of date" in material(directory).warnings[0]
    good("crl", directory, "--days", "60")
    assert material(directory).warnings == ()


def test_what_it_refuses(directory: Path, tmp_path: Path) -> None:
    assert "has a CA already" in wrong("init", directory)
    assert "has no CA; make one" in wrong("issue", tmp_path / "none", "gw")
    assert "is no name for a gateway" in wrong("issue", directory, "../gw")
    assert "is no name for a gateway" in wrong("issue", directory, "ca")
    assert "neither an address nor a name" in wrong("issue", directory, "gw", "--san", "not a name!")
    assert "is no subject alternative name" in wrong("issue", directory, "gw", "--san", "CN=gw")
    assert "has no certificate" in wrong("renew", directory, "gw")
    assert "has issued nothing to 'gw'" in wrong("revoke", directory, "gw")
    assert "the CA itself expires on" in wrong("issue", directory, "gw", "--days", "36500")
    assert not (directory / "gw.crt").exists()
    good("issue", directory, "gw")
    assert "has a certificate already; renew it" in wrong("issue", directory, "gw")
    (directory / "index.json").write_text("{")
    assert "index is damaged" in wrong("list", directory)
    assert pki("issue", directory, "x", "--algorithm", "dsa").exit_code == 2


def test_a_ca_that_is_trusted_signs_nothing_deeper(directory: Path) -> None:
    good("issue", directory, "spoke1.example.net")
    found = material(directory)
    assert found.trust is not None
    assert found.trust.authorities[0].path_length == 0
    assert isinstance(found.trust, TrustStore)


def test_check_warns_and_reload_needs_a_gateway(directory: Path, tmp_path: Path) -> None:
    good("issue", directory, "spoke1.example.net")
    (directory / "spoke1.example.net.key").chmod(0o640)
    file = tmp_path / "spoke1.toml"
    file.write_text(CONFIG)
    done = dsvpn("check", file)
    assert done.returncode == 0
    assert done.stdout == f"{file}: good: gateway spoke1.example.net, tunnel dsvpn0 (ipsec default)\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{file}: warning: ipsec.default.auth.private_key: ")
    assert line.endswith("can be read by others; chmod 600 it")
    told = fails(dsvpn("reload", "--socket", tmp_path / "none.sock"), 71)
    assert told == f"{tmp_path}/none.sock: no gateway answers there"


def test_tables_of_certificates(directory: Path) -> None:
    good("issue", directory, "spoke1.example.net")
    text = Console(width=240)
    with text.capture() as captured:
        for table in render("certificates", certificates({"default": material(directory)}, time.time())):
            text.print(table)
    shown = captured.get()
    for word in (
        "default: certificates (spoke1.example.net)",
        "CN=Test CA",
        "ECDSA P-256",
        "ca.crl",
        "(require)",
    ):
        assert word in shown
    assert render("certificates", []) == ["no profile uses certificates"]
