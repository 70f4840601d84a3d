"""Address blocks in certificates (RFC 3779): their encoding, and what authorities can delegate."""

from __future__ import annotations

import random
from ipaddress import ip_network
from typing import Any

import pytest
from cryptography import x509

from dsvpn.errors import PeerError
from dsvpn.ike.authentication.address_blocks import (
    MAX_BLOCKS,
    OID,
    AddressBlocks,
    decode,
    delegated,
    encode,
)
from dsvpn.ike.authentication.proof import Proved
from tests.ike.authority import NOW, Holder, certified, root, trust
from tests.ike.harness import make_wire

#: RFC 3779 appendix B, first example, unicast IPv4 with a range, and inheritance for all of IPv6.
EXAMPLE = bytes.fromhex(
    "3035 302b 0403000101 3024 0304040a0020 0304000a0040 0303000a01 300c 0304040a0230 0304000a0240 0303000a03"
    "3006 04020002 0500"
)


def nets(*texts: str) -> tuple[Any, ...]:
    return tuple(ip_network(text) for text in texts)


def tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    assert len(content) < 128
    return bytes((tag, len(content))) + content


def bits(text: str) -> bytes:
    """A BIT STRING of these bits."""
    padded = text + "0" * (-len(text) % 8)
    return tlv(
        3, bytes((len(padded) - len(text),)), bytes(int(padded[at : at + 8], 2) for at in range(0, len(padded), 8))
    )


def family(*blocks: bytes, number: bytes = b"\x00\x01") -> bytes:
    return tlv(0x30, tlv(4, number), tlv(0x30, *blocks))


TEN = bits("00001010")


def test_what_is_encoded_is_decoded() -> None:
    for prefixes in (nets("10.0.0.11/32", "172.16.1.0/24"), nets("fd00::/8"), nets("0.0.0.0/0", "::/0")):
        assert decode(encode(prefixes)).prefixes() == prefixes
    # Neighbours are one block.
    assert decode(encode(nets("10.0.1.0/24", "10.0.0.0/24"))).prefixes() == nets("10.0.0.0/23")


def test_the_example_of_the_rfc() -> None:
    read = decode(EXAMPLE)
    assert read.families[1] == (b"\x00\x02", None)
    assert read.prefixes() == nets(
        "10.0.32.0/20", "10.0.64.0/24", "10.1.0.0/16", "10.2.48.0/20", "10.2.64.0/24", "10.3.0.0/16"
    )
    assert encode(nets("10.5.0.4/32")) == tlv(0x30, family(bytes.fromhex("0305000a050004")))
    assert encode(nets("10.5.0.0/23")) == tlv(0x30, family(bytes.fromhex("0304010a0500")))


def test_ranges_are_prefixes_as_many_as_it_takes() -> None:
    # 10.0.0.1 to 10.0.0.6.
    low, high = bits("00001010" + "0" * 23 + "1"), bits("00001010" + "0" * 21 + "110")
    assert decode(tlv(0x30, family(tlv(0x30, low, high)))).prefixes() == nets(
        "10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"
    )


def test_other_safis_are_no_unicast() -> None:
    blocks = decode(tlv(0x30, family(TEN, number=b"\x00\x01\x01"), family(TEN, number=b"\x00\x01\x02")))
    assert blocks.prefixes() == nets("10.0.0.0/8")


MALFORMED = {
    "empty": b"",
    "no sequence": TEN,
    "nothing in it": tlv(0x30),
    "something behind": tlv(0x30, family(TEN)) + b"\x00",
    "truncated": tlv(0x30, family(TEN))[:-1],
    "long form of a short length": b"\x30\x81" + tlv(0x30, family(TEN))[1:],
    "indefinite length": b"\x30\x80" + family(TEN) + b"\x00\x00",
    "unknown family": tlv(0x30, family(TEN, number=b"\x00\x03")),
    "family of one octet": tlv(0x30, family(TEN, number=b"\x01")),
    "families out of order": tlv(0x30, family(bits("1"), number=b"\x00\x02"), family(TEN)),
    "a family twice": tlv(0x30, family(TEN), family(TEN)),
    "no addresses": tlv(0x30, family()),
    "addresses out of order": tlv(0x30, family(bits("00001011"), TEN)),
    "addresses overlap": tlv(0x30, family(TEN, bits("0000101000000001"))),
    "bits beyond the length": tlv(0x30, family(tlv(3, b"\x04\x0a"))),
    "eight unused bits": tlv(0x30, family(tlv(3, b"\x08\x0a"))),
    "unused bits of nothing": tlv(0x30, family(tlv(3, b"\x01"))),
    "no octet of unused bits": tlv(0x30, family(tlv(3))),
    "too long": tlv(0x30, family(bits("0" * 33))),
    "another type": tlv(0x30, family(tlv(2, b"\x0a"))),
    "range with one end": tlv(0x30, family(tlv(0x30, TEN))),
    "range with three ends": tlv(0x30, family(tlv(0x30, bits("1"), bits("1"), bits("1")))),
    "range backwards": tlv(0x30, family(tlv(0x30, bits("11"), bits("00")))),
    "range that is a prefix": tlv(0x30, family(tlv(0x30, bits("00001011"), bits("0000101")))),
    "range with zeros at its begin's end": tlv(0x30, family(tlv(0x30, bits("00001010"), bits("0000101000000010")))),
    "inherits something": tlv(0x30, tlv(0x30, tlv(4, b"\x00\x01"), tlv(5, b"\x00"))),
}


@pytest.mark.parametrize("der", MALFORMED.values(), ids=MALFORMED)
def test_what_is_not_canonical_is_refused(der: bytes) -> None:
    with pytest.raises(PeerError):
        decode(der)


def test_too_many_are_refused() -> None:
    many = nets(*(f"10.{number // 128}.{number % 128 * 2}.0/24" for number in range(MAX_BLOCKS + 1)))
    assert len(decode(encode(many[:-1])).prefixes()) == MAX_BLOCKS
    with pytest.raises(PeerError, match="more than"):
        decode(encode(many))


def test_no_octets_make_it_raise_anything_else() -> None:
    source = random.Random(3779)
    good = encode(nets("10.0.0.11/32", "172.16.0.0/12", "fd00::/8"))
    for _ in range(3000):
        der = bytearray(good)
        for _ in range(source.randrange(1, 4)):
            der[source.randrange(len(der))] = source.randrange(256)
        try:
            decode(bytes(der)).prefixes()
        except PeerError:
            continue


INHERIT = AddressBlocks(((b"\x00\x01", None),))


def blocks(*texts: str) -> AddressBlocks:
    return decode(encode(nets(*texts)))


def held(*chain: AddressBlocks | None) -> tuple[Any, ...] | None:
    found = delegated(chain)
    return None if found is None else found.prefixes()


def test_issuers_bound_what_is_below() -> None:
    assert held(blocks("10.0.0.11/32"), blocks("10.0.0.0/8")) == nets("10.0.0.11/32")
    assert held(blocks("10.0.0.11/32"), None) == nets("10.0.0.11/32")
    assert held(None, blocks("10.0.0.0/8")) is None
    assert held(INHERIT, INHERIT, blocks("10.0.0.0/24", "fd00::/8")) == nets("10.0.0.0/24")
    # Two blocks that touch are one for those below.
    assert held(blocks("10.0.0.0/24"), blocks("10.0.0.0/25", "10.0.0.128/25")) == nets("10.0.0.0/24")
    for chain in (
        (blocks("10.0.0.0/8"), blocks("10.0.0.0/9")),
        (blocks("fd00::/8"), blocks("10.0.0.0/8")),
        (blocks("10.0.0.1/32"), None, blocks("10.0.1.0/24")),
        (blocks("10.0.0.1/32"), blocks("10.0.0.0/24"), blocks("10.0.1.0/24")),
        (INHERIT, None),
        (INHERIT, blocks("fd00::/8")),
    ):
        with pytest.raises(PeerError, match="does not have"):
            delegated(chain)


def extension(*texts: str, critical: bool = True) -> tuple[x509.ExtensionType, bool]:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(OID), encode(nets(*texts))), critical


def test_a_path_with_more_than_its_authority_has_is_none() -> None:
    ca = root()
    middle = ca.authority("middle", extensions=[extension("10.0.0.0/24", "172.16.0.0/16")])
    good = middle.issue("s1", extensions=[extension("10.0.0.11", "172.16.1.0/24")])
    path = trust(ca).validate([good.certificate.der, middle.certificate.der], NOW)
    assert Proved("certificate", path).delegated == nets("10.0.0.11/32", "172.16.1.0/24")
    greedy = middle.issue("s2", extensions=[extension("10.0.0.12", "172.17.1.0/24", critical=False)])
    with pytest.raises(PeerError, match="issuer does not have"):
        trust(ca).validate([greedy.certificate.der, middle.certificate.der], NOW)
    silent = middle.issue("s3")
    path = trust(ca).validate([silent.certificate.der, middle.certificate.der], NOW)
    assert Proved("certificate", path).delegated is None


def test_a_certificate_with_a_malformed_extension_is_never_taken() -> None:
    ca = root()
    broken = x509.UnrecognizedExtension(x509.ObjectIdentifier(OID), MALFORMED["addresses overlap"])
    leaf: Holder = ca.issue("s1", extensions=[(broken, False)])
    with pytest.raises(PeerError, match="RFC 3779"):
        trust(ca).validate([leaf.certificate.der], NOW)


def test_the_gateway_is_told_what_was_delegated() -> None:
    ca = root()
    ours = ca.issue("a", ("a.example.net",), extensions=[extension("10.0.0.11", "172.16.1.0/24")])
    theirs = ca.issue("b", ("b.example.net",))
    net = make_wire(
        certified("a.example.net", ours, trust=trust(ca)), certified("b.example.net", theirs, trust=trust(ca))
    )
    net.connect()
    [event] = net.b.established.values()
    assert event.delegated == nets("10.0.0.11/32", "172.16.1.0/24")
    [event] = net.a.established.values()
    assert event.delegated is None
