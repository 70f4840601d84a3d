"""Recorded IKE exchanges: frames to datagrams, and the keys to open their SK payloads."""

from __future__ import annotations

import csv
import struct
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dsvpn.wire.ikev2 import (
    Encrypted,
    EncryptedFragment,
    Header,
    Message,
    find,
    remove_padding,
)

VECTORS = Path(__file__).parent.parent / "vectors" / "ikev2"

_ETHERNET, _IPV4, _UDP = 14, 20, 8


def datagrams(path: Path) -> list[bytes]:
    """The IKE datagrams of a little-endian pcap of Ethernet, IPv4 without options and UDP, non-ESP marker removed."""
    data = path.read_bytes()
    assert data[:4] == b"\xd4\xc3\xb2\xa1", f"{path} is not a little-endian pcap"
    found = []
    at = 24
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at + 8)
        udp = data[at + 16 + _ETHERNET + _IPV4 : at + 16 + length]
        at += 16 + length
        ports = struct.unpack_from("!HH", udp)
        body = udp[_UDP : struct.unpack_from("!H", udp, 4)[0]]
        if 4500 in ports:
            assert body[:4] == bytes(4), "not an IKE datagram"
            body = body[4:]
        found.append(body)
    return found


def read_keys(path: Path) -> dict[bytes, tuple[bytes, bytes]]:
    """SK_ei and SK_er by both SPIs, from lines of Wireshark's ikev2_decryption_table."""
    with path.open(newline="") as lines:
        rows = list(csv.reader(lines))
    return {bytes.fromhex(row[0] + row[1]): (bytes.fromhex(row[2]), bytes.fromhex(row[3])) for row in rows}


def open_sealed(message: Message, keys: dict[bytes, tuple[bytes, bytes]]) -> tuple[int, bytes] | None:
    """The first payload type and the plaintext, without padding, of an AES-GCM message; None if nothing is sealed."""
    sealed: Encrypted | EncryptedFragment | None = find(message.payloads, Encrypted)
    sealed = sealed or find(message.payloads, EncryptedFragment)
    if sealed is None:
        return None
    header: Header = message.header
    key = keys[header.initiator_spi + header.responder_spi][0 if header.from_initiator else 1]
    nonce = key[-4:] + sealed.data[:8]
    plaintext = AESGCM(key[:-4]).decrypt(nonce, sealed.data[8:], sealed.associated_data)
    return sealed.first_payload, remove_padding(plaintext)
