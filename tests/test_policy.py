"""MTU arithmetic and who calls first."""

from __future__ import annotations

import pytest

from dsvpn.commands import Encapsulation
from dsvpn.config.model import AuthConfig, IpsecConfig, TunnelConfig
from dsvpn.ike.suites import CBC_CIPHERS, CTR_CIPHERS, INTEGRITIES
from dsvpn.policy import NATED_CALLEE_DELAY, SECOND_CALLER_DELAY, call_delay, inner_mtu, tunnel_mtu
from tests.gateway.model import address


@pytest.mark.parametrize(
    ("version", "encapsulation", "key", "expected"),
    [
        # 1500 - 20 IP - 8 UDP - 8 ESP - 8 IV - 16 ICV = 1440 of plaintext; - 2 trailer - 4 or 8 GRE
        (4, "udp", None, 1434),
        (4, "udp", 42, 1430),
        (4, "esp", 42, 1438),
        (6, "udp", None, 1414),
        (4, "gre", None, 1476),
        (4, "gre", 42, 1472),
    ],
)
def test_inner_mtu(version: int, encapsulation: Encapsulation, key: int | None, expected: int) -> None:
    assert inner_mtu(1500, version, encapsulation, key) == expected


@pytest.mark.parametrize("encapsulation", ["udp", "esp"])
def test_no_packet_is_larger_than_the_underlay(encapsulation: Encapsulation) -> None:
    for underlay in range(1280, 1520):
        plaintext = 8 + inner_mtu(underlay, 4, encapsulation, 42) + 2
        plaintext += -plaintext % 4
        outer = 20 + (8 if encapsulation == "udp" else 0) + 16 + plaintext + 16
        assert underlay - 4 < outer <= underlay


@pytest.mark.parametrize("cipher", [*CBC_CIPHERS, *CTR_CIPHERS])
@pytest.mark.parametrize("integrity", INTEGRITIES)
@pytest.mark.parametrize("encapsulation", ["udp", "esp"])
def test_no_packet_under_hmac_is_larger_than_the_underlay(
    cipher: str, integrity: str, encapsulation: Encapsulation
) -> None:
    block, iv = (4, 8) if cipher.endswith("ctr") else (16, 16)
    for underlay in range(1280, 1360):
        plaintext = 8 + inner_mtu(underlay, 4, encapsulation, 42, f"{cipher}-{integrity}") + 2
        plaintext += -plaintext % block
        outer = 20 + (8 if encapsulation == "udp" else 0) + 8 + iv + plaintext + INTEGRITIES[integrity].icv_length
        assert underlay - block < outer <= underlay


def test_the_device_takes_what_fits_with_every_suite_of_the_profile() -> None:
    tunnel = TunnelConfig(address=("10.0.0.1/24",), source="eth0", key=42)  # type: ignore[arg-type]

    def mtu(*esp: str) -> int:
        return tunnel_mtu(tunnel, 1500, 4, IpsecConfig(esp=esp, auth=AuthConfig(psk="x")))

    assert mtu("aes128gcm16", "chacha20poly1305") == tunnel_mtu(tunnel, 1500) == 1430
    # 1500 - 20 IP - 8 UDP - 8 ESP - 16 IV - 32 ICV = 1416, of which 1408 are whole blocks; - 2 trailer - 8 GRE
    assert mtu("aes128gcm16", "aes256-sha512") == 1398
    assert mtu("aes128ctr-sha256") == 1430


def test_who_calls() -> None:
    low, high = address("10.0.0.11"), address("10.0.0.12")
    assert call_delay(low, high, local_nat=False, peer_nat=False) == 0
    assert call_delay(high, low, local_nat=False, peer_nat=False) == SECOND_CALLER_DELAY
    assert call_delay(low, high, local_nat=False, peer_nat=True) == NATED_CALLEE_DELAY
    assert call_delay(high, low, local_nat=True, peer_nat=False) == 0
