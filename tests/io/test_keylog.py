"""The key log, judged by tshark: what it cannot decrypt was not logged well."""

from __future__ import annotations

import os
import shutil
import stat
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import GRE
from scapy.packet import Raw
from scapy.utils import wrpcap

from dsvpn.errors import HostError
from dsvpn.io.keylog import KeyLog
from tests.decryption import echoes_seen_by_tshark

HERE, PEER = "192.0.2.1", "192.0.2.2"


def sealed(spi: int, keymat: bytes, inner: bytes) -> bytes:
    """ESP of GRE, written without this project's code (RFC 4303, RFC 4106)."""
    key, salt = keymat[:-4], keymat[-4:]
    header, iv = struct.pack(">II", spi, 1), struct.pack(">Q", 5)
    pad = -(len(inner) + 2) % 4
    plain = inner + bytes(range(1, pad + 1)) + bytes([pad, 47])
    return header + iv + AESGCM(key).encrypt(salt + iv, plain, header)


@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")
def test_tshark_decrypts_what_was_logged(tmp_path: Path) -> None:
    log = KeyLog(tmp_path / "keys")
    inner = bytes(GRE(proto=0x0800, key_present=1, key=42) / IP(src="10.1.0.1", dst="10.2.0.1") / ICMP() / b"payload.")
    packets = []
    for number, (suite, length) in enumerate((("aes128gcm16", 20), ("aes256gcm16", 36))):
        there, back = 0x11000000 + number, 0x22000000 + number
        keymat_there, keymat_back = os.urandom(length), os.urandom(length)
        packets.append(IP(src=HERE, dst=PEER, proto=50) / Raw(sealed(there, keymat_there, inner)))
        udp = UDP(sport=4500, dport=4500)
        packets.append(IP(src=PEER, dst=HERE) / udp / Raw(sealed(back, keymat_back, inner)))
        log.esp_sa(PEER, "outbound", there, suite, keymat_there)
        log.esp_sa(PEER, "inbound", back, suite, keymat_back)
        log.esp_sa(PEER, "inbound", back, suite, keymat_back)
    # A cipher that this tshark may not know must not spoil the table for the others.
    log.esp_sa(PEER, "inbound", 0x33000000, "chacha20poly1305", os.urandom(36))
    log.ike_sa('0000000000000001,0000000000000002,00,00,"AES-GCM-128 with 16 octet ICV [RFC5282]",,,"NONE"')
    log.close()
    assert len((tmp_path / "keys" / "esp_sa").read_text().splitlines()) == 4
    capture = tmp_path / "esp.pcap"
    wrpcap(str(capture), packets)

    echoes, complaints = echoes_seen_by_tshark(capture, tmp_path / "keys")
    assert "Error loading table 'ESP SAs'" not in complaints
    assert echoes == [["8", "0x0000002a", "1"]] * 4, complaints


def test_only_the_owner_can_read_the_keys(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    directory.mkdir()
    (directory / "esp_sa").touch(mode=0o644)
    KeyLog(directory).close()
    assert {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()} == {0o600}


def test_keys_do_not_go_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "esp_sa").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError, match=r"gateway\.key_log: cannot write to .*esp_sa"):
        KeyLog(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_an_earlier_log_is_added_to(tmp_path: Path) -> None:
    for spi in (0x1000, 0x2000):
        log = KeyLog(tmp_path)
        log.esp_sa("2001:db8::1", "inbound", spi, "aes128gcm16", bytes(20))
        log.close()
    lines = (tmp_path / "esp_sa").read_text().splitlines()
    assert [line.split(",")[:4] for line in lines] == [
        ['"IPv6"', '"2001:db8::1"', '"*"', '"0x00001000"'],
        ['"IPv6"', '"2001:db8::1"', '"*"', '"0x00002000"'],
    ]
