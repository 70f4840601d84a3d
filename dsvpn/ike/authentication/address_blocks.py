"""Addresses that an authority delegates to the holder of a certificate: sbgp-ipAddrBlock (RFC 3779 section 2).

DER is read by hand, because no encoding but the one right one may pass, and nothing but this extension needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, collapse_addresses, summarize_address_range
from itertools import pairwise
from typing import Final

from dsvpn.addresses import Prefix
from dsvpn.errors import PeerError

OID: Final = "1.3.6.1.5.5.7.1.7"
#: Prefixes and ranges of one certificate, and prefixes that its ranges may come to.
MAX_BLOCKS: Final = 256
MAX_PREFIXES: Final = 1024

_SEQUENCE, _OCTET_STRING, _BIT_STRING, _NULL = 0x30, 0x04, 0x03, 0x05
#: Bits of an address by address family number.
_BITS: Final = {1: 32, 2: 128}
_UNICAST = 1

#: First and last address as numbers.
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class AddressBlocks:
    """What the extension says, by address family (2 octets, or 3 with a SAFI): ranges in order, or None: those of the
    issuer (inherit)."""

    families: tuple[tuple[bytes, tuple[Range, ...] | None], ...]

    def within(self, issuer: AddressBlocks | None) -> AddressBlocks:
        """The same with everything inherited filled in. PeerError if it is more than the issuer has (RFC 3779 section
        2.3). `issuer` None: no certificate above has the extension, so there is no bound and nothing to inherit."""
        held = None if issuer is None else dict(issuer.families)
        filled = []
        for family, ranges in self.families:
            above = () if held is None else held.get(family) or ()
            if ranges is None and not above:
                raise PeerError("inherits addresses that its issuer does not have")
            if ranges is not None and held is not None and not _encompasses(above, ranges):
                raise PeerError("has addresses that its issuer does not have")
            filled.append((family, above if ranges is None else ranges))
        return AddressBlocks(tuple(filled))

    def prefixes(self) -> tuple[Prefix, ...]:
        """The unicast prefixes, as many as are looked at."""
        found: list[Prefix] = []
        for family, ranges in self.families:
            if len(family) == 3 and family[2] != _UNICAST:
                continue
            for first, last in ranges or ():
                if family[1] == 1:
                    found += summarize_address_range(IPv4Address(first), IPv4Address(last))
                else:
                    found += summarize_address_range(IPv6Address(first), IPv6Address(last))
        return tuple(found[:MAX_PREFIXES])


def decode(der: bytes) -> AddressBlocks:
    """The value of the extension. PeerError for anything but DER in the canonical form of RFC 3779 section 2.2.3."""
    families: list[tuple[bytes, tuple[Range, ...] | None]] = []
    budget = MAX_BLOCKS
    for content in _items(_only(der, _SEQUENCE), _SEQUENCE):
        tag, family, rest = _read(content)
        if tag != _OCTET_STRING or len(family) not in (2, 3) or family[0] != 0 or family[1] not in _BITS:
            raise PeerError("has an address family that is neither IPv4 nor IPv6")
        tag, choice, end = _read(rest)
        if end:
            raise PeerError("has something behind its addresses")
        if tag == _NULL and not choice:
            families.append((family, None))
            continue
        if tag != _SEQUENCE:
            raise PeerError("has neither addresses nor inherits them")
        ranges = []
        while choice:
            budget -= 1
            if budget < 0:
                raise PeerError(f"has more than {MAX_BLOCKS} blocks of addresses")
            tag, item, choice = _read(choice)
            ranges.append(_range(tag, item, _BITS[family[1]]))
        if not ranges or any(before[1] >= after[0] for before, after in pairwise(ranges)):
            raise PeerError("has addresses that are not in order")
        families.append((family, tuple(ranges)))
    if not families or any(before[0] >= after[0] for before, after in pairwise(families)):
        raise PeerError("has address families that are not in order")
    return AddressBlocks(tuple(families))


def encode(prefixes: Iterable[Prefix]) -> bytes:
    """The value of the extension for these prefixes, at least one."""
    families = b""
    every = list(prefixes)
    for number, version in ((1, 4), (2, 6)):
        own = collapse_addresses(prefix for prefix in every if prefix.version == version)  # type: ignore[type-var]
        blocks = b"".join(_bits(int(prefix.network_address), prefix.prefixlen, prefix.max_prefixlen) for prefix in own)
        if blocks:
            families += _wrap(_SEQUENCE, _wrap(_OCTET_STRING, bytes((0, number))) + _wrap(_SEQUENCE, blocks))
    return _wrap(_SEQUENCE, families)


def delegated(chain: Sequence[AddressBlocks | None]) -> AddressBlocks | None:
    """What the first certificate of a path holds, given the extensions from it up to the trusted authority's. PeerError
    if one of them has more than the nearest above it that has the extension."""
    held: AddressBlocks | None = None
    for blocks in reversed(chain):
        if blocks is not None:
            held = blocks.within(held)
    return held if chain and chain[0] is not None else None


def _encompasses(outer: Iterable[Range], inner: Iterable[Range]) -> bool:
    merged: list[Range] = []
    for first, last in outer:
        if merged and merged[-1][1] + 1 == first:
            merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    return all(any(first <= low and high <= last for first, last in merged) for low, high in inner)


def _range(tag: int, item: bytes, bits: int) -> Range:
    if tag == _BIT_STRING:
        value, length = _bit_string(item, bits)
        return value, value | (1 << (bits - length)) - 1
    if tag != _SEQUENCE:
        raise PeerError("has addresses that are neither a prefix nor a range")
    tag, low, rest = _read(item)
    other, high, end = _read(rest)
    if (tag, other) != (_BIT_STRING, _BIT_STRING) or end:
        raise PeerError("has a range without two ends")
    first, first_length = _bit_string(low, bits)
    last, last_length = _bit_string(high, bits)
    last |= (1 << (bits - last_length)) - 1
    # The least address loses its zeros at the end, the greatest its ones: there is one way to write each.
    stripped = (first_length == 0 or first >> (bits - first_length) & 1) and (
        last_length == 0 or not last >> (bits - last_length) & 1
    )
    if first > last or not stripped:
        raise PeerError("has a range that is not in canonical form")
    span = last - first + 1
    if span & (span - 1) == 0 and first % span == 0:
        raise PeerError("has a range that is a prefix")
    return first, last


def _bit_string(content: bytes, bits: int) -> tuple[int, int]:
    """The bits, from the highest of an address on, and how many they are."""
    if not content or content[0] > 7 or (len(content) == 1 and content[0]):
        raise PeerError("has an address that is no bit string")
    unused, octets = content[0], content[1:]
    length = len(octets) * 8 - unused
    if length > bits:
        raise PeerError("has an address that is too long")
    value = int.from_bytes(octets, "big")
    if value & (1 << unused) - 1:
        raise PeerError("has an address with bits beyond its length")
    return value >> unused << (bits - length), length


def _bits(value: int, length: int, bits: int) -> bytes:
    octets = -(-length // 8)
    return _wrap(_BIT_STRING, bytes((octets * 8 - length,)) + value.to_bytes(bits // 8, "big")[:octets])


def _wrap(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def _read(der: bytes) -> tuple[int, bytes, bytes]:
    """Tag and content of the first value, and what is behind it."""
    if len(der) < 2:
        raise PeerError("ends too early")
    length, at = der[1], 2
    if length & 0x80:
        count = length & 0x7F
        at += count
        octets = der[2:at]
        length = int.from_bytes(octets, "big")
        # The shortest form alone is DER.
        if not 1 <= count <= 2 or len(octets) != count or octets[0] == 0 or length < 0x80:
            raise PeerError("has a length that is not DER")
    if len(der) < at + length:
        raise PeerError("ends too early")
    return der[0], der[at : at + length], der[at + length :]


def _only(der: bytes, wanted: int) -> bytes:
    tag, content, rest = _read(der)
    if tag != wanted or rest:
        raise PeerError("is not one sequence")
    return content


def _items(content: bytes, wanted: int) -> Iterable[bytes]:
    while content:
        tag, item, content = _read(content)
        if tag != wanted:
            raise PeerError("has something else than a sequence")
        yield item
