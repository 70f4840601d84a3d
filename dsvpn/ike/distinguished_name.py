"""Distinguished names: the DER of an ID payload or a certificate, as values to compare and as text (RFC 5280 section
4.1.2.4, RFC 4514)."""

from __future__ import annotations

import re
from typing import Final

from cryptography import x509

from dsvpn.errors import MisuseError

#: (attribute type as dotted decimals, value) of one RDN; nearly always one pair.
Rdn = frozenset[tuple[str, str]]
DistinguishedName = tuple[Rdn, ...]

#: Longest name that is taken apart, octets, and the most RDNs in it.
_MAX_LENGTH: Final = 2048
_MAX_RDNS: Final = 32

_SEQUENCE: Final = 0x30
_SET: Final = 0x31
_OID: Final = 0x06
#: String types by tag (X.680) and how their octets are read.
_STRINGS: Final = {12: "utf-8", 18: "ascii", 19: "ascii", 20: "latin-1", 22: "ascii", 28: "utf-32-be", 30: "utf-16-be"}

_SHORT: Final = {
    "2.5.4.3": "CN",
    "2.5.4.4": "SN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "street",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.12": "title",
    "2.5.4.42": "GN",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress",
}
_COMMA: Final = re.compile(r"(?<!\\),\s*")


def parse_text(text: str) -> bytes:
    """The DER of a name such as "CN=spoke1,O=Example" (RFC 4514: the most specific part first). Raises MisuseError."""
    try:
        name = x509.Name.from_rfc4514_string(
            _COMMA.sub(",", text.strip()), {"E": x509.NameOID.EMAIL_ADDRESS, "emailAddress": x509.NameOID.EMAIL_ADDRESS}
        )
        return name.public_bytes()
    except ValueError as error:
        raise MisuseError(
            f"identity {text[:80]!r} is no distinguished name ({error}); write one such as CN=spoke1,O=Example"
        ) from None


def decode(data: bytes) -> DistinguishedName:
    """The RDNs of a DER name in their order, values without case and superfluous space (RFC 5280 section 7.1).

    Raises ValueError.
    """
    return tuple(frozenset((kind, " ".join(value.split()).casefold()) for kind, value in rdn) for rdn in _rdns(data))


def same(one: DistinguishedName, other: DistinguishedName) -> bool:
    """Whether both are one name. People write names from either end."""
    return other in (one, one[::-1])


def matches(pattern: DistinguishedName, name: DistinguishedName) -> bool:
    """Whether `name` is `pattern`, whose values may be "*" for any value: only ever what a configuration says."""
    return _matches(pattern, name) or _matches(pattern[::-1], name)


def to_text(data: bytes) -> str:
    """For people, RFC 4514 order: bounded, printable, one line. ValueError for what is no name."""
    parts = []
    for rdn in reversed(_rdns(data)):
        parts.append("+".join(f"{_SHORT.get(kind, kind)}={_printable(value)}" for kind, value in rdn))
    return ",".join(parts)[:256]


def _matches(pattern: DistinguishedName, name: DistinguishedName) -> bool:
    return len(pattern) == len(name) and all(map(_rdn_matches, pattern, name))


def _rdn_matches(pattern: Rdn, rdn: Rdn) -> bool:
    if len(pattern) == 1 and len(rdn) == 1:
        (kind, value), (other_kind, other) = next(iter(pattern)), next(iter(rdn))
        return kind == other_kind and value in ("*", other)
    return pattern == rdn


def _printable(value: str) -> str:
    return "".join(("\\" + c if c in ',+"\\<>;' else c) if c.isprintable() else f"\\{ord(c):02x}" for c in value)


def _rdns(data: bytes) -> list[list[tuple[str, str]]]:
    if len(data) > _MAX_LENGTH:
        raise ValueError("name too long")
    outer = _elements(data)
    if len(outer) != 1 or outer[0][0] != _SEQUENCE:
        raise ValueError("no name")
    rdns = _elements(outer[0][1])
    if len(rdns) > _MAX_RDNS:
        raise ValueError("name of too many parts")
    return [_pairs(tag, body) for tag, body in rdns]


def _pairs(tag: int, body: bytes) -> list[tuple[str, str]]:
    pairs = []
    for inner, pair in _elements(body):
        fields = _elements(pair)
        if inner != _SEQUENCE or len(fields) != 2 or fields[0][0] != _OID:
            raise ValueError("RDN is none")
        encoding = _STRINGS.get(fields[1][0])
        value = fields[1][1].hex() if encoding is None else fields[1][1].decode(encoding)
        pairs.append((_dotted(fields[0][1]), value))
    if tag != _SET or not pairs:
        raise ValueError("RDN is none")
    return pairs


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each DER element in `data`."""
    elements = []
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            raise ValueError("DER ends early")
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            octets = length & 0x7F
            if not 1 <= octets <= 2 or at + octets > len(data):
                raise ValueError("DER length")
            length = int.from_bytes(data[at : at + octets], "big")
            at += octets
        if at + length > len(data):
            raise ValueError("DER ends early")
        elements.append((tag, data[at : at + length]))
        at += length
    return elements


def _dotted(body: bytes) -> str:
    if not body or body[-1] & 0x80:
        raise ValueError("OID")
    numbers: list[int] = []
    value = 0
    for octet in body:
        value = value << 7 | octet & 0x7F
        if not octet & 0x80:
            numbers.append(value)
            value = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))
