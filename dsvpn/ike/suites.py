"""Cipher suites by name: what a configuration writes and what a proposal offers.

An IKE suite is `<cipher>-<prf>-<key exchange>`, an ESP suite `<cipher>` or `<cipher>-<key exchange>` where the
key exchange gives each rekeyed CHILD_SA perfect forward secrecy (RFC 7296 section 1.3.1). Additional key exchanges
follow the first as `ke1_<key exchange>` to `ke7_<key exchange>` (RFC 9370). An AEAD needs no integrity algorithm
(RFC 5282 section 8); AES-CBC, and AES-CTR that ESP alone has, name one behind the cipher:
`<cipher>-<integrity>-<prf>-<key exchange>`, `<cipher>-<integrity>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from dsvpn.errors import MisuseError


@dataclass(frozen=True, slots=True)
class Cipher:
    """A cipher: an AEAD, or AES-CBC or AES-CTR when `aead` is False. `key_length` and `salt_length` are octets;
    `key_length_attribute` is bits, None where the transform takes no attribute (RFC 7634 section 3). `wireshark` is its
    name in Wireshark's key table, None where that has none."""

    name: str
    encryption_id: int
    key_length: int
    key_length_attribute: int | None
    salt_length: int
    wireshark: str | None
    aead: bool = True

    @property
    def keymat_length(self) -> int:
        """Octets of keying material: the key followed by the salt (RFC 4106 section 8.1, RFC 5282 section 7.1), which
        RFC 3686 section 5.1 calls the nonce."""
        return self.key_length + self.salt_length


@dataclass(frozen=True, slots=True)
class Prf:
    """A pseudorandom function: HMAC over the named hash. `key_length` is its preferred key length in octets."""

    name: str
    prf_id: int
    hash_name: str
    key_length: int


@dataclass(frozen=True, slots=True)
class Integrity:
    """HMAC over the named hash, cut to `icv_length` octets (RFC 4868)."""

    name: str
    integrity_id: int
    hash_name: str
    key_length: int
    icv_length: int
    wireshark: str


@dataclass(frozen=True, slots=True)
class Group:
    """A key exchange method. `public_length` is the octets of its public value in a KE payload of the initiator of the
    exchange, `response_length` those of the responder's, where a KEM has another (its ciphertext)."""

    name: str
    key_exchange_id: int
    public_length: int
    response_length: int | None = None

    @property
    def is_kem(self) -> bool:
        """The responder encapsulates to the initiator's public key (FIPS 203)."""
        return self.response_length is not None


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

#: For old peers: AES in CBC mode (RFC 3602).
CBC_CIPHERS: Final = MappingProxyType(
    {
        cipher.name: cipher
        for cipher in (
            Cipher("aes128", 12, 16, 128, 0, "AES-CBC-128 [RFC3602]", aead=False),
            Cipher("aes192", 12, 24, 192, 0, "AES-CBC-192 [RFC3602]", aead=False),
            Cipher("aes256", 12, 32, 256, 0, "AES-CBC-256 [RFC3602]", aead=False),
        )
    }
)

#: For ESP with old peers: AES in counter mode (RFC 3686).
CTR_CIPHERS: Final = MappingProxyType(
    {
        cipher.name: cipher
        for cipher in (
            Cipher("aes128ctr", 13, 16, 128, 4, None, aead=False),
            Cipher("aes192ctr", 13, 24, 192, 4, None, aead=False),
            Cipher("aes256ctr", 13, 32, 256, 4, None, aead=False),
        )
    }
)

INTEGRITIES: Final = MappingProxyType(
    {
        integrity.name: integrity
        for integrity in (
            Integrity("sha256", 12, "sha256", 32, 16, "HMAC_SHA2_256_128 [RFC4868]"),
            Integrity("sha384", 13, "sha384", 48, 24, "HMAC_SHA2_384_192 [RFC4868]"),
            Integrity("sha512", 14, "sha512", 64, 32, "HMAC_SHA2_512_256 [RFC4868]"),
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
            Group("x448", 32, 56),
            Group("ecp256", 19, 64),
            Group("ecp384", 20, 96),
            Group("ecp521", 21, 132),
            Group("modp2048", 14, 256),
            Group("modp3072", 15, 384),
            Group("modp4096", 16, 512),
        )
    }
)

#: Key encapsulation mechanisms (FIPS 203), which serve as additional key exchanges alone.
KEMS: Final = MappingProxyType(
    {
        group.name: group
        for group in (
            Group("mlkem512", 35, 800, 768),
            Group("mlkem768", 36, 1184, 1088),
            Group("mlkem1024", 37, 1568, 1568),
        )
    }
)

#: Transform types ADDKE1 to ADDKE7 (RFC 9370 section 2.2.1).
MAX_ADDITIONAL: Final = 7

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
        "modp2048s224": "MODP-2048 with a 224-bit subgroup",
        "modp2048s256": "MODP-2048 with a 256-bit subgroup",
        "ecp192": "a 192-bit curve",
    }
)

#: Names that are sound, with what stands in the way here and what to write instead.
_ABSENT: Final = MappingProxyType(
    {
        "camellia128": "Camellia is not spoken here; write aes128gcm16",
        "camellia256": "Camellia is not spoken here; write aes256gcm16",
    }
)
_ADDITIONAL: Final = re.compile(r"ke(\d{1,3})_(.*)")


#: An additional key exchange: n of ADDKEn (RFC 9370), and the method.
Additional = tuple[int, Group]


@dataclass(frozen=True, slots=True)
class IkeSuite:
    """What protects an IKE SA. `integrity` is None with an AEAD."""

    cipher: Cipher
    prf: Prf
    group: Group
    integrity: Integrity | None = None
    additional: tuple[Additional, ...] = ()

    @property
    def name(self) -> str:
        """As a configuration writes it."""
        integrity = () if self.integrity is None else (self.integrity.name,)
        return "-".join((self.cipher.name, *integrity, self.prf.name, self.group.name, *_names(self.additional)))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class EspSuite:
    """What protects a CHILD_SA. `group` gives rekeys perfect forward secrecy; None reuses the IKE SA's secret.
    `integrity` is None with an AEAD."""

    cipher: Cipher
    group: Group | None
    additional: tuple[Additional, ...] = ()
    integrity: Integrity | None = None

    @property
    def name(self) -> str:
        """As a configuration writes it."""
        group = () if self.group is None else (self.group.name,)
        return "-".join((self.transform, *group, *_names(self.additional)))

    @property
    def transform(self) -> str:
        """The part of the name that the data plane knows it by: cipher and, unless it is an AEAD, integrity."""
        return self.cipher.name if self.integrity is None else f"{self.cipher.name}-{self.integrity.name}"

    @property
    def keymat_length(self) -> int:
        """Octets of keying material of one direction: the cipher's, then the integrity key (RFC 7296 section 2.17)."""
        return self.cipher.keymat_length + (0 if self.integrity is None else self.integrity.key_length)

    @property
    def iv_length(self) -> int:
        """Octets of the explicit IV: a block in CBC mode (RFC 3602 section 3), else 8 (RFC 3686, RFC 4106)."""
        return 16 if self.cipher.name in CBC_CIPHERS else 8

    @property
    def icv_length(self) -> int:
        """Octets of the ICV at the end of a packet."""
        return 16 if self.integrity is None else self.integrity.icv_length

    @property
    def block_length(self) -> int:
        """Octets that payload, padding and trailer are a multiple of (RFC 4303 section 2.4)."""
        return 16 if self.cipher.name in CBC_CIPHERS else 4

    def __str__(self) -> str:
        return self.name


def parse_ike_suite(text: str) -> IkeSuite:
    """The IKE suite called `text`, such as "aes128gcm16-prfsha256-x25519", "aes256gcm16-prfsha384-x25519-ke1_mlkem768"
    or "aes128-sha256-prfsha256-modp2048" (where the PRF may be left out). Raises MisuseError."""
    parts, additional = _split(text, "IKE")
    integrity: Integrity | None = None
    if parts and parts[0] in CBC_CIPHERS:
        if len(parts) < 2 or parts[1] not in INTEGRITIES:
            raise MisuseError(
                f"IKE suite {text!r}: {parts[0]} is AES-CBC, which needs an integrity algorithm; "
                f"write {parts[0]}-sha256-prfsha256-ecp256 or, better, {parts[0]}gcm16-prfsha256-x25519"
            )
        integrity = INTEGRITIES[parts[1]]
        parts = [parts[0], *parts[2:]]
        if len(parts) == 2 and parts[1] not in PRFS:
            # As strongSwan reads it: the PRF of the same hash.
            parts.insert(1, f"prf{integrity.name}")
    if parts[0] in CTR_CIPHERS:
        raise MisuseError(f"IKE suite {text!r}: AES-CTR is for ESP alone; write aes128gcm16-prfsha256-x25519")
    if len(parts) != 3:
        raise MisuseError(
            f"IKE suite {text!r} has {len(parts)} part{'s' if len(parts) != 1 else ''}; "
            f"write cipher-prf-keyexchange, such as aes128gcm16-prfsha256-x25519"
        )
    cipher, prf, group = parts
    ciphers = {**CIPHERS, **CBC_CIPHERS} if integrity is not None else CIPHERS
    for part, known, kind in ((cipher, ciphers, "cipher"), (prf, PRFS, "PRF"), (group, GROUPS, "key exchange")):
        if part not in known:
            raise _unknown("IKE", text, part, kind, tuple(known))
    _check_additional("IKE", text, GROUPS[group], additional)
    return IkeSuite(ciphers[cipher], PRFS[prf], GROUPS[group], integrity, additional)


def parse_esp_suite(text: str) -> EspSuite:
    """The ESP suite called `text`, such as "aes256gcm16", "aes256gcm16-x25519", "aes256gcm16-x25519-ke1_mlkem768" or,
    for old peers, "aes256-sha256" (CBC) and "aes256ctr-sha256-modp2048". Raises MisuseError."""
    parts, additional = _split(text, "ESP")
    integrity: Integrity | None = None
    ciphers = CIPHERS
    if parts[0] in CBC_CIPHERS or parts[0] in CTR_CIPHERS:
        if len(parts) < 2 or parts[1] not in INTEGRITIES:
            mode = "AES-CTR" if parts[0] in CTR_CIPHERS else "AES-CBC"
            raise MisuseError(
                f"ESP suite {text!r}: {parts[0]} is {mode}, which needs an integrity algorithm; "
                f"write {parts[0]}-sha256 or, better, {parts[0].removesuffix('ctr').replace('192', '256')}gcm16"
            )
        integrity = INTEGRITIES[parts[1]]
        parts = [parts[0], *parts[2:]]
        ciphers = MappingProxyType({**CBC_CIPHERS, **CTR_CIPHERS})
    if len(parts) > 2:
        raise MisuseError(
            f"ESP suite {text!r} has {len(parts)} parts; write cipher or cipher-keyexchange, such as aes128gcm16-x25519"
        )
    if parts[0] not in ciphers:
        raise _unknown("ESP", text, parts[0], "cipher", tuple(ciphers))
    if len(parts) == 2 and parts[1] not in GROUPS:
        raise _unknown("ESP", text, parts[1], "key exchange", tuple(GROUPS))
    group = GROUPS[parts[1]] if len(parts) == 2 else None
    if additional and group is None:
        # RFC 9370 section 2.2.1: additional key exchanges follow one of transform type 4.
        raise MisuseError(
            f"ESP suite {text!r} has additional key exchanges without a first; "
            f"write {parts[0]}-x25519-{'-'.join(_names(additional))}"
        )
    _check_additional("ESP", text, group, additional)
    return EspSuite(ciphers[parts[0]], group, additional, integrity)


def _names(additional: tuple[Additional, ...]) -> tuple[str, ...]:
    return tuple(f"ke{number}_{group.name}" for number, group in additional)


def _split(text: str, kind: str) -> tuple[list[str], tuple[Additional, ...]]:
    """The parts of a suite, and its additional key exchanges apart."""
    parts: list[str] = []
    additional: list[Additional] = []
    for part in text.strip().lower().split("-"):
        match = _ADDITIONAL.fullmatch(part)
        name = part if match is None else match[2]
        if name in _REFUSED:
            raise MisuseError(
                f"{kind} suite {text!r}: {_REFUSED[name]} is broken and refused (RFC 8247, RFC 9395); "
                f"write {'aes128gcm16-prfsha256-x25519' if kind == 'IKE' else 'aes128gcm16-x25519'}"
            )
        if name in _ABSENT:
            raise MisuseError(f"{kind} suite {text!r}: {_ABSENT[name]}")
        if match is None:
            if part in KEMS:
                # One public value of it fills a datagram: IKE_INTERMEDIATE can be fragmented, IKE_SA_INIT cannot.
                raise MisuseError(
                    f"{kind} suite {text!r}: {part} is an additional key exchange; write x25519-ke1_{part}"
                )
            parts.append(part)
            continue
        known = {**GROUPS, **KEMS}
        if not 1 <= int(match[1]) <= MAX_ADDITIONAL:
            raise MisuseError(f"{kind} suite {text!r}: {part!r} is none of ke1 to ke{MAX_ADDITIONAL}; write ke1_{name}")
        if name not in known:
            raise _unknown(kind, text, name, "key exchange", tuple(known))
        additional.append((int(match[1]), known[name]))
    return parts, tuple(additional)


def _check_additional(kind: str, text: str, group: Group | None, additional: tuple[Additional, ...]) -> None:
    numbers = [number for number, _ in additional]
    if numbers != sorted(set(numbers)):
        raise MisuseError(f"{kind} suite {text!r}: additional key exchanges are out of order; write ke1 before ke2")
    groups = [group, *(one for _, one in additional)]
    if len(set(groups)) != len(groups):
        # RFC 9370 section 2.2.1.
        raise MisuseError(f"{kind} suite {text!r} has one key exchange twice; write each once")


def _unknown(kind: str, text: str, part: str, what: str, known: tuple[str, ...]) -> MisuseError:
    return MisuseError(f"{kind} suite {text!r}: {part!r} is no known {what}; known are {', '.join(known)}")
