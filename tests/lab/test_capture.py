"""Classification of underlay packets, with packets that scapy wrote."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.layers.ipsec import ESP
from scapy.layers.isakmp import ISAKMP
from scapy.layers.l2 import ARP, GRE

from dsvpn.errors import DecodeError
from dsvpn.lab.capture import (
    COMPARISON_PORT,
    Packet,
    Traffic,
    classify,
    count,
    find_switch,
    holds_plaintext,
    read_pcap,
)
from dsvpn.lab.topology import HUB, SPOKE1, SPOKE2, Site

IPV4, ARP_TYPE, IPV6 = 0x0800, 0x0806, 0x86DD


def ike() -> bytes:
    return bytes(ISAKMP(init_cookie=b"\x01" * 8, version=0x20, exch_type=34, length=28))


def udp(sport: int, dport: int, payload: bytes) -> bytes:
    return bytes(IP(src="192.0.2.1", dst="192.0.2.12") / UDP(sport=sport, dport=dport) / payload)


def esp(spi: int = 0x1234_5678, size: int = 64) -> bytes:
    return bytes(ESP(spi=spi, seq=1, data=bytes(size)))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (udp(500, 500, ike()), Traffic.IKE),
        (udp(1025, 500, ike()), Traffic.IKE),
        (udp(4500, 61000, bytes(4) + ike()), Traffic.IKE),
        (udp(4500, 4500, b"\xff"), Traffic.KEEPALIVE),
        (udp(61000, 4500, esp()), Traffic.ESP_IN_UDP),
        (bytes(IP(proto=50) / esp()), Traffic.ESP),
        (bytes(IP(proto=47) / GRE() / IP() / ICMP()), Traffic.GRE),
        (udp(COMPARISON_PORT, 1030, b"x" * 32), Traffic.COMPARISON),
    ],
)
def test_what_a_vpn_sends_is_recognised(data: bytes, expected: Traffic) -> None:
    assert classify(IPV4, data) is expected


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(udp(500, 500, b"GET / HTTP/1.1\r\nHost: a.example\r\n"), id="text on port 500"),
        pytest.param(udp(500, 500, bytes(ISAKMP(version=0x10, length=28))), id="IKEv1"),
        pytest.param(udp(4500, 4500, bytes(4) + b"not an IKE message, but behind a marker"), id="marker and no IKE"),
        pytest.param(udp(4500, 4500, struct.pack("!II", 255, 1) + bytes(32)), id="reserved SPI in UDP"),
        pytest.param(udp(4500, 4500, b"\xff\xff"), id="two octets"),
        pytest.param(bytes(IP(proto=50) / struct.pack("!II", 12, 1)), id="reserved SPI"),
        pytest.param(bytes(IP() / ICMP()), id="ICMP"),
        pytest.param(bytes(IP() / TCP()), id="TCP"),
        pytest.param(bytes(IP(proto=50, frag=4) / esp()), id="later fragment"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_other_packets_are_not_excused_by_their_port(data: bytes) -> None:
    assert classify(IPV4, data) is Traffic.OTHER


def test_link_local_protocols() -> None:
    assert classify(ARP_TYPE, bytes(ARP())) is Traffic.NEIGHBOUR
    assert classify(IPV6, bytes(IPv6() / ICMPv6ND_NS())) is Traffic.NEIGHBOUR
    assert classify(IPV6, bytes(IPv6() / ICMPv6EchoRequest())) is Traffic.OTHER
    assert classify(0x88CC, bytes(60)) is Traffic.OTHER


def write_pcap(file: Path, packets: list[Packet], link_type: int = 276) -> None:
    records = b""
    for packet in packets:
        data = struct.pack("!HHIHBB8s", packet.protocol, 0, 2, 1, 0, 6, bytes(8)) + packet.data
        seconds = int(packet.time)
        records += struct.pack("<IIII", seconds, round((packet.time - seconds) * 1e6), len(data), len(data)) + data
    file.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, link_type) + records)


def test_a_capture_file_is_read_back(tmp_path: Path) -> None:
    packets = [Packet(1000.25, IPV4, udp(500, 500, ike())), Packet(1000.5, ARP_TYPE, bytes(ARP()))]
    write_pcap(tmp_path / "a.pcap", packets)
    assert list(read_pcap(tmp_path / "a.pcap")) == packets
    assert count(packets) == {Traffic.IKE: 1, Traffic.NEIGHBOUR: 1}


def test_a_truncated_capture_file_is_an_error(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pcap"
    write_pcap(whole, [Packet(1.0, IPV4, udp(500, 500, ike()))])
    content = whole.read_bytes()
    for length in [*range(24), *range(25, len(content))]:
        cut = tmp_path / "cut.pcap"
        cut.write_bytes(content[:length])
        with pytest.raises(DecodeError):
            list(read_pcap(cut))


def test_another_link_type_is_an_error(tmp_path: Path) -> None:
    write_pcap(tmp_path / "a.pcap", [], link_type=1)
    with pytest.raises(DecodeError, match="LINUX_SLL2"):
        list(read_pcap(tmp_path / "a.pcap"))


def test_text_in_clear_is_found() -> None:
    clear = Packet(0.0, IPV4, bytes(IP() / ICMP() / b"the pattern inside"))
    sealed = Packet(0.0, IPV4, bytes(IP(proto=50) / esp()))
    assert holds_plaintext([clear, sealed], b"pattern") == [clear]


def data_packet(time: float, source: Site, target: Site, size: int = 1000) -> Packet:
    payload = UDP(sport=4500, dport=4500) / esp(size=size)
    return Packet(time, IPV4, bytes(IP(src=str(source.public), dst=str(target.public)) / payload))


def test_the_switch_to_the_direct_path_counts_from_the_first_packet_to_the_slower_direction() -> None:
    message = UDP(sport=4500, dport=4500) / (bytes(4) + ike())
    between = bytes(IP(src=str(SPOKE1.public), dst=str(SPOKE2.public)) / message)
    switch = find_switch(
        [
            data_packet(9.0, SPOKE1, HUB),  # before the ping began
            data_packet(10.0, SPOKE1, HUB),
            data_packet(10.01, HUB, SPOKE2),
            Packet(10.02, IPV4, between),
            data_packet(10.03, SPOKE1, SPOKE2, size=100),  # not one of the pings
            data_packet(10.2, SPOKE1, SPOKE2),
            data_packet(10.21, SPOKE2, HUB),
            data_packet(10.3, SPOKE2, SPOKE1),
        ],
        since=9.5,
        at_least=1000,
    )
    assert (switch.by_hub, switch.direct) == (3, 2)
    assert switch.first_ike == 10.02
    assert switch.last_by_hub == 10.21
    assert switch.seconds == pytest.approx(0.3)


def test_one_direction_alone_is_no_switch() -> None:
    assert find_switch([data_packet(1.0, SPOKE1, SPOKE2)], 0.0, 1000).seconds is None
    assert find_switch([], 0.0, 1000).seconds is None


def test_only_ipv4_packets_have_addresses() -> None:
    assert data_packet(0.0, SPOKE1, HUB).addresses == (SPOKE1.public, IPv4Address("192.0.2.1"))
    assert Packet(0.0, ARP_TYPE, bytes(ARP())).addresses is None
