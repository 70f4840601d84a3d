"""strongSwan and us: who proves what and how, and large certificates in fragments."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from dsvpn.lab.gateways import Settings
from dsvpn.pki import Algorithm, Authority
from tests.interop.pair import PLAIN, Connection, End, Pair, profile

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.interop, pytest.mark.slow]

both_directions = pytest.mark.parametrize("initiator", ["ours", "theirs"])
OURS, THEIRS = "ours.example.net", "strongswan.example.net"


def certified(directory: Path, **more: str) -> Settings:
    """Our end with the certificate of a directory."""
    auth = {
        "certificate": f'"{directory / OURS}.crt"',
        "private_key": f'"{directory / OURS}.key"',
        "ca": f'"{directory / "ca.crt"}"',
        "remote_identity": f'"{THEIRS}"',
    }
    return PLAIN.but(auth=auth | more)


def connection(**changes: object) -> Connection:
    """Their end with a certificate."""
    return Connection(psk=None, identity=THEIRS, remote_identity=OURS).but(**changes)


def files(directory: Path) -> dict[str, Path]:
    """Their certificate, its key and the CA."""
    return {
        "x509/strongswan.crt": directory / f"{THEIRS}.crt",
        "private/strongswan.key": directory / f"{THEIRS}.key",
        "x509ca/ca.crt": directory / "ca.crt",
    }


def pki(directory: Path, algorithm: Algorithm) -> Authority:
    """A CA with a certificate for each end."""
    now = time.time()
    authority = Authority.create(directory, "Interoperability CA", algorithm, 300, now)
    for name in (OURS, THEIRS):
        authority.issue(name, [name], algorithm, 30, now)
    return authority


@pytest.mark.feature("Authentication", "pre-shared key")
@both_directions
def test_psk(pair: Pair, initiator: End) -> None:
    sa = pair.connect(initiator)
    assert sa["authentication"] == "pre-shared key"
    assert sa["remote_identity"] == "strongswan"
    pair.check_traffic()


@pytest.mark.feature("Authentication", "a wrong pre-shared key is refused and named")
@both_directions
def test_wrong_psk(pair: Pair, initiator: End) -> None:
    pair.prepare(Connection(psk="another key"), initiator)
    pair.start_ours()
    if initiator == "theirs":
        output = pair.theirs.swanctl_run("--initiate --child gre --timeout 10", check=False)
        assert "AUTH_FAILED" in output or "AUTHENTICATION_FAILED" in output, output
        (refused, *_) = pair.gateway.show("peers")["refused"]
        assert "pre-shared key" in refused["reason"]
    else:
        reason = pair.wait(lambda: pair.peer()["last_error"], "our call to fail")
        assert "AUTHENTICATION_FAILED" in reason
    assert not pair.peer()["child_sas"]


@pytest.mark.feature("Authentication", "certificates, {algorithm}")
@pytest.mark.parametrize("algorithm", ["ecdsa-p256", "ecdsa-p384", "ed25519", "rsa-3072"])
@both_directions
def test_certificates(pair: Pair, algorithm: str, initiator: End, tmp_path: Path) -> None:
    pki(tmp_path / "pki", Algorithm(algorithm))
    sa = pair.connect(
        initiator, settings=certified(tmp_path / "pki"), connection=connection(), files=files(tmp_path / "pki")
    )
    assert sa["remote_identity"] == THEIRS
    assert sa["authentication"] != "pre-shared key"
    pair.check_traffic()


@pytest.mark.feature("Authentication", "certificates, RSA with PKCS#1 v1.5 signatures")
@both_directions
def test_rsa_pkcs1(pair: Pair, initiator: End, tmp_path: Path) -> None:
    pki(tmp_path / "pki", Algorithm.RSA_3072)
    theirs = connection(local={"auth": "rsa-sha256"}, remote={"auth": "rsa-sha256"})
    pair.connect(
        initiator,
        settings=certified(tmp_path / "pki", rsa_signature='"pkcs1"'),
        connection=theirs,
        files=files(tmp_path / "pki"),
    )
    pair.check_traffic()


@pytest.mark.feature("Authentication", "certificates of a peer without RFC 7427 (ECDSA P-256)")
@both_directions
def test_classic_signatures(pair: Pair, initiator: End, tmp_path: Path) -> None:
    pki(tmp_path / "pki", Algorithm.ECDSA_P256)
    pair.theirs.restart("signature_authentication = no")
    try:
        pair.connect(
            initiator, settings=certified(tmp_path / "pki"), connection=connection(), files=files(tmp_path / "pki")
        )
        pair.check_traffic()
    finally:
        pair.theirs.restart()


@pytest.mark.feature("Refused", "RSA of a peer without RFC 7427: strongSwan then signs with SHA-1")
@both_directions
def test_classic_rsa(pair: Pair, initiator: End, tmp_path: Path) -> None:
    # RFC 7296 section 3.8 has SHA-1 as the default of this method, RFC 8247 section 3.2 forbids it.
    pki(tmp_path / "pki", Algorithm.RSA_3072)
    pair.theirs.restart("signature_authentication = no")
    try:
        pair.prepare(connection(), initiator, files=files(tmp_path / "pki"))
        pair.start_ours(certified(tmp_path / "pki"))
        if initiator == "theirs":
            assert "AUTH_FAILED" in pair.theirs.swanctl_run("--initiate --child gre --timeout 10", check=False)
            (refused, *_) = pair.gateway.show("peers")["refused"]
            assert "SHA-1" in refused["reason"]
        else:
            assert "AUTHENTICATION_FAILED" in pair.wait(lambda: pair.peer()["last_error"], "our call to fail")
        assert not pair.peer()["child_sas"]
    finally:
        pair.theirs.restart()


@pytest.mark.feature("Authentication", "a revoked certificate is refused by us")
@both_directions
def test_revoked_by_us(pair: Pair, initiator: End, tmp_path: Path) -> None:
    authority = pki(tmp_path / "pki", Algorithm.ECDSA_P256)
    authority.revoke(THEIRS, time.time())
    settings = certified(tmp_path / "pki", crl=f'"{authority.crl_file}"')
    pair.prepare(connection(), initiator, files=files(tmp_path / "pki"))
    pair.start_ours(settings)
    if initiator == "theirs":
        assert "AUTH_FAILED" in pair.theirs.swanctl_run("--initiate --child gre --timeout 10", check=False)
        (refused, *_) = pair.gateway.show("peers")["refused"]
        assert "revoked" in refused["reason"]
    else:
        assert "revoked" in pair.wait(lambda: pair.peer()["last_error"], "our call to fail")
    assert not pair.peer()["child_sas"]


@pytest.mark.feature("Authentication", "our revoked certificate is refused by them")
@both_directions
def test_revoked_by_strongswan(pair: Pair, initiator: End, tmp_path: Path) -> None:
    authority = pki(tmp_path / "pki", Algorithm.ECDSA_P256)
    authority.revoke(OURS, time.time())
    theirs = connection(remote={"revocation": "strict"})
    pair.prepare(theirs, initiator, files=files(tmp_path / "pki") | {"x509crl/ca.crl": authority.crl_file})
    pair.start_ours(certified(tmp_path / "pki"))
    if initiator == "theirs":
        pair.theirs.swanctl_run("--initiate --child gre --timeout 10", check=False)
    else:
        assert "AUTHENTICATION_FAILED" in pair.wait(lambda: pair.peer()["last_error"], "our call to fail")
    assert "revoked" in pair.theirs.log()
    pair.wait(lambda: not pair.peer()["child_sas"], "the SA to go")


def rsa_chain(directory: Path) -> None:
    """RSA-4096 throughout: a root, an intermediate CA that signs both ends, which send it along."""
    directory.mkdir()
    now = datetime.datetime.now(datetime.UTC)

    def certify(
        name: str, signer: tuple[x509.Name, rsa.RSAPrivateKey] | None, *, authority: bool
    ) -> tuple[x509.Certificate, rsa.RSAPrivateKey]:
        key = rsa.generate_private_key(public_exponent=65537, key_size=4096)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer, issuer_key = signer or (subject, key)
        builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=9))
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        if not authority:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        return builder.sign(issuer_key, hashes.SHA512()), key

    root, root_key = certify("Root", None, authority=True)
    middle, middle_key = certify("Intermediate", (root.subject, root_key), authority=True)
    pem = serialization.Encoding.PEM
    (directory / "ca.crt").write_bytes(root.public_bytes(pem))
    (directory / "middle.crt").write_bytes(middle.public_bytes(pem))
    for name in (OURS, THEIRS):
        certificate, key = certify(name, (middle.subject, middle_key), authority=False)
        (directory / f"{name}.crt").write_bytes(certificate.public_bytes(pem) + middle.public_bytes(pem))
        secret = directory / f"{name}.key"
        secret.touch(mode=0o600)
        secret.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("chain") / "pki"
    rsa_chain(directory)
    return directory


@pytest.mark.feature(
    "Authentication", "RSA-4096 chain with an intermediate CA, in fragments of {size} octets (RFC 7383)"
)
@pytest.mark.parametrize("size", [576, 1280])
@both_directions
def test_large_certificates(pair: Pair, size: int, initiator: End, chain: Path) -> None:
    pair.theirs.restart(f"fragment_size = {size}")
    try:
        settings = certified(chain)
        settings = settings.but(profile=dict(settings.profile) | {"fragment_size": str(size)})
        pair.connect(
            initiator,
            settings=settings,
            connection=connection(options={"fragmentation": "yes"}),
            files=files(chain) | {"x509ca/middle.crt": chain / "middle.crt"},
        )
        log = pair.theirs.log()
        assert "EF(" in log, "nothing went in fragments"
        pair.check_traffic()
    finally:
        pair.theirs.restart()


PPK = "a post-quantum preshared key of 32+ octets"


@pytest.mark.feature("Post-quantum preshared key (RFC 8784)", "{ours} by us, {theirs} by them")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("required", "required"), ("optional", "optional"), ("required", "optional"), ("optional", "required")],
)
@both_directions
def test_ppk(pair: Pair, ours: str, theirs: str, initiator: End, tmp_path: Path) -> None:
    key = tmp_path / "ppk"
    key.touch(mode=0o600)
    key.write_text(PPK)
    required = "true" if ours == "required" else "false"
    options = {"ppk_id": "quantum", "ppk_required": "yes" if theirs == "required" else "no"}
    sa = pair.connect(
        initiator,
        settings=profile(ppk=f'{{ id = "quantum", file = "{key}", required = {required} }}'),
        connection=Connection(options=options, secrets=f'  ppk-1 {{ id = quantum\n secret = "{PPK}" }}\n'),
    )
    assert sa["ppk"] == "quantum"
    pair.check_traffic()
    pair.rekey_ike()
    pair.check_traffic()


@pytest.mark.feature(
    "Post-quantum preshared key (RFC 8784)", "optional by one end that has one, {who}: goes on without"
)
@pytest.mark.parametrize("who", ["us", "them"])
@both_directions
def test_ppk_of_one_end(pair: Pair, who: str, initiator: End, tmp_path: Path) -> None:
    key = tmp_path / "ppk"
    key.touch(mode=0o600)
    key.write_text(PPK)
    settings, theirs = PLAIN, Connection()
    if who == "us":
        settings = profile(ppk=f'{{ id = "quantum", file = "{key}", required = false }}')
    else:
        theirs = Connection(
            options={"ppk_id": "quantum", "ppk_required": "no"},
            secrets=f'  ppk-1 {{ id = quantum\n secret = "{PPK}" }}\n',
        )
    sa = pair.connect(initiator, settings=settings, connection=theirs)
    assert not sa["ppk"]
    pair.check_traffic()
