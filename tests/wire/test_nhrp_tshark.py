"""What two other authors make of our NHRP packets: tshark dissects them, scapy carries them."""

from __future__ import annotations

import json
import shutil
import subprocess
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from dsvpn.addresses import Address
from dsvpn.wire.nhrp import ErrorIndication, NhrpMessage, NhrpPacket, TrafficIndication, encode
from dsvpn.wire.nhrp_extensions import CieExtension, RawExtension, cisco_authentication_word
from tests.wire.nhrp_samples import own_samples

pytestmark = pytest.mark.interop

SAMPLES = own_samples()


@pytest.fixture(scope="module")
def dissected(tmp_path_factory: pytest.TempPathFactory) -> list[list[tuple[str, Any]]]:
    """The NHRP layer of each sample as tshark reads it: (field, value) pairs in the order of the packet."""
    from scapy.layers.inet import IP
    from scapy.layers.l2 import GRE
    from scapy.utils import wrpcap

    assert shutil.which("tshark"), "tshark is missing: install the Debian package tshark"
    path = tmp_path_factory.mktemp("nhrp") / "own.pcap"
    carrier = IP(src="192.0.2.1", dst="192.0.2.2") / GRE(proto=0x2001, key_present=1, key=42)
    wrpcap(str(path), [carrier / encode(packet) for packet in SAMPLES], linktype=101)
    return [dissect["nhrp"] for dissect in _tshark(path)]


def _tshark(path: Path) -> list[dict[str, list[tuple[str, Any]]]]:
    command = ["tshark", "-n", "-r", str(path), "-T", "json", "--no-duplicate-keys"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    frames = []
    for frame in json.loads(output):
        layers = frame["_source"]["layers"]
        frames.append({name: list(_walk(layer)) for name, layer in layers.items()})
    assert "Malformed" not in output
    return frames


def _walk(layer: Any) -> Any:
    """All fields of a layer, however deep; a repeated one comes as a list."""
    if isinstance(layer, dict):
        for name, value in layer.items():
            if isinstance(value, dict):
                yield from _walk(value)
            elif isinstance(value, list):
                for item in value:
                    if isinstance(item, dict):
                        yield from _walk(item)
                    else:
                        yield name, item
            else:
                yield name, value


def values(fields: list[tuple[str, Any]], name: str) -> list[str]:
    return [value for field, value in fields if field == name]


def number(fields: list[tuple[str, Any]], name: str) -> int:
    found = values(fields, name)
    assert found, f"tshark shows no {name}: {sorted({field for field, _ in fields})}"
    return int(found[0], 0)


def octets(fields: list[tuple[str, Any]], name: str) -> list[bytes]:
    """Addresses and data as octets; what is not an IPv4 address, tshark shows in a field of its own, as octets."""
    found = []
    for field, value in fields:
        if field == name and "." in value:
            found.append(ip_address(value).packed)
        elif field == name or field.startswith(f"{name}_by"):  # one of them is misspelled in tshark
            found.append(bytes.fromhex(value.replace(":", "")))
    return found


def _packed(address: Address | None) -> bytes:
    assert address is not None
    return address.packed


@pytest.mark.parametrize("index", range(len(SAMPLES)), ids=[f"{type(p).__name__}-{n}" for n, p in enumerate(SAMPLES)])
def test_tshark_agrees(dissected: list[list[tuple[str, Any]]], index: int) -> None:
    packet: NhrpPacket = SAMPLES[index]
    fields = dissected[index]
    assert number(fields, "nhrp.hdr.chksum.status") == 1, "checksum not good"
    assert number(fields, "nhrp.hdr.afn") == packet.family
    assert number(fields, "nhrp.hdr.pro.type") == packet.protocol_type
    assert number(fields, "nhrp.hdr.hopcnt") == packet.hop_count
    assert number(fields, "nhrp.hdr.pktsz") == len(encode(packet))
    assert octets(fields, "nhrp.src.nbma.addr")[0] == _packed(packet.source_nbma)
    assert octets(fields, "nhrp.src.prot.addr")[0] == _packed(packet.source_protocol)
    assert octets(fields, "nhrp.dst.prot.addr")[0] == _packed(packet.destination_protocol)
    if isinstance(packet, ErrorIndication):
        assert number(fields, "nhrp.err.code") == packet.code
        assert number(fields, "nhrp.err.offset") == packet.offset
        return
    if isinstance(packet, NhrpMessage):
        assert number(fields, "nhrp.hdr.op.type") == packet.type
        assert number(fields, "nhrp.reqid") == packet.request_id
        assert number(fields, "nhrp.flags") == packet.flags
        first = packet.cies[0]
        assert number(fields, "nhrp.code") == first.code
        assert number(fields, "nhrp.prefix") == first.prefix_length
        assert number(fields, "nhrp.mtu") == first.mtu
        assert number(fields, "nhrp.htime") == first.holding_time
        assert number(fields, "nhrp.pref") == first.preference
        cies = list(packet.cies)
        for extension in packet.extensions:
            if isinstance(extension, CieExtension):
                cies += extension.cies
        assert octets(fields, "nhrp.client.nbma.addr") == [_packed(cie.nbma) for cie in cies]
        assert octets(fields, "nhrp.client.prot.addr") == [_packed(cie.protocol) for cie in cies]
    assert isinstance(packet, NhrpMessage | TrafficIndication)
    shown = [int(text, 0) for text in values(fields, "nhrp.ext.type")]
    assert shown == [extension.type for extension in packet.extensions] + [0]
    words = [cisco_authentication_word(e) for e in packet.extensions if isinstance(e, RawExtension) and e.type == 7]
    # tshark knows the RFC's form alone, where an address precedes the data: together they are Cisco's word.
    address = octets(fields, "nhrp.auth_ext.src_addr")
    data = octets(fields, "nhrp.auth_ext.data")
    assert [one + other for one, other in zip(address, data, strict=True)] == words


def test_tshark_sees_damage(tmp_path: Path) -> None:
    """The check above can fail: a packet with a wrong octet is shown with a bad checksum."""
    from scapy.layers.inet import IP
    from scapy.layers.l2 import GRE
    from scapy.utils import wrpcap

    data = bytearray(encode(SAMPLES[0]))
    data[30] ^= 1
    path = tmp_path / "bad.pcap"
    wrpcap(str(path), [IP(src="192.0.2.1", dst="192.0.2.2") / GRE(proto=0x2001) / bytes(data)], linktype=101)
    assert number(_tshark(path)[0]["nhrp"], "nhrp.hdr.chksum.status") == 0
