"""Identities: what an ID payload says (RFC 7296 section 3.5)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

from dsvpn.errors import MisuseError

_FQDN = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,253}[A-Za-z0-9_])?\.?")
_RFC822 = re.compile(r"[^@\s\x00-\x1f\x7f]{1,128}@[A-Za-z0-9_]([A-Za-z0-9_.-]{0,253}[A-Za-z0-9_])?")


class IdentityType(IntEnum):
    """The ID types that an identity of ours can have."""

    IPV4_ADDR = 1
    FQDN = 2
    RFC822_ADDR = 3
    IPV6_ADDR = 5


@dataclass(frozen=True, slots=True)
class Identity:
    """An identity as the wire has it. `kind` is the ID type's number (a peer may send one that is not ours to
    parse, such as a distinguished name), `data` the octets behind it."""

    kind: int
    data: bytes

    @classmethod
    def parse(cls, text: str) -> Identity:
        """An identity as a configuration writes it: an address, a name with "@" inside (RFC822), else an FQDN.

        Raises MisuseError.
        """
        text = text.strip()
        try:
            address = ip_address(text)
        except ValueError:
            pass
        else:
            kind = IdentityType.IPV4_ADDR if isinstance(address, IPv4Address) else IdentityType.IPV6_ADDR
            return cls(kind, address.packed)
        if _RFC822.fullmatch(text):
            return cls(IdentityType.RFC822_ADDR, text.encode())
        if _FQDN.fullmatch(text):
            return cls(IdentityType.FQDN, text.encode())
        raise MisuseError(
            f"identity {text[:80]!r} is neither an address nor a name; write a name such as spoke1.example.net, "
            f"a mail address such as spoke1@example.net, or an IP address"
        )

    def matches(self, other: Identity) -> bool:
        """Whether both name the same. The names of FQDN and RFC822 identities have no case (RFC 4343)."""
        if self.kind != other.kind:
            return False
        if self.kind in (IdentityType.FQDN, IdentityType.RFC822_ADDR):
            return self.data.lower() == other.data.lower()
        return self.data == other.data

    def __str__(self) -> str:
        """For people and logs: bounded, printable, one line."""
        if self.kind == IdentityType.IPV4_ADDR and len(self.data) == 4:
            return str(IPv4Address(self.data))
        if self.kind == IdentityType.IPV6_ADDR and len(self.data) == 16:
            return str(IPv6Address(self.data))
        if self.kind in (IdentityType.FQDN, IdentityType.RFC822_ADDR):
            text = self.data[:256].decode("ascii", "backslashreplace")
            return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
        return f"id-type-{self.kind}:{self.data[:32].hex()}"
