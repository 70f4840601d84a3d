"""ESP is taken as protocol 50 and in UDP, whichever was agreed on (RFC 7296 section 2.23)."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP

from tests.native.vectors import (
    Encapsulation,
    TunPacket,
    datagram_rows,
    gateways,
    ip,
    octets_of,
    payload,
    split_datagrams,
)


@pytest.mark.parametrize(("agreed", "comes"), [("esp", "udp"), ("udp", "esp"), ("udp", "udp"), ("esp", "esp")])
def test_esp_comes_either_way(agreed: Encapsulation, comes: str) -> None:
    """An end may find a NAT that the other does not know of yet; packets on their way stay good."""
    one, other = gateways(agreed)
    packets = [TunPacket(bytes(ip() / ICMP(seq=size) / payload(size))) for size in (1, 100, 1000)]
    arena, rows = datagram_rows(split_datagrams(*one.encap_all(packets)), comes)
    assert octets_of(*other.decap(arena, rows).gather(arena)) == [packet.octets for packet in packets]
    assert not other.drops()
