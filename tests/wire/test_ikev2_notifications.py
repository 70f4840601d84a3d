"""The notifications of MOBIKE, redirect, crash detection, lost SPIs and per-resource CHILD_SAs: octets written out by
hand from the RFCs, and what Wireshark reads in them."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path as FilePath

import pytest

from dsvpn.addresses import Endpoint, Path
from dsvpn.ike.mobike import prohibition
from dsvpn.ike.quick_crash import make_token, token_payloads
from dsvpn.ike.redirect import encode_gateway
from dsvpn.wire.ikev2 import Header, Message, Notify, NotifyType
from tests.ike.harness import make_profile
from tests.wire.test_ikev2_tshark import COMPLAINTS, complaints, dissect, frame, normal, write_pcap

HEADER = Header(b"initiatr", b"respondr", 37, 0x08, 2)
FOUR = ip_address("192.0.2.99")
SIX = ip_address("2001:db8::63")
PATH = Path(Endpoint(ip_address("192.0.2.1"), 4500), Endpoint(ip_address("192.0.2.2"), 4500))


@dataclass(frozen=True)
class Vector:
    """A notification as the code makes it, and its payload on the wire: protocol, SPI size, type, data."""

    notify: object
    octets: str
    rfc: str


VECTORS = [
    Vector(Notify(NotifyType.MOBIKE_SUPPORTED), "0000400c", "4555 section 4.2.1"),
    Vector(Notify(NotifyType.ADDITIONAL_IP4_ADDRESS, FOUR.packed), "0000400d c0000263", "4555 section 4.2.2"),
    Vector(
        Notify(NotifyType.ADDITIONAL_IP6_ADDRESS, SIX.packed),
        "0000400e 20010db8000000000000000000000063",
        "4555 section 4.2.2",
    ),
    Vector(Notify(NotifyType.NO_ADDITIONAL_ADDRESSES), "0000400f", "4555 section 4.2.3"),
    Vector(Notify(NotifyType.UPDATE_SA_ADDRESSES), "00004010", "4555 section 4.2.4"),
    Vector(Notify(NotifyType.COOKIE2, b"\x07" * 16), "00004011" + "07" * 16, "4555 section 4.2.5"),
    Vector(
        prohibition(make_profile(mobike=True, prohibit_nat=True), PATH)[0],
        "00004012 c0000201 c0000202 1194 1194",
        "4555 section 4.2.6",
    ),
    Vector(Notify(NotifyType.UNACCEPTABLE_ADDRESSES), "00000028", "4555 section 4.1.1"),
    Vector(Notify(NotifyType.UNEXPECTED_NAT_DETECTED), "00000029", "4555 section 4.1.2"),
    Vector(Notify(NotifyType.REDIRECT_SUPPORTED), "00004016", "5685 section 9.1"),
    Vector(Notify(NotifyType.REDIRECT, encode_gateway(FOUR)), "00004017 01 04 c0000263", "5685 section 9.2"),
    Vector(
        Notify(NotifyType.REDIRECT, encode_gateway(FOUR, b"\x0a" * 32)),
        "00004017 01 04 c0000263" + "0a" * 32,
        "5685 section 9.2",
    ),
    Vector(
        Notify(NotifyType.REDIRECTED_FROM, encode_gateway(SIX)),
        "00004018 02 10 20010db8000000000000000000000063",
        "5685 section 9.3",
    ),
    # HMAC-SHA256 as `openssl dgst -sha256 -hmac key` computes it.
    Vector(
        token_payloads(b"key", b"initiatr", b"respondr")[0],
        "01004023 410b75451face5b609a4af68bf375f366cfe913585f7fccee457dce8adf7a2c9",
        "6290 section 4.1",
    ),
    Vector(Notify(NotifyType.INVALID_SPI, bytes.fromhex("12345678")), "0000000b 12345678", "7296 section 3.10.1"),
    Vector(Notify(NotifyType.INVALID_IKE_SPI), "00000004", "7296 section 3.10.1"),
    # The data is opaque (RFC 9611 section 5.1); TS_MAX_QUEUE has none (section 5.2).
    Vector(Notify(NotifyType.SA_RESOURCE_INFO), "0000403c", "9611 section 5.1"),
    Vector(Notify(NotifyType.SA_RESOURCE_INFO, b"CPU 3"), "0000403c 4350552033", "9611 section 5.1"),
    Vector(Notify(NotifyType.TS_MAX_QUEUE), "00000030", "9611 section 5.2"),
]
MESSAGES = [Message(HEADER, (vector.notify,)) for vector in VECTORS]  # type: ignore[arg-type]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector.notify.name}, RFC {vector.rfc}")
def test_octets(vector: Vector) -> None:
    octets = bytes.fromhex(vector.octets)
    encoded = Message(HEADER, (vector.notify,)).encode()  # type: ignore[arg-type]
    assert encoded[28:32] == bytes((0, 0)) + (4 + len(octets)).to_bytes(2, "big")
    assert encoded[32:] == octets
    assert Message.decode(encoded).payloads == (vector.notify,)


def test_wireshark_reads_the_same(tmp_path: FilePath) -> None:
    path = tmp_path / "notifications.pcap"
    write_pcap(path, [frame(message.encode(), 4500) for message in MESSAGES])
    names = ("gw_ident.type", "gw_ident.len", "new_resp_gw_ident.ipv4", "nonce_data")
    identity = [f"isakmp.notify.data.redirect.{name}" for name in names]
    token = "isakmp.notify.data.qcd.token_secret_data"
    fields = ["isakmp.notify.msgtype", "isakmp.notify.protoid", "isakmp.notify.data", token, *identity]
    rows = dissect(path, [*fields, *COMPLAINTS])
    assert len(rows) == len(VECTORS)
    for row, vector in zip(rows, VECTORS, strict=True):
        notify = vector.notify
        assert isinstance(notify, Notify)
        assert row["isakmp.notify.msgtype"] == [str(int(notify.type))]
        assert row["isakmp.notify.protoid"] == [str(int(notify.protocol))]
        assert "".join(normal(row["isakmp.notify.data"])).replace("<MISSING>", "") == notify.data.hex()
        assert complaints(row) == []
    (early,) = [row for row, vector in zip(rows, VECTORS, strict=True) if vector.octets.endswith("0a" * 32)]
    assert [normal(early[field]) for field in identity] == [["1"], ["4"], ["192.0.2.99"], ["0a" * 32]]
    (shown,) = [row[token] for row in rows if row[token]]
    assert normal(shown) == [make_token(b"key", b"initiatr", b"respondr").hex()]
