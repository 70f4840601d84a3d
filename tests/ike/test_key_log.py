"""Wireshark opens IKE with the key log."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.ike.harness import NAT_ADDRESS, Nat, Wire, both_options, make_wire


def write_capture(file: Path, net: Wire) -> None:
    """The recorded datagrams as raw IPv4 packets, with the non-ESP marker on port 4500."""
    out = bytearray(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101))
    for number, flight in enumerate(net.record):
        source, target = flight.path.remote, flight.path.local
        data = (bytes(4) if target.port == 4500 else b"") + flight.data
        udp = struct.pack("!HHHH", source.port, target.port, 8 + len(data), 0) + data
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), number, 0, 64, 17, 0)
        packet = header + source.address.packed + target.address.packed + udp
        out += struct.pack("<IIII", number, 0, len(packet), len(packet)) + packet
    file.write_bytes(bytes(out))


def dissect(directory: Path, net: Wire) -> list[dict[str, Any]]:
    assert shutil.which("tshark"), "tshark is missing: install the Debian package tshark"
    write_capture(directory / "ike.pcap", net)
    (directory / "ikev2_decryption_table").write_text("".join(f"{line}\n" for line in net.a.key_log))
    result = subprocess.run(
        ["tshark", "-r", str(directory / "ike.pcap"), "-T", "json", "--no-duplicate-keys"],
        env=os.environ | {"HOME": str(directory), "WIRESHARK_CONFIG_DIR": str(directory)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    packets = [packet["_source"]["layers"] for packet in json.loads(result.stdout)]
    assert len(packets) == len(net.record)
    return packets


@pytest.mark.parametrize(
    "suite",
    [
        "aes128gcm16-prfsha256-x25519",
        "aes256gcm16-prfsha384-ecp384",
        "aes256gcm16-prfsha512-modp2048",
        "aes128-sha256-prfsha256-x25519",
        "aes256-sha512-prfsha512-ecp521",
    ],
)
@pytest.mark.parametrize("nat", [False, True], ids=["500", "4500"])
def test_tshark_decrypts_with_the_key_log(tmp_path: Path, suite: str, nat: bool) -> None:
    """The handshake, a rekey of each kind and a delete: tshark reads what is inside."""
    net = make_wire(*both_options(ike=(suite,)), nats={"a": Nat(NAT_ADDRESS)} if nat else None)
    net.connect()
    net.a.engine.rekey_child(net.a.handle, net.a.child.inbound_spi, net.now)
    net.settle()
    net.b.engine.rekey_ike(net.b.handle, net.now)
    net.settle()
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.settle()
    net.a.engine.delete(net.a.handle, net.now, "done")
    net.settle()
    assert net.a.key_log == net.b.key_log
    assert len(net.a.key_log) == 2
    for number, packet in enumerate(dissect(tmp_path, net)):
        text = json.dumps(packet["isakmp"])
        assert "Malformed" not in json.dumps(packet), number
        assert "incorrect" not in text, number
        if number >= 2:
            assert "isakmp.enc.decrypted" in text, number
        if number == 2:
            for field in ("isakmp.auth.data", "isakmp.id.data.fqdn", "isakmp.ts.protoid"):
                assert field in text, text
            assert '"isakmp.id.data.fqdn": "a"' in text


def test_chacha20poly1305_is_a_comment(tmp_path: Path) -> None:
    """Wireshark has no name for it in this table, and would refuse the whole table for one that it does not know."""
    net = make_wire(*both_options(ike=("chacha20poly1305-prfsha256-x25519",)))
    net.connect()
    assert [line.startswith("# ") for line in net.a.key_log] == [True]
    packets = dissect(tmp_path, net)
    assert "isakmp.enc.decrypted" not in json.dumps(packets)


def test_tshark_reads_what_follows_ike_intermediate(tmp_path: Path) -> None:
    """Each additional key exchange makes new keys for the same SPIs; Wireshark knows the last of the table, which are
    those of IKE_AUTH and all that follows."""
    options = {"ike": ("aes256gcm16-prfsha384-x25519-ke1_mlkem768",), "fragment_size": 4000}
    net = make_wire(*both_options(**options))
    net.connect()
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.settle()
    assert net.a.key_log == net.b.key_log
    assert len(net.a.key_log) == 2
    packets = dissect(tmp_path, net)
    assert len(packets) == 8
    for number, packet in enumerate(packets):
        text = json.dumps(packet["isakmp"])
        if number in (2, 3):
            assert '"isakmp.exchangetype": "43"' in text
        if number >= 4:
            assert "isakmp.enc.decrypted" in text, number
            assert "incorrect" not in text, number
