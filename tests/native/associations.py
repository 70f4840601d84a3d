"""scapy as the second author of ESP: SAs with the keys of ours."""

from __future__ import annotations

import hashlib
from typing import Any

from scapy.layers.inet import IP
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.layers.l2 import GRE
from scapy.packet import Raw

from dsvpn.ike.suites import parse_esp_suite
from tests.native.network import KEYMAT
from tests.native.vectors import KEY

_AEADS = {"aes128gcm16": "AES-GCM", "aes256gcm16": "AES-GCM", "chacha20poly1305": "CHACHA20-POLY1305"}
_INTEGRITY = {"sha256": "SHA2-256-128", "sha384": "SHA2-384-192", "sha512": "SHA2-512-256"}
#: The IP header of what the first gateway sends to the second.
_OUTER = IP(src="192.0.2.1", dst="192.0.2.2", proto=50)


def keymat(suite: str, side: int = 1) -> bytes:
    """Key material of what goes to a gateway (0 or 1): `KEYMAT`'s for both, or octets of no meaning."""
    if suite in KEYMAT:
        return KEYMAT[suite]
    return hashlib.shake_256(f"{suite} {side}".encode()).digest(parse_esp_suite(suite).keymat_length)


def association(spi: int, suite: str, esn: bool, tunnel_header: Any = None) -> Any:
    """scapy's SA of what goes to the second gateway; in tunnel mode with the header of its packets."""
    keys = keymat(suite)
    if suite in _AEADS:
        algorithms = {"crypt_algo": _AEADS[suite], "crypt_key": keys}
    else:
        esp = parse_esp_suite(suite)
        assert esp.integrity is not None
        split = esp.cipher.keymat_length
        algorithms = {
            "crypt_algo": "AES-CTR" if "ctr" in suite else "AES-CBC",
            "crypt_key": keys[:split],
            "auth_algo": _INTEGRITY[esp.integrity.name],
            "auth_key": keys[split:],
        }
    return SecurityAssociation(ESP, spi=spi, seq_num=1, tunnel_header=tunnel_header, esn_en=esn, esn=0, **algorithms)


def opened(sa: Any, datagram: bytes, outer: Any = _OUTER) -> Any:
    """What a datagram of ESP holds, with an IP header. An exception if it is not authentic."""
    return sa.decrypt(type(outer)(bytes(outer / ESP(datagram))))


def sealed(sa: Any, plain: Any) -> bytes:
    """A packet as a datagram of ESP."""
    return bytes(type(plain)(bytes(sa.encrypt(type(plain)(bytes(plain)))))[ESP])


def sealed_gre(sa: Any, octets: bytes) -> bytes:
    """An IPv4 packet of a LAN behind GRE, from the first gateway to the second, as a datagram of ESP."""
    gre = GRE(key_present=1, key=KEY, proto=0x0800)
    return sealed(sa, IP(src=_OUTER.src, dst=_OUTER.dst) / gre / Raw(octets))
