"""The IKEv2 codec against scapy, a second author, both ways, for the payloads that scapy knows."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.contrib import ikev2 as scapy

from dsvpn.wire.ikev2 import (
    Authentication,
    CertificateRequest,
    Delete,
    Encrypted,
    EncryptedFragment,
    Header,
    IdentificationInitiator,
    IdentificationResponder,
    KeyExchange,
    Message,
    Nonce,
    Notify,
    Payload,
    Proposal,
    SecurityAssociation,
    TrafficSelector,
    TrafficSelectorsInitiator,
    TrafficSelectorsResponder,
    Transform,
    VendorId,
)
from tests.wire.ikev2_strategies import CBC_PROPOSAL, ESP_PROPOSALS, GCM_PROPOSAL, SELECTOR_4, SELECTOR_6

HEADER = Header(b"initiatr", b"respondr", 34, 0x08, 7)


def transforms(values: tuple[Transform, ...]) -> Any:
    """scapy chains transforms like payloads, with next_payload 3."""
    built = None
    for index, value in reversed(list(enumerate(values))):
        fields: dict[str, Any] = {"transform_type": value.type, "transform_id": value.id}
        if value.key_length is not None:
            fields |= {"length": 12, "key_length": value.key_length}
        layer = scapy.IKEv2_Transform(next_payload=0 if index == len(values) - 1 else 3, **fields)
        built = layer if built is None else layer / built
    return built


def proposals(values: tuple[Proposal, ...]) -> Any:
    built = None
    for index, value in reversed(list(enumerate(values))):
        layer = scapy.IKEv2_Proposal(
            next_payload=0 if index == len(values) - 1 else 2,
            proposal=value.number,
            proto=value.protocol,
            SPI=value.spi,
            trans_nb=len(value.transforms),
            trans=transforms(value.transforms),
        )
        built = layer if built is None else layer / built
    return built


def selectors(values: tuple[TrafficSelector, ...]) -> list[Any]:
    built: list[Any] = []
    for value in values:
        common: dict[str, Any] = {
            "IP_protocol_ID": value.protocol,
            "start_port": value.start_port,
            "end_port": value.end_port,
        }
        if value.start.version == 4:
            built.append(
                scapy.IPv4TrafficSelector(
                    starting_address_v4=str(value.start), ending_address_v4=str(value.end), **common
                )
            )
        else:
            built.append(
                scapy.IPv6TrafficSelector(
                    length=40, starting_address_v6=str(value.start), ending_address_v6=str(value.end), **common
                )
            )
    return built


SPI = b"\xc0\x01\x02\x03"
BOTH = (SELECTOR_4, SELECTOR_6)
PAIRS: list[tuple[Payload, Any]] = [
    (SecurityAssociation((GCM_PROPOSAL, CBC_PROPOSAL)), scapy.IKEv2_SA(prop=proposals((GCM_PROPOSAL, CBC_PROPOSAL)))),
    (SecurityAssociation(ESP_PROPOSALS), scapy.IKEv2_SA(prop=proposals(ESP_PROPOSALS))),
    (KeyExchange(31, bytes(range(32))), scapy.IKEv2_KE(group=31, ke=bytes(range(32)))),
    (IdentificationInitiator(2, b"spoke1"), scapy.IKEv2_IDi(IDtype=2, ID=b"spoke1")),
    (IdentificationResponder(1, bytes((192, 0, 2, 1))), scapy.IKEv2_IDr(IDtype=1, ID="192.0.2.1")),
    (CertificateRequest(4, bytes(range(20))), scapy.IKEv2_CERTREQ(cert_encoding=4, cert_authority=bytes(range(20)))),
    (Authentication(2, bytes(range(32))), scapy.IKEv2_AUTH(auth_type=2, load=bytes(range(32)))),
    (Nonce(bytes(range(32))), scapy.IKEv2_Nonce(nonce=bytes(range(32)))),
    (Notify(16388, bytes(range(20))), scapy.IKEv2_Notify(type=16388, proto=0, notify=bytes(range(20)))),
    (Notify(16393, b"", 3, SPI), scapy.IKEv2_Notify(type=16393, proto=3, SPI=SPI)),
    (Delete(3, (SPI,)), scapy.IKEv2_Delete(proto=3, SPIsize=4, SPInum=1, SPI=[SPI])),
    (Delete(1), scapy.IKEv2_Delete(proto=1, SPIsize=0, SPInum=0)),
    (VendorId(b"vendor"), scapy.IKEv2_VendorID(vendorID=b"vendor")),
    (TrafficSelectorsInitiator(BOTH), scapy.IKEv2_TSi(number_of_TSs=2, traffic_selector=selectors(BOTH))),
    (TrafficSelectorsResponder(BOTH), scapy.IKEv2_TSr(number_of_TSs=2, traffic_selector=selectors(BOTH))),
    (Encrypted(35, bytes(range(64))), scapy.IKEv2_Encrypted(next_payload=35, load=bytes(range(64)))),
    (
        EncryptedFragment(35, 1, 3, bytes(range(64))),
        scapy.IKEv2_Encrypted_Fragment(next_payload=35, frag_number=1, frag_total=3, load=bytes(range(64))),
    ),
]


def by_scapy(payload: Payload, layer: Any) -> bytes:
    head = scapy.IKEv2(
        init_SPI=HEADER.initiator_spi,
        resp_SPI=HEADER.responder_spi,
        exch_type=HEADER.exchange_type,
        flags=HEADER.flags,
        id=HEADER.message_id,
        next_payload=payload.payload_type,
    )
    return bytes(head / layer)


@pytest.mark.parametrize(("payload", "layer"), PAIRS, ids=lambda value: type(value).__name__)
def test_scapy_writes_the_same_octets(payload: Payload, layer: Any) -> None:
    theirs = by_scapy(payload, layer)
    message = Message(HEADER, (payload,))
    assert theirs.hex() == message.encode().hex()
    assert Message.decode(theirs) == message


@pytest.mark.parametrize(("payload", "layer"), PAIRS, ids=lambda value: type(value).__name__)
def test_scapy_reads_the_same_fields(payload: Payload, layer: Any) -> None:
    ours = Message(HEADER, (payload,)).encode()
    head = scapy.IKEv2(ours)
    assert (head.init_SPI, head.resp_SPI) == (HEADER.initiator_spi, HEADER.responder_spi)
    assert (head.exch_type, int(head.flags), head.id, head.length) == (34, 0x08, 7, len(ours))
    read = head.payload
    assert type(read) is type(layer)
    expected = type(layer)(bytes(layer))
    assert {name: getattr(read, name) for name in read.fields} == {
        name: getattr(expected, name) for name in read.fields
    }


def test_scapy_reads_a_chain_of_payloads() -> None:
    payloads = (
        SecurityAssociation((GCM_PROPOSAL,)),
        KeyExchange(31, bytes(32)),
        Nonce(bytes(range(32))),
        Notify(16430),
        VendorId(b"vendor"),
    )
    layer: Any = scapy.IKEv2(Message(HEADER, payloads).encode())
    names = []
    while layer:
        names.append(type(layer).__name__)
        layer = layer.payload
    assert names == ["IKEv2", "IKEv2_SA", "IKEv2_KE", "IKEv2_Nonce", "IKEv2_Notify", "IKEv2_VendorID"]
