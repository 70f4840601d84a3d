"""A small certificate authority in a directory: what `dsvpn pki` does.

    DIR/ca.crt, ca.key     the authority            DIR/NAME.crt, NAME.key     a gateway
    DIR/ca.crl             its revocation list      DIR/index.json             every certificate ever issued

Files appear whole or not at all, keys can be read by their owner alone, and one command at a time changes the
directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dsvpn.addresses import Prefix
from dsvpn.errors import HostError, MisuseError, PeerError
from dsvpn.ike.authentication import address_blocks
from dsvpn.ike.authentication.signatures import PrivateKey
from dsvpn.ike.identity import Identity, IdentityType

#: A clock that is a little behind must not find a new certificate not yet valid.
_BACKDATED = timedelta(minutes=10)
_CRL_DAYS = 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
_BLOCKS = x509.ObjectIdentifier(address_blocks.OID)
_RESERVED = frozenset({"ca", "index"})


class Algorithm(StrEnum):
    """Kinds of keys. Every IKEv2 implementation has ECDSA P-256."""

    ECDSA_P256 = "ecdsa-p256"
    ECDSA_P384 = "ecdsa-p384"
    ED25519 = "ed25519"
    RSA_3072 = "rsa-3072"
    ML_DSA_65 = "ml-dsa-65"

    def make_key(self) -> PrivateKey:
        """A new private key."""
        match self:
            case Algorithm.ECDSA_P256:
                return ec.generate_private_key(ec.SECP256R1())
            case Algorithm.ECDSA_P384:
                return ec.generate_private_key(ec.SECP384R1())
            case Algorithm.ED25519:
                return ed25519.Ed25519PrivateKey.generate()
            case Algorithm.RSA_3072:
                return rsa.generate_private_key(public_exponent=65537, key_size=3072)
            case Algorithm.ML_DSA_65:
                return mldsa.MLDSA65PrivateKey.generate()

    @classmethod
    def of(cls, key: PrivateKey) -> Algorithm:
        """The kind of an existing key."""
        match key:
            case ec.EllipticCurvePrivateKey():
                return cls.ECDSA_P256 if key.curve.name == "secp256r1" else cls.ECDSA_P384
            case rsa.RSAPrivateKey():
                return cls.RSA_3072
            case ed25519.Ed25519PrivateKey():
                return cls.ED25519
            case _:
                return cls.ML_DSA_65


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the index. Times are seconds since 1970."""

    serial: int
    name: str
    issued_at: float
    expires_at: float
    revoked_at: float | None = None


class Authority:
    """The CA of a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certificate_file = directory / "ca.crt"
        self.key_file = directory / "ca.key"
        self.crl_file = directory / "ca.crl"
        self._index_file = directory / "index.json"

    @classmethod
    def create(
        cls, directory: Path, name: str, algorithm: Algorithm, days: int, now: float, prefixes: Iterable[str] = ()
    ) -> Authority:
        """Make a CA in `directory`, which must not have one. `prefixes` bound what it can delegate (RFC 3779)."""
        blocks = _blocks(prefixes)
        authority = cls(directory)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(f"{directory}: cannot be made: {error.strerror}") from None
        with authority._locked():
            if authority.key_file.exists() or authority.certificate_file.exists():
                raise MisuseError(f"{directory} has a CA already; choose another directory")
            key = algorithm.make_key()
            subject = _name(name)
            builder = _builder(subject, subject, key, days, now)
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            builder = builder.add_extension(_key_usage(authority=True), critical=True)
            builder = builder if blocks is None else builder.add_extension(blocks, critical=True)
            certificate = _sign(builder, key)
            _write(authority.key_file, _encode_key(key), secret=True)
            _write(authority.certificate_file, certificate.public_bytes(Encoding.PEM))
            authority._write_index([])
            authority._write_crl(now, _CRL_DAYS)
        return authority

    @classmethod
    def open(cls, directory: Path) -> Authority:
        """The CA that is in `directory`."""
        authority = cls(directory)
        if not authority.key_file.exists():
            raise MisuseError(f"{directory} has no CA; make one with `dsvpn pki init {directory}`")
        return authority

    def issue(
        self,
        name: str,
        identities: list[str],
        algorithm: Algorithm,
        days: int,
        now: float,
        prefixes: Iterable[str] = (),
    ) -> tuple[Path, Path]:
        """Make a gateway's key and certificate; gives their files. `prefixes`: what it may claim (RFC 3779)."""
        blocks = _blocks(prefixes)
        certificate_file, key_file = self._files(name)
        names = [_alternative_name(text) for text in identities]
        with self._locked():
            if certificate_file.exists():
                raise MisuseError(
                    f"{name} has a certificate already; renew it with `dsvpn pki renew {self.directory} {name}`"
                )
            key = algorithm.make_key()
            certificate = self._issue(name, x509.SubjectAlternativeName(names), key, days, now, blocks)
            _write(key_file, _encode_key(key), secret=True)
            _write(certificate_file, certificate.public_bytes(Encoding.PEM))
        return certificate_file, key_file

    def renew(self, name: str, days: int, now: float, new_key: bool = False) -> tuple[Path, Path]:
        """Give a gateway a new certificate with the names of its old one."""
        certificate_file, key_file = self._files(name)
        with self._locked():
            if not certificate_file.exists():
                raise MisuseError(f"{name} has no certificate; make one with `dsvpn pki issue {self.directory} {name}`")
            old = x509.load_pem_x509_certificate(_read(certificate_file))
            names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            key = _load_key(key_file)
            if new_key:
                key = Algorithm.of(key).make_key()
            blocks = next((entry.value for entry in old.extensions if entry.oid == _BLOCKS), None)
            certificate = self._issue(name, names, key, days, now, blocks)
            if new_key:
                _write(key_file, _encode_key(key), secret=True)
            _write(certificate_file, certificate.public_bytes(Encoding.PEM))
        return certificate_file, key_file

    def revoke(self, name: str, now: float) -> list[int]:
        """Revoke what is not expired of a gateway, or one serial number (hex); gives the serial numbers."""
        with self._locked():
            entries = self.entries()
            wanted = [entry for entry in entries if name in (entry.name, f"{entry.serial:x}")]
            if not wanted:
                raise MisuseError(f"the CA has issued nothing to {name!r}; `dsvpn pki list {self.directory}` tells all")
            serials = [entry.serial for entry in wanted if entry.revoked_at is None and entry.expires_at > now]
            if not serials:
                raise MisuseError(f"every certificate of {name!r} is revoked or expired already")
            self._write_index(
                [replace(entry, revoked_at=now) if entry.serial in serials else entry for entry in entries]
            )
            self._write_crl(now, _CRL_DAYS)
        return serials

    def write_crl(self, now: float, days: int) -> None:
        """Make the revocation list anew, valid for so many days."""
        with self._locked():
            self._write_crl(now, days)

    def entries(self) -> list[Entry]:
        """Every certificate that was issued, oldest first."""
        try:
            return [Entry(**entry) for entry in json.loads(_read(self._index_file))]
        except (ValueError, TypeError):
            raise HostError(f"{self._index_file}: the index is damaged; restore it from a backup") from None

    # -- inside ----------------------------------------------------------------------------------------------

    def _issue(
        self,
        name: str,
        names: x509.SubjectAlternativeName,
        key: PrivateKey,
        days: int,
        now: float,
        blocks: x509.ExtensionType | None,
    ) -> x509.Certificate:
        issuer_key = _load_key(self.key_file)
        issuer = x509.load_pem_x509_certificate(_read(self.certificate_file))
        expires = datetime.fromtimestamp(now, UTC) + timedelta(days=days)
        if expires > issuer.not_valid_after_utc:
            raise MisuseError(f"the CA itself expires on {issuer.not_valid_after_utc:%Y-%m-%d}; choose fewer days")
        builder = _builder(_name(name), issuer.subject, key, days, now)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(authority=False), critical=True)
        # What TLS-minded implementations look for, beside what IPsec has (RFC 4945 section 5.1.3.12).
        purposes = [ExtendedKeyUsageOID.IPSEC_IKE, ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        builder = builder.add_extension(names, critical=False)
        if blocks is not None:
            _check_delegation(blocks, issuer)
            # RFC 3779 section 2.1: who does not understand it shall not take it for less than it says.
            builder = builder.add_extension(blocks, critical=True)
        key_identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_identifier), critical=False
        )
        certificate = _sign(builder, issuer_key)
        # Before the certificate leaves: one that the index lacks could never be revoked.
        entry = Entry(certificate.serial_number, name, now, certificate.not_valid_after_utc.timestamp())
        self._write_index([*self.entries(), entry])
        return certificate

    def _write_crl(self, now: float, days: int) -> None:
        key = _load_key(self.key_file)
        issuer = x509.load_pem_x509_certificate(_read(self.certificate_file))
        moment = datetime.fromtimestamp(now, UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject)
        builder = builder.last_update(moment - _BACKDATED).next_update(moment + timedelta(days=days))
        # Grows with every list that is made, as RFC 5280 section 5.2.3 wants it.
        builder = builder.add_extension(x509.CRLNumber(int(now * 1000)), critical=False)
        key_identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_identifier), critical=False
        )
        for entry in self.entries():
            if entry.revoked_at is not None:
                revoked = x509.RevokedCertificateBuilder().serial_number(entry.serial)
                builder = builder.add_revoked_certificate(
                    revoked.revocation_date(datetime.fromtimestamp(entry.revoked_at, UTC)).build()
                )
        _write(self.crl_file, builder.sign(key, _hash(key)).public_bytes(Encoding.PEM))

    def _write_index(self, entries: list[Entry]) -> None:
        _write(self._index_file, json.dumps([asdict(entry) for entry in entries], indent=1).encode() + b"\n")

    def _files(self, name: str) -> tuple[Path, Path]:
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise MisuseError(
                f"{name!r} is no name for a gateway; use letters, digits, '-', '_', '.' and '@', "
                "as in spoke1.example.net"
            )
        return self.directory / f"{name}.crt", self.directory / f"{name}.key"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"{self.directory}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _builder(subject: x509.Name, issuer: x509.Name, key: PrivateKey, days: int, now: float) -> x509.CertificateBuilder:
    moment = datetime.fromtimestamp(now, UTC)
    public = key.public_key()
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(moment - _BACKDATED).not_valid_after(moment + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)


def _sign(builder: x509.CertificateBuilder, key: PrivateKey) -> x509.Certificate:
    return builder.sign(key, _hash(key))


def _hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | None:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return hashes.SHA256() if key.key_size <= 256 else hashes.SHA384()
    return hashes.SHA256() if isinstance(key, rsa.RSAPrivateKey) else None


def _key_usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    except ValueError as error:
        raise MisuseError(f"{text[:80]!r} cannot be a name in a certificate: {error}") from None


def _alternative_name(text: str) -> x509.GeneralName:
    identity = Identity.parse(text)
    match identity.kind:
        case IdentityType.FQDN:
            return x509.DNSName(identity.data.decode())
        case IdentityType.RFC822_ADDR:
            return x509.RFC822Name(identity.data.decode())
        case IdentityType.IPV4_ADDR | IdentityType.IPV6_ADDR:
            return x509.IPAddress(ip_address(identity.data))
    raise MisuseError(f"{text[:80]!r} is no subject alternative name; give a name, user@host or an address")


def _blocks(prefixes: Iterable[str]) -> x509.UnrecognizedExtension | None:
    parsed: list[Prefix] = []
    for text in prefixes:
        try:
            parsed.append(ip_network(text))
        except ValueError:
            raise MisuseError(f"{text[:80]!r} is no prefix; write one like 172.16.1.0/24, or an address") from None
    return x509.UnrecognizedExtension(_BLOCKS, address_blocks.encode(parsed)) if parsed else None


def _check_delegation(blocks: x509.ExtensionType, issuer: x509.Certificate) -> None:
    held = next((entry.value for entry in issuer.extensions if entry.oid == _BLOCKS), None)
    if held is None:
        return
    try:
        address_blocks.decode(blocks.public_bytes()).within(address_blocks.decode(held.public_bytes()))
    except PeerError as error:
        raise MisuseError(f"the new certificate {error}; choose prefixes within those of the CA") from None


def _encode_key(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load_key(file: Path) -> PrivateKey:
    try:
        return cast(PrivateKey, load_pem_private_key(_read(file), None))
    except (ValueError, TypeError):
        raise HostError(f"{file}: this is no private key without passphrase; restore it from a backup") from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise HostError(f"{file}: cannot be read: {error.strerror}") from None


def _write(file: Path, data: bytes, secret: bool = False) -> None:
    """Replace a file at once: a gateway may read it at this very moment."""
    temporary = file.with_name(f".{file.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if secret else 0o644)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        raise HostError(f"{file}: cannot be written: {error.strerror}") from None
