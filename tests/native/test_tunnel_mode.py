"""ESP in tunnel mode between arenas, with scapy as the second author, and tshark as reader of the IP header inside."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import GRE
from scapy.packet import Raw

from dsvpn.ike.suites import parse_esp_suite
from dsvpn.policy import inner_mtu
from tests.native.associations import association, keymat, opened, sealed
from tests.native.vectors import (
    ADJACENCY,
    KEY,
    Gateway,
    TunPacket,
    datagram_rows,
    ip,
    octets_of,
    payload,
    split_datagrams,
)

SUITES = ["aes128gcm16", "aes256gcm16", "aes256-sha256", "aes128ctr-sha512"]
SIZES = [*range(20), 100, 1000, 1300]
ENDS = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}


def pair(suite: str, esn: bool, version: int, mtu: int = 1430) -> tuple[Gateway, Gateway]:
    """What the first sends, the second takes."""
    one, other = Gateway(1, "esp"), Gateway(2, "esp")
    for gateway, (local, remote) in ((one, ENDS[version]), (other, ENDS[version][::-1])):
        gateway.forwarder.set_adjacency(ADJACENCY, gateway.tunnel, "esp-tunnel", local, remote, 0, mtu)
        # The endpoints that the rows of datagrams name have index 0.
        gateway.endpoints = gateway.forwarder.add_endpoints(local, 0, remote, 0)
    other.forwarder.add_inbound_sa(other.spi, suite, keymat(suite), [ADJACENCY], esn, 1024)
    one.forwarder.set_outbound_sa(other.spi, suite, keymat(suite), [ADJACENCY], esn)
    for gateway in (one, other):
        gateway.forwarder.commit()
    return one, other


def header(version: int, local: str, remote: str, protocol: int = 0) -> Any:
    """An IP header between two addresses."""
    return IP(src=local, dst=remote, proto=protocol) if version == 4 else IPv6(src=local, dst=remote, nh=protocol)


@pytest.mark.parametrize("esn", [False, True], ids=["no-esn", "esn"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("suite", SUITES)
def test_scapy_opens_what_is_sealed(suite: str, version: int, esn: bool) -> None:
    one, other = pair(suite, esn, version)
    packets = [TunPacket(bytes(ip(tos=0xB8) / ICMP(seq=size) / payload(size))) for size in SIZES]
    arena, datagrams = one.encap_all(packets)
    opener = association(other.spi, suite, esn, header(version, *ENDS[version]))
    outer = header(version, *ENDS[version], 50)
    for datagram, packet in zip(split_datagrams(arena, datagrams), packets, strict=True):
        inner = opened(opener, datagram, outer)
        assert type(inner) is type(outer)
        assert (inner.src, inner.dst) == ENDS[version]
        if version == 4:
            assert (inner.proto, inner.tos, str(inner.flags), inner.ttl) == (47, 0xB8, "DF", 64)
            again = inner.copy()
            del again.chksum, again.len
            assert bytes(again) == bytes(inner)
        else:
            assert (inner.nh, inner.tc, inner.plen) == (47, 0xB8, 8 + len(packet.octets))
        assert inner[GRE].key == KEY
        assert bytes(inner[GRE].payload) == packet.octets
    assert octets_of(*other.decap(arena, datagrams).gather(arena)) == [packet.octets for packet in packets]
    assert not one.drops()
    assert not other.drops()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("suite", SUITES)
def test_what_scapy_seals_is_opened_between_these_addresses_alone(suite: str, version: int) -> None:
    _, other = pair(suite, True, version)
    local, remote = ENDS[version]
    sealer = association(other.spi, suite, True, header(version, local, remote))
    gre = GRE(key_present=1, key=KEY, proto=0x0800)

    def between(source: str, destination: str, content: Any) -> bytes:
        return sealed(sealer, header(version, source, destination, 47) / content)

    inner = [bytes(ip() / ICMP(seq=size) / payload(size)) for size in SIZES]
    arena, rows = datagram_rows([between(local, remote, gre / Raw(octets)) for octets in inner], "esp")
    assert octets_of(*other.decap(arena, rows).gather(arena)) == inner
    assert not other.drops()

    stranger = "192.0.2.77" if version == 4 else "2001:db8::77"
    for number, ends in enumerate([(stranger, remote), (local, stranger), (remote, local)], 1):
        arena, rows = datagram_rows([between(*ends, gre / Raw(inner[0]))], "esp")
        assert not octets_of(*other.decap(arena, rows).gather(arena))
        assert other.drops() == {"drop_tunnel_header": number}
    # Users' packets without GRE are nobody's either.
    arena, rows = datagram_rows([between(local, remote, Raw(b"x" * 30))], "esp")
    assert not octets_of(*other.decap(arena, rows).gather(arena))
    assert other.drops() == {"drop_tunnel_header": 3, "drop_malformed_gre": 1}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("suite", SUITES)
def test_a_full_packet_fits_the_underlay(suite: str, version: int) -> None:
    mtu = inner_mtu(1500, version, "esp-tunnel", KEY, suite)
    one, other = pair(suite, True, version, mtu)
    packet = TunPacket(bytes(ip(flags="DF") / UDP() / payload(mtu - 28)))
    arena, datagrams = one.encap_all([packet])
    (datagram,) = split_datagrams(arena, datagrams)
    outer = (20 if version == 4 else 40) + len(datagram)
    assert 1500 - parse_esp_suite(suite).block_length < outer <= 1500
    assert octets_of(*other.decap(arena, datagrams).gather(arena)) == [packet.octets]


def test_a_superpacket_is_cut_into_packets_of_tunnel_mode() -> None:
    from tests.native.vectors import tcp_superpacket

    one, other = pair("aes128gcm16", True, 4)
    arena, datagrams = one.encap_all([tcp_superpacket(4, 60_000, 1300)])
    sent = split_datagrams(arena, datagrams)
    assert len(sent) == 47
    result = other.decap(arena, datagrams)
    assert result.packets[0, 6] == 47
    assert octets_of(*result.gather(arena))[0][-60_000:] == payload(60_000)
