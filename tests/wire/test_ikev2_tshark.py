"""Wireshark's ISAKMP dissector reads what the IKEv2 codec writes: the same fields, and nothing malformed."""

from __future__ import annotations

import struct
import subprocess
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dsvpn.wire.ikev2 import (
    Authentication,
    Certificate,
    CertificateRequest,
    Configuration,
    Delete,
    Eap,
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
    UnknownPayload,
    VendorId,
    add_padding,
    decode_payloads,
    encode_associated_data,
    encode_payloads,
    find,
)
from tests.wire.ikev2_capture import VECTORS, datagrams, open_sealed, read_keys
from tests.wire.ikev2_strategies import ENCRYPTED_SAMPLES, SAMPLES

KEYS = VECTORS / "strongswan5.9.8.keys"
CAPTURE = datagrams(VECTORS / "strongswan5.9.8.pcap")


def recorded_certificate() -> Certificate:
    """tshark looks into certificates, so that one has to be real."""
    keys = read_keys(KEYS)
    opened = [open_sealed(Message.decode(CAPTURE[index]), keys) for index in range(8, 11)]
    parts = [part for part in opened if part is not None]
    found = find(decode_payloads(parts[0][0], b"".join([part[1] for part in parts])), Certificate)
    assert found is not None
    return found


HEADER = Header(b"initiatr", b"respondr", 35, 0x08, 1)
PAYLOADS: tuple[Payload, ...] = (
    *[recorded_certificate() if isinstance(sample, Certificate) else sample for sample in SAMPLES],
    SecurityAssociation((Proposal(1, 1, b"12345678", (Transform(1, 20, 256), Transform(6, 36), Transform(12, 37))),)),
    Notify(14),
    Notify(17, b"\x00\x1f"),
    Eap(3, 7),
    *ENCRYPTED_SAMPLES,
)
MESSAGES = [Message(HEADER, (payload,)) for payload in PAYLOADS]
MESSAGES.append(Message(Header(b"initiatr", b"respondr", 36, 0x20, 0xFFFFFFFF), PAYLOADS[: len(SAMPLES)]))


def frame(datagram: bytes, port: int) -> bytes:
    """An IPv4 packet with a UDP datagram; on port 4500 a non-ESP marker precedes IKE (RFC 3948 section 2.2)."""
    body = (bytes(4) if port == 4500 else b"") + datagram
    udp = struct.pack("!HHHH", port, port, 8 + len(body), 0) + body
    addresses = IPv4Address("192.0.2.1").packed + IPv4Address("192.0.2.2").packed
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + addresses + udp


def write_pcap(path: Path, frames: list[bytes]) -> None:
    """A capture of raw IP packets (link type 101)."""
    parts = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101)]
    parts += [struct.pack("<IIII", index, 0, len(data), len(data)) + data for index, data in enumerate(frames)]
    path.write_bytes(b"".join(parts))


def dissect(path: Path, fields: list[str], *options: str) -> list[dict[str, list[str]]]:
    """For each frame, what tshark read for each of `fields`, in order, with repetitions."""
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", "-E", "separator=/t", "-E", "aggregator=;", *options]
    for field in fields:
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    rows = []
    for line in done.stdout.splitlines():
        values = line.split("\t")
        rows.append({field: value.split(";") if value else [] for field, value in zip(fields, values, strict=True)})
    return rows


TRANSFORM_FIELDS = {1: "encr", 2: "prf", 3: "integ", 4: "dh", 5: "esn"}


def expected(payload: Payload) -> dict[str, list[str]]:
    """What the dissector calls the fields of one payload, from the values (not from the octets)."""
    match payload:
        case SecurityAssociation(proposals):
            transforms = [transform for proposal in proposals for transform in proposal.transforms]
            fields = {
                "prop.number": [str(proposal.number) for proposal in proposals],
                "prop.protoid": [str(proposal.protocol) for proposal in proposals],
                "prop.transforms": [str(len(proposal.transforms)) for proposal in proposals],
                "spisize": [str(len(proposal.spi)) for proposal in proposals],
                "spi": [proposal.spi.hex() for proposal in proposals if proposal.spi],
                "tf.type": [str(transform.type) for transform in transforms],
                "ike2.attr.key_length": [str(each.key_length) for each in transforms if each.key_length is not None],
            }
            for transform in transforms:
                name = f".{TRANSFORM_FIELDS[transform.type]}" if transform.type in TRANSFORM_FIELDS else ""
                fields.setdefault(f"tf.id{name}", []).append(str(transform.id))
            return fields
        case KeyExchange(group, data):
            return {"key_exchange.dh_group": [str(group)], "key_exchange.data": [data.hex()]}
        case IdentificationInitiator(id_type, data) | IdentificationResponder(id_type, data):
            if id_type == 1:
                return {"id.type": ["1"], "id.data.ipv4_addr": [str(IPv4Address(data))]}
            return {"id.type": [str(id_type)], "id.data.fqdn": [data.decode()]}
        case Certificate(encoding, _):
            return {"cert.encoding": [str(encoding)]}
        case CertificateRequest(encoding, data):
            hashes = [data[at : at + 20].hex() for at in range(0, len(data), 20)]
            return {"certreq.type": [str(encoding)], "ike.certreq.authority": hashes}
        case Authentication(method, data):
            return {"auth.method": [str(method)], "auth.data": [data.hex()]}
        case Nonce(data):
            return {"nonce": [data.hex()]}
        case Notify(kind, data, protocol, spi):
            return {
                "notify.msgtype": [str(kind)],
                "notify.protoid": [str(protocol)],
                "notify.data": [data.hex() or "<MISSING>"],
                "spisize": [str(len(spi))],
                "spi": [spi.hex()] if spi else [],
            }
        case Delete(protocol, spis):
            return {
                "delete.protoid": [str(protocol)],
                "delete.spi": [spi.hex() for spi in spis],
                "spisize": [str(len(spis[0]) if spis else 0)],
                "spinum": [str(len(spis))],
            }
        case VendorId(data):
            return {"vid_bytes": [data.hex()]}
        case TrafficSelectorsInitiator(selectors) | TrafficSelectorsResponder(selectors):
            # The dissector knows no type 10 and shows nothing but its number.
            ranges = [selector for selector in selectors if isinstance(selector, TrafficSelector)]
            fields = {
                "ts.number": [str(len(selectors))],
                "ts.type": [str(selector.ts_type) for selector in selectors],
                "ts.protoid": [str(selector.protocol) for selector in ranges],
                "ts.start_port": [str(selector.start_port) for selector in ranges],
                "ts.end_port": [str(selector.end_port) for selector in ranges],
            }
            for version in (4, 6):
                family = [selector for selector in ranges if selector.start.version == version]
                fields[f"ts.start_ipv{version}"] = [str(selector.start) for selector in family]
                fields[f"ts.end_ipv{version}"] = [str(selector.end) for selector in family]
            return fields
        case Configuration(cfg_type, attributes):
            return {
                "cfg.type": [str(cfg_type)],
                "cfg.attr.type": [str(attribute.type) for attribute in attributes],
                "cfg.attr.length": [str(len(attribute.value)) for attribute in attributes],
                "cfg.attr.value": [attribute.value.hex() for attribute in attributes if attribute.value],
            }
        case Eap(code, identifier, kind, _):
            fields = {"eap.code": [str(code)], "eap.id": [str(identifier)]}
            return fields if kind is None else fields | {"eap.type": [str(kind)]}
        case EncryptedFragment(_, number, total, _):
            return {"frag.number": [str(number)], "frag.total": [str(total)]}
        case UnknownPayload(_, _, data):
            return {"datapayload": [data.hex()]}
        case Encrypted():
            return {}


def merged(payloads: tuple[Payload, ...]) -> dict[str, list[str]]:
    together: dict[str, list[str]] = {}
    for payload in payloads:
        for field, values in expected(payload).items():
            together.setdefault(field, []).extend(values)
    return together


#: Every field that some message sets: the others of a message must then be absent.
FIELDS = sorted({field for message in MESSAGES for field in merged(message.payloads)})
HEADER_FIELDS = ["ispi", "rspi", "exchangetype", "flags", "messageid", "length", "version"]
COMPLAINTS = ["_ws.malformed", "_ws.expert.severity", "_ws.expert.message", "isakmp.extradata"]
#: Wireshark's PI_WARN. Notes stand below: an empty address in a CFG_REQUEST, an EAP packet seen in another frame.
WARNING = 0x00600000


def qualified(field: str) -> str:
    return field if field.startswith("eap.") else f"isakmp.{field}"


def complaints(row: dict[str, list[str]]) -> list[str]:
    """Everything from a warning upwards that tshark has to say about a frame."""
    experts = zip(row["_ws.expert.severity"], row["_ws.expert.message"], strict=True)
    serious = [message for severity, message in experts if int(severity, 0) >= WARNING]
    return row["_ws.malformed"] + row["isakmp.extradata"] + serious


def normal(values: list[str]) -> list[str]:
    """Without the difference between empty and absent, and with one way to write numbers."""
    return [str(int(value, 16)) if value.startswith("0x") else value.replace(":", "") for value in values if value]


@pytest.fixture(scope="module", params=[500, 4500])
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[str]]]:
    path = tmp_path_factory.mktemp("ikev2") / "own.pcap"
    write_pcap(path, [frame(message.encode(), request.param) for message in MESSAGES])
    fields = [*[qualified(field) for field in [*HEADER_FIELDS, "nextpayload", *FIELDS]], *COMPLAINTS]
    return dissect(path, fields)


def test_one_row_per_message(rows: list[dict[str, list[str]]]) -> None:
    assert len(rows) == len(MESSAGES)


@pytest.mark.parametrize("index", range(len(MESSAGES)))
def test_tshark_reads_the_same_fields(rows: list[dict[str, list[str]]], index: int) -> None:
    row, message = rows[index], MESSAGES[index]
    header, payloads = message.header, message.payloads
    assert {field: normal(row[f"isakmp.{field}"]) for field in HEADER_FIELDS} == {
        "ispi": [header.initiator_spi.hex()],
        "rspi": [header.responder_spi.hex()],
        "exchangetype": [str(header.exchange_type)],
        "flags": [str(header.flags)],
        "messageid": [str(header.message_id)],
        "length": [str(len(message.encode()))],
        "version": ["32"],
    }
    types = [str(payload.payload_type) for payload in payloads]
    wanted = merged(payloads)
    for field in FIELDS:
        read = normal(row[qualified(field)])
        assert read == [value.replace(":", "") for value in wanted.get(field, []) if value], field
    assert row["isakmp.nextpayload"][0] == types[0]
    assert complaints(row) == []


def test_tshark_finds_damage(tmp_path: Path) -> None:
    """The complaints that the other tests do not see are there to be seen."""
    path = tmp_path / "bad.pcap"
    datagram = MESSAGES[0].encode()
    write_pcap(path, [frame(datagram[:40] + b"\xff" + datagram[41:-20], 500)])
    (row,) = dissect(path, COMPLAINTS)
    assert complaints(row)


def test_tshark_opens_what_was_sealed_behind_our_associated_data(tmp_path: Path) -> None:
    """An SK payload sealed with AES-GCM over `encode_associated_data` decrypts in Wireshark to the payloads inside."""
    header = Header(bytes.fromhex("814b6e7d36de390b"), bytes.fromhex("d525482954410c23"), 35, 0x08, 1)
    inner = (Notify(16384), Notify(16391), Nonce(bytes(range(16))))
    first, encoded = encode_payloads(inner)
    plaintext = add_padding(encoded)
    initialization_vector = bytes(range(8))
    front = encode_associated_data(header, first, 8 + len(plaintext) + 16)
    key = read_keys(KEYS)[header.initiator_spi + header.responder_spi][0]
    sealed = AESGCM(key[:-4]).encrypt(key[-4:] + initialization_vector, plaintext, front)
    path = tmp_path / "sealed.pcap"
    write_pcap(path, [frame(front + initialization_vector + sealed, port) for port in (500, 4500)])
    table = KEYS.read_text().splitlines()[0]
    rows = dissect(
        path,
        ["isakmp.notify.msgtype", "isakmp.nonce", *COMPLAINTS],
        "-o",
        f"uat:ikev2_decryption_table:{table}",
    )
    assert len(rows) == 2
    for row in rows:
        assert row["isakmp.notify.msgtype"] == ["16384", "16391"]
        assert normal(row["isakmp.nonce"]) == [bytes(range(16)).hex()]
        assert complaints(row) == []
