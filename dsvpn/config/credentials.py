"""Keys, certificates and revocation lists that a configuration names: read, taken apart and checked against each other.

A gateway reads them when it starts and again when it is told to reload.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key, load_pem_private_key

from dsvpn.config.model import AuthConfig, Config, PskFile
from dsvpn.errors import ConfigurationError, HostError, MisuseError, PeerError
from dsvpn.ike.authentication.certificate import Certificate, parse
from dsvpn.ike.authentication.credentials import Credentials
from dsvpn.ike.authentication.revocation import MAX_CRL, Crl, parse_crl
from dsvpn.ike.authentication.signatures import PrivateKey, key_kind
from dsvpn.ike.authentication.trust import TrustStore
from dsvpn.ike.identity import Identity, RemoteIdentity, parse_remote_identity

#: Longest key file that is read, octets.
_MAX_PSK = 4096
_MAX_PEM = 1 << 20
_URL = re.compile(r"https?://\S+")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Material:
    """What an [ipsec.NAME.auth] section comes to. `warnings` are what an operator should know and nothing prevents."""

    psk: bytes = field(repr=False)
    psks: tuple[tuple[RemoteIdentity, bytes], ...] = field(repr=False)
    credentials: Credentials | None
    trust: TrustStore | None
    local_identity: Identity
    remote_identity: RemoteIdentity | None
    warnings: tuple[str, ...] = ()


def is_url(text: str) -> bool:
    """Whether an entry of `crl` is fetched instead of read."""
    return _URL.fullmatch(text) is not None


def crl_urls(config: Config) -> tuple[str, ...]:
    """Every URL that a profile's `crl` names."""
    urls = (entry for profile in config.ipsec.values() for entry in profile.auth.crl if is_url(entry))
    return tuple(dict.fromkeys(urls))


def read_materials(
    config: Config, path: Path, now: float, fetched: Mapping[str, bytes] | None = None
) -> dict[str, Material]:
    """The materials by profile. `now` is the time of day (seconds since 1970), `fetched` has lists by their URL.

    Raises ConfigurationError and HostError, as `load_config` does.
    """
    return {
        name: _Reader(path, f"ipsec.{name}.auth", fetched or {}).read(profile.auth, config.gateway.name, now)
        for name, profile in config.ipsec.items()
    }


def read_key_file(name: Path, key: str, path: Path) -> bytes:
    """A secret that the key `key` of the configuration `path` names, one trailing newline removed."""
    file = path.parent / name
    try:
        with file.open("rb") as stream:
            secret = stream.read(_MAX_PSK + 1)
    except OSError as error:
        raise HostError(f"{path}: {key}: the key file {file} cannot be read: {error.strerror}") from None
    if len(secret) > _MAX_PSK:
        raise ConfigurationError(str(path), key, f"{file} is longer than {_MAX_PSK} octets", "a shorter key")
    return secret.removesuffix(b"\n").removesuffix(b"\r")


class _Reader:
    """Reads the files of one section; errors name the configuration file, the key and the file."""

    def __init__(self, path: Path, section: str, fetched: Mapping[str, bytes]) -> None:
        self._path = path
        self._section = section
        self._fetched = fetched
        self._warnings: list[str] = []

    def read(self, auth: AuthConfig, gateway: str, now: float) -> Material:
        psk = b"" if auth.psk is None else self._psk("psk", auth.psk)
        psks = tuple(
            (self._try(f"psks.{name}", parse_remote_identity, name), self._psk(f"psks.{name}", value))
            for name, value in auth.psks.items()
        )
        credentials = self._credentials(auth, now) if auth.certificate is not None else None
        trust = None if credentials is None else self._trust(auth, now)
        if auth.local_identity is not None:
            local = self._try("local_identity", Identity.parse, auth.local_identity)
        elif credentials is not None:
            local = credentials.choose_identity(gateway)
        else:
            local = Identity.parse(gateway)
        if credentials is not None:
            self._try("local_identity", credentials.check_identity, local)
            if trust is not None:
                self._check_own_path(credentials, trust, now)
        remote = auth.remote_identity
        return Material(
            psk,
            psks,
            credentials,
            trust,
            local,
            None if remote is None else self._try("remote_identity", parse_remote_identity, remote),
            tuple(self._warnings),
        )

    def _credentials(self, auth: AuthConfig, now: float) -> Credentials:
        assert auth.certificate is not None
        assert auth.private_key is not None
        certificate, *chain = self._certificates("certificate", auth.certificate)
        key = self._private_key(auth.private_key)
        try:
            certificate.check_validity(datetime.fromtimestamp(now, UTC))
        except PeerError as error:
            # It may be the clock that is wrong, and a reload brings a new one: peers decide.
            self._warnings.append(f"{self._section}.certificate: {error}; peers will refuse it until it is replaced")
        try:
            return Credentials(certificate, key, tuple(chain), auth.rsa_signature == "pss")
        except MisuseError as error:
            where = "private_key" if "private key" in str(error) else "certificate"
            raise self._wrong(where, str(error), "a certificate and its own key") from None

    def _trust(self, auth: AuthConfig, now: float) -> TrustStore:
        wall = datetime.fromtimestamp(now, UTC)
        authorities = []
        for number, file in enumerate(auth.ca):
            key = f"ca.{number}"
            for certificate in self._certificates(key, file):
                try:
                    TrustStore([certificate])
                except MisuseError as error:
                    raise self._wrong(key, str(error), "the certificate of a CA") from None
                try:
                    certificate.check_validity(wall)
                except PeerError as error:
                    self._warnings.append(f"{self._section}.{key}: {error}; no peer of this CA can be accepted")
                authorities.append(certificate)
        store = TrustStore(authorities, require_crl=auth.crl_policy == "require")
        crls = [crl for number, entry in enumerate(auth.crl) if (crl := self._crl(f"crl.{number}", entry)) is not None]
        for crl in crls:
            if not any(crl.is_of(authority) for authority in authorities):
                self._warnings.append(f"{self._section}.crl: {crl.source} is signed by none of the CAs in ca")
            elif not crl.is_current(wall):
                self._warnings.append(f"{self._section}.crl: {crl.source} is out of date: its next update was due")
        return store.with_crls(crls)

    def _check_own_path(self, credentials: Credentials, trust: TrustStore, now: float) -> None:
        try:
            lenient = TrustStore(trust.authorities, trust.crls)
            lenient.validate_parsed(credentials.certificate, credentials.chain, datetime.fromtimestamp(now, UTC))
        except PeerError as error:
            self._warnings.append(f"{self._section}.certificate: {error}; peers with the same CAs will refuse it")

    def _crl(self, key: str, entry: str) -> Crl | None:
        if is_url(entry):
            data = self._fetched.get(entry)
            if data is None:
                return None
            try:
                return parse_crl(data, entry)
            except MisuseError as error:
                self._warnings.append(f"{self._section}.{key}: {error}")
                return None
        data, file = self._bytes(key, Path(entry), MAX_CRL)
        return self._try(key, lambda octets: parse_crl(octets, str(file)), data)

    def _certificates(self, key: str, name: Path) -> list[Certificate]:
        data, file = self._bytes(key, name, _MAX_PEM)
        blocks: list[bytes] = _PEM.findall(data)
        try:
            ders = [x509.load_pem_x509_certificate(block) for block in blocks]
            found = [parse(certificate.public_bytes(Encoding.DER)) for certificate in ders] if blocks else [parse(data)]
        except PeerError as error:
            raise self._wrong(key, f"{file}: {error}", "a file with X.509 certificates in PEM or DER") from None
        except ValueError:
            raise self._wrong(key, f"{file} holds no readable certificate", "a file with X.509 certificates") from None
        return found

    def _private_key(self, name: Path) -> PrivateKey:
        data, file = self._bytes("private_key", name, _MAX_PEM)
        if file.stat().st_mode & 0o077:
            self._warnings.append(f"{self._section}.private_key: {file} can be read by others; chmod 600 it")
        load: Callable[..., object] = load_pem_private_key if b"-----BEGIN" in data else load_der_private_key
        try:
            key = load(data, None)
            key_kind(key)
        except TypeError:
            raise self._wrong("private_key", f"{file} is encrypted", "the path of a key without a passphrase") from None
        except (ValueError, UnsupportedAlgorithm):
            raise self._wrong("private_key", f"{file} holds no private key", "a key in PEM or DER") from None
        except MisuseError as error:
            raise self._wrong("private_key", f"{file}: {error}", "an ECDSA, Ed25519, RSA or ML-DSA key") from None
        return cast(PrivateKey, key)

    def _psk(self, key: str, value: PskFile | str) -> bytes:
        full = f"{self._section}.{key}"
        secret = value.encode() if isinstance(value, str) else read_key_file(value.file, full, self._path)
        if not secret:
            raise ConfigurationError(
                str(self._path), full, "the pre-shared key is empty", "at least one octet, better 32"
            )
        return secret

    def _bytes(self, key: str, name: Path, most: int) -> tuple[bytes, Path]:
        file = self._path.parent / name
        try:
            with file.open("rb") as stream:
                data = stream.read(most + 1)
        except OSError as error:
            raise HostError(f"{self._path}: {self._section}.{key}: {file} cannot be read: {error.strerror}") from None
        if len(data) > most:
            raise self._wrong(key, f"{file} is longer than {most} octets", "the path of a smaller file")
        return data, file

    def _try(self, key: str, function: Callable[..., _T], value: object) -> _T:
        try:
            return function(value)
        except MisuseError as error:
            why, _, instead = str(error).partition("; write ")
            raise self._wrong(key, why, instead) from None

    def _wrong(self, key: str, why: str, instead: str) -> ConfigurationError:
        return ConfigurationError(str(self._path), f"{self._section}.{key}", why, instead)
