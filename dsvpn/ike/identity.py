"""Identities: what an ID payload says (RFC 7296 section 3.5), and which ones a configuration lets in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

from dsvpn.errors import MisuseError
from dsvpn.ike import distinguished_name

_FQDN = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,253}[A-Za-z0-9_])?\.?")
_RFC822 = re.compile(r"[^@\s\x00-\x1f\x7f]{1,128}@[A-Za-z0-9_]([A-Za-z0-9_.-]{0,253}[A-Za-z0-9_])?")
_DN = re.compile(r"\s*[A-Za-z0-9.]+\s*=.*")
_KEY_ID = "keyid:"
_MAX_KEY_ID = 64


class IdentityType(IntEnum):
    """The ID types that an identity of ours can have."""

    IPV4_ADDR = 1
    FQDN = 2
    RFC822_ADDR = 3
    IPV6_ADDR = 5
    DER_ASN1_DN = 9
    KEY_ID = 11


_TEXT = (IdentityType.FQDN, IdentityType.RFC822_ADDR)


@dataclass(frozen=True, slots=True)
class Identity:
    """An identity as the wire has it. `kind` is the ID type's number (a peer may send one that is not ours to
    parse), `data` the octets behind it."""

    kind: int
    data: bytes

    @classmethod
    def parse(cls, text: str) -> Identity:
        """An identity as a configuration writes it: an address, a name with "@" inside (RFC822), a distinguished name
        ("CN=spoke1,O=Example"), "keyid:" with text or 0x and hexadecimal digits (KEY_ID), else an FQDN.

        Raises MisuseError.
        """
        text = text.strip()
        # The names of peers are parsed in their handshakes: most do not look like an address, which is cheap to see.
        if ":" in text or text[-1:].isdigit():
            try:
                address = ip_address(text)
            except ValueError:
                pass
            else:
                kind = IdentityType.IPV4_ADDR if isinstance(address, IPv4Address) else IdentityType.IPV6_ADDR
                return cls(kind, address.packed)
        if text.startswith(_KEY_ID):
            return cls(IdentityType.KEY_ID, _parse_key_id(text))
        if _DN.fullmatch(text):
            return cls(IdentityType.DER_ASN1_DN, distinguished_name.parse_text(text))
        if _RFC822.fullmatch(text):
            return cls(IdentityType.RFC822_ADDR, text.encode())
        if _FQDN.fullmatch(text):
            return cls(IdentityType.FQDN, text.encode())
        raise MisuseError(
            f"identity {text[:80]!r} is neither an address nor a name; write a name such as spoke1.example.net, "
            f"a mail address such as spoke1@example.net, a distinguished name such as CN=spoke1,O=Example, "
            f"keyid:TEXT, or an IP address"
        )

    @property
    def exact(self) -> Identity | None:
        """The one identity that this stands for: itself."""
        return self

    @property
    def is_octets(self) -> bool:
        """Whether `key` tells identities apart: a distinguished name may be encoded in several ways."""
        return self.kind != IdentityType.DER_ASN1_DN

    @property
    def key(self) -> tuple[int, bytes]:
        """The same for all that match this one, unless it is a distinguished name."""
        return self.kind, self.data.lower() if self.kind in _TEXT else self.data

    def matches(self, other: Identity) -> bool:
        """Whether both name the same. The names of FQDN and RFC822 identities have no case (RFC 4343), nor have
        distinguished names (RFC 5280 section 7.1)."""
        if self.kind != other.kind:
            return False
        if self.kind in _TEXT:
            return self.data.lower() == other.data.lower()
        if self.kind == IdentityType.DER_ASN1_DN and self.data != other.data:
            try:
                # No wildcard here: a peer may call itself "CN=*".
                return distinguished_name.same(
                    distinguished_name.decode(self.data), distinguished_name.decode(other.data)
                )
            except ValueError:
                return False
        return self.data == other.data

    def __str__(self) -> str:
        """For people and logs: bounded, printable, one line."""
        if self.kind == IdentityType.IPV4_ADDR and len(self.data) == 4:
            return str(IPv4Address(self.data))
        if self.kind == IdentityType.IPV6_ADDR and len(self.data) == 16:
            return str(IPv6Address(self.data))
        if self.kind in _TEXT:
            return _printable(self.data[:256].decode("ascii", "backslashreplace"))
        if self.kind == IdentityType.DER_ASN1_DN:
            try:
                return distinguished_name.to_text(self.data)
            except ValueError:
                pass
        if self.kind == IdentityType.KEY_ID:
            text = self.data[:_MAX_KEY_ID].decode("ascii", "replace")
            return f"{_KEY_ID}{text}" if text.isascii() and text.isprintable() else f"{_KEY_ID}0x{self.data[:32].hex()}"
        return f"id-type-{self.kind}:{self.data[:32].hex()}"


@dataclass(frozen=True, slots=True)
class IdentityPattern:
    """Several identities of one kind: "*.example.net" is every FQDN below example.net, "*@example.net" every mail
    address there, and a distinguished name may have "*" for the value of a part. "*" alone is everybody."""

    text: str
    kind: int | None
    suffix: bytes = b""
    name: distinguished_name.DistinguishedName = ()

    @property
    def exact(self) -> Identity | None:
        """A pattern stands for no single identity."""
        return None

    def matches(self, other: Identity) -> bool:
        """Whether `other` is one of them."""
        if self.kind is None:
            return True
        if self.kind != other.kind:
            return False
        if self.kind == IdentityType.DER_ASN1_DN:
            try:
                return distinguished_name.matches(self.name, distinguished_name.decode(other.data))
            except ValueError:
                return False
        data = other.data.lower()
        return data.endswith(self.suffix) and len(data) > len(self.suffix)

    def __str__(self) -> str:
        return self.text


RemoteIdentity = Identity | IdentityPattern


def parse_remote_identity(text: str) -> RemoteIdentity:
    """One identity, or a pattern with "*" in it. Raises MisuseError."""
    text = text.strip()
    if text == "*":
        return IdentityPattern(text, None)
    if text.startswith("*.") and _FQDN.fullmatch(text[2:]):
        return IdentityPattern(text, IdentityType.FQDN, text[1:].lower().encode())
    if text.startswith("*@") and _FQDN.fullmatch(text[2:]):
        return IdentityPattern(text, IdentityType.RFC822_ADDR, text[1:].lower().encode())
    identity = Identity.parse(text)
    if identity.kind == IdentityType.DER_ASN1_DN:
        name = distinguished_name.decode(identity.data)
        if any(value == "*" for rdn in name for _, value in rdn):
            return IdentityPattern(text, identity.kind, name=name)
    return identity


def best_match(candidates: dict[RemoteIdentity, bytes], identity: Identity) -> bytes | None:
    """What stands behind the candidate that names `identity` most closely: itself before the longest pattern."""
    found = [entry for entry in candidates if entry.matches(identity)]
    if not found:
        return None
    return candidates[max(found, key=lambda entry: (entry.exact is not None, len(str(entry))))]


def _parse_key_id(text: str) -> bytes:
    body = text.removeprefix(_KEY_ID)
    try:
        data = bytes.fromhex(body[2:]) if body.startswith("0x") else body.encode("ascii")
    except ValueError:
        data = b""
    if not 1 <= len(data) <= _MAX_KEY_ID:
        raise MisuseError(
            f"identity {text[:80]!r} is no KEY_ID of 1 to {_MAX_KEY_ID} octets; write keyid:TEXT, or keyid:0x and hex"
        )
    return data


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
