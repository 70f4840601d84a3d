"""Cipher suites by name: what a configuration writes and what a proposal offers.

An IKE suite is `<cipher>-<prf>-<key exchange>`, an ESP suite `<cipher>` or `<cipher>-<key exchange>` where the
key exchange gives each rekeyed CHILD_SA perfect forward secrecy (RFC 7296 section 1.3.1). Every cipher is an
AEAD, so no suite names an integrity algorithm (RFC 5282 section 8).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from dsvpn.errors import MisuseError


@dataclass(frozen=True, slots=True)
class Cipher:
    """An AEAD. `key_length` and `salt_length` are octets; `key_length_attribute` is bits, None where the
    transform takes no attribute (RFC 7634 section 3). `wireshark` is its name in Wireshark's key table, None where that
    has none."""

    name: str
    encryption_id: int
    key_length: int
    key_length_attribute: int | None
    salt_length: int
    wireshark: str | None

    @property
    def keymat_length(self) -> int:
        """Octets of keying material: the key followed by the salt (RFC 4106 section 8.1, RFC 5282 section 7.1)."""
        return self.key_length + self.salt_length


@dataclass(frozen=True, slots=True)
class Prf:
    """A pseudorandom function: HMAC over the named hash. `key_length` is its preferred key length in octets."""

    name: str
    prf_id: int
    hash_name: str
    key_length: int


@dataclass(frozen=True, slots=True)
class Group:
    """A key exchange method. `public_length` is the octets of its public value in a KE payload."""

    name: str
    key_exchange_id: int
    public_length: int


CIPHERS: Final = MappingProxyType(
    {
        cipher.name: cipher
        for cipher in (
            Cipher("aes128gcm16", 20, 16, 128, 4, "AES-GCM-128 with 16 octet ICV [RFC5282]"),
            Cipher("aes256gcm16", 20, 32, 256, 4, "AES-GCM-256 with 16 octet ICV [RFC5282]"),
            Cipher("chacha20poly1305", 28, 32, None, 4, None),
        )
    }
)

PRFS: Final = MappingProxyType(
    {
        prf.name: prf
        for prf in (
            Prf("prfsha256", 5, "sha256", 32),
            Prf("prfsha384", 6, "sha384", 48),
            Prf("prfsha512", 7, "sha512", 64),
        )
    }
)

GROUPS: Final = MappingProxyType(
    {
        group.name: group
        for group in (
            Group("x25519", 31, 32),
            Group("ecp256", 19, 64),
            Group("ecp384", 20, 96),
            Group("modp2048", 14, 256),
        )
    }
)

#: Names that other products accept, and why dsvpn does not (RFC 8247, RFC 8221, RFC 9395).
_REFUSED: Final = MappingProxyType(
    {
        "des": "DES",
        "3des": "3DES",
        "des3": "3DES",
        "null": "NULL encryption",
        "rc4": "RC4",
        "blowfish": "Blowfish",
        "cast": "CAST",
        "idea": "IDEA",
        "md5": "MD5",
        "prfmd5": "MD5",
        "sha": "SHA-1",
        "sha1": "SHA-1",
        "prfsha1": "SHA-1",
        "modp768": "MODP-768",
        "modp1024": "MODP-1024",
        "modp1024s160": "MODP-1024",
        "modp1536": "MODP-1536",
    }
)


@dataclass(frozen=True, slots=True)
class IkeSuite:
    """What protects an IKE SA."""

    cipher: Cipher
    prf: Prf
    group: Group

    @property
    def name(self) -> str:
        """As a configuration writes it."""
        return f"{self.cipher.name}-{self.prf.name}-{self.group.name}"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class EspSuite:
    """What protects a CHILD_SA. `group` gives rekeys perfect forward secrecy; None reuses the IKE SA's secret."""

    cipher: Cipher
    group: Group | None

    @property
    def name(self) -> str:
        """As a configuration writes it."""
        return self.cipher.name if self.group is None else f"{self.cipher.name}-{self.group.name}"

    def __str__(self) -> str:
        return self.name


def parse_ike_suite(text: str) -> IkeSuite:
    """The IKE suite called `text`, such as "aes128gcm16-prfsha256-x25519". Raises MisuseError."""
    parts = _split(text, "IKE")
    if len(parts) != 3:
        raise MisuseError(
            f"IKE suite {text!r} has {len(parts)} part{'s' if len(parts) != 1 else ''}; "
            f"write cipher-prf-keyexchange, such as aes128gcm16-prfsha256-x25519"
        )
    cipher, prf, group = parts
    for part, known, kind in ((cipher, CIPHERS, "cipher"), (prf, PRFS, "PRF"), (group, GROUPS, "key exchange")):
        if part not in known:
            raise _unknown("IKE", text, part, kind, tuple(known))
    return IkeSuite(CIPHERS[cipher], PRFS[prf], GROUPS[group])


def parse_esp_suite(text: str) -> EspSuite:
    """The ESP suite called `text`, such as "aes256gcm16" or "aes256gcm16-x25519". Raises MisuseError."""
    parts = _split(text, "ESP")
    if len(parts) > 2:
        raise MisuseError(
            f"ESP suite {text!r} has {len(parts)} parts; write cipher or cipher-keyexchange, such as aes128gcm16-x25519"
        )
    if parts[0] not in CIPHERS:
        raise _unknown("ESP", text, parts[0], "cipher", tuple(CIPHERS))
    if len(parts) == 2 and parts[1] not in GROUPS:
        raise _unknown("ESP", text, parts[1], "key exchange", tuple(GROUPS))
    return EspSuite(CIPHERS[parts[0]], GROUPS[parts[1]] if len(parts) == 2 else None)


def _split(text: str, kind: str) -> list[str]:
    parts = text.strip().lower().split("-")
    for part in parts:
        if part in _REFUSED:
            raise MisuseError(
                f"{kind} suite {text!r}: {_REFUSED[part]} is broken and refused (RFC 8247, RFC 9395); "
                f"write {'aes128gcm16-prfsha256-x25519' if kind == 'IKE' else 'aes128gcm16-x25519'}"
            )
    return parts


def _unknown(kind: str, text: str, part: str, what: str, known: tuple[str, ...]) -> MisuseError:
    return MisuseError(f"{kind} suite {text!r}: {part!r} is no known {what}; known are {', '.join(known)}")
