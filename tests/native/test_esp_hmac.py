"""AES-CBC and AES-CTR with HMAC-SHA2 in the data plane, with scapy as the second author of ESP and tshark as reader."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import GRE
from scapy.packet import Raw
from scapy.utils import wrpcap

from dsvpn.ike.suites import CBC_CIPHERS, CTR_CIPHERS, INTEGRITIES, parse_esp_suite
from dsvpn.io.keylog import KeyLog
from dsvpn.policy import inner_mtu
from tests.decryption import echoes_seen_by_tshark
from tests.native.associations import association, keymat, opened, sealed_gre
from tests.native.vectors import (
    ADJACENCY,
    KEY,
    Encapsulation,
    Gateway,
    TunPacket,
    datagram_rows,
    ip,
    octets_of,
    payload,
    split_datagrams,
)

SUITES = [f"{cipher}-{integrity}" for cipher in [*CBC_CIPHERS, *CTR_CIPHERS] for integrity in INTEGRITIES]
SIZES = [*range(40), 100, 1000, 1300]
ESN = pytest.mark.parametrize("esn", [False, True], ids=["no-esn", "esn"])


def pair(suite: str, esn: bool, encapsulation: Encapsulation = "esp") -> tuple[Gateway, Gateway]:
    made = Gateway(1, encapsulation), Gateway(2, encapsulation)
    for side, (one, other) in enumerate((made, made[::-1])):
        one.forwarder.add_inbound_sa(one.spi, suite, keymat(suite, side), [ADJACENCY], esn, 1024)
        one.forwarder.set_outbound_sa(other.spi, suite, keymat(suite, 1 - side), [ADJACENCY], esn)
        one.forwarder.commit()
    return made


def test_there_are_tests_of_every_suite() -> None:
    assert len(SUITES) == 18


@ESN
@pytest.mark.parametrize("suite", SUITES)
def test_scapy_opens_what_is_sealed(suite: str, esn: bool) -> None:
    one, other = pair(suite, esn)
    packets = [TunPacket(bytes(ip() / ICMP(seq=size) / payload(size))) for size in SIZES]
    arena, datagrams = one.encap_all(packets)
    opener = association(other.spi, suite, esn)
    esp = parse_esp_suite(suite)
    ivs = set()
    sent = split_datagrams(arena, datagrams)
    for number, (datagram, packet) in enumerate(zip(sent, packets, strict=True), 1):
        assert (int.from_bytes(datagram[:4]), int.from_bytes(datagram[4:8])) == (other.spi, number)
        ivs.add(datagram[8 : 8 + esp.iv_length])
        ciphertext = len(datagram) - 8 - esp.iv_length - esp.icv_length
        # As much padding as the cipher needs and no more.
        assert 0 <= ciphertext - (8 + len(packet.octets) + 2) < esp.block_length
        assert ciphertext % esp.block_length == 0
        inner = opened(opener, datagram)
        assert inner.proto == 47
        assert inner[GRE].key == KEY
        assert bytes(inner[GRE].payload) == packet.octets
    assert len(ivs) == len(packets)
    assert octets_of(*other.decap(arena, datagrams).gather(arena)) == [packet.octets for packet in packets]
    assert not one.drops()
    assert not other.drops()


@ESN
@pytest.mark.parametrize("suite", SUITES)
def test_what_scapy_seals_is_opened(suite: str, esn: bool) -> None:
    _, other = pair(suite, esn)
    sealer = association(other.spi, suite, esn)
    inner = [bytes(ip() / ICMP(seq=size) / payload(size)) for size in SIZES]
    datagrams = [sealed_gre(sealer, octets) for octets in inner]
    arena, rows = datagram_rows(datagrams, "esp")
    assert octets_of(*other.decap(arena, rows).gather(arena)) == inner
    assert not other.drops()
    # The first again, and each octet of the last changed.
    again, rows = datagram_rows([datagrams[0]], "esp")
    other.decap(again, rows)
    assert other.drops() == {"drop_replayed": 1}
    fresh, rows = datagram_rows([datagrams[-1][:7] + bytes((200,)) + datagrams[-1][8:]], "esp")
    other.decap(fresh, rows)
    assert other.drops()["drop_unauthentic"] == 1


def test_aes_of_counters_tells_no_iv_of_cbc_ahead() -> None:
    one, _ = pair("aes256-sha256", True)
    other, _ = pair("aes128-sha256", True)
    packet = TunPacket(bytes(ip() / ICMP() / payload(20)))
    sent = [split_datagrams(*gateway.encap_all([packet] * 50)) for gateway in (one, other)]
    ivs = [datagram[8:24] for datagrams in sent for datagram in datagrams]
    assert len(set(ivs)) == 100
    # No octet of them counts: about half of the bits change from one to the next.
    flips = [(int.from_bytes(a) ^ int.from_bytes(b)).bit_count() for a, b in itertools.pairwise(ivs)]
    assert 54 < sum(flips) / len(flips) < 74


@pytest.mark.parametrize("encapsulation", ["udp", "esp"])
@pytest.mark.parametrize("suite", SUITES)
def test_a_full_packet_fits_the_underlay(suite: str, encapsulation: Encapsulation) -> None:
    one, other = pair(suite, True, encapsulation)
    mtu = inner_mtu(1500, 4, encapsulation, KEY, suite)
    port = 4500 if encapsulation == "udp" else 0
    for gateway, local, remote in ((one, "192.0.2.1", "192.0.2.2"), (other, "192.0.2.2", "192.0.2.1")):
        gateway.forwarder.set_adjacency(ADJACENCY, gateway.tunnel, encapsulation, local, remote, port, mtu)
        gateway.forwarder.commit()
    packet = TunPacket(bytes(ip(flags="DF") / UDP() / payload(mtu - 28)))
    arena, datagrams = one.encap_all([packet])
    (datagram,) = split_datagrams(arena, datagrams)
    outer = 20 + (8 if encapsulation == "udp" else 0) + len(datagram)
    assert 1500 - parse_esp_suite(suite).block_length < outer <= 1500
    assert octets_of(*other.decap(arena, datagrams).gather(arena)) == [packet.octets]


@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")
def test_tshark_decrypts_every_suite_by_the_key_log(tmp_path: Path) -> None:
    log = KeyLog(tmp_path / "keys")
    packets = []
    for suite in SUITES:
        one, other = pair(suite, False)
        sent = split_datagrams(*one.encap_all([TunPacket(bytes(ip() / ICMP() / payload(33)))]))
        # Each with an SPI of its own, so that tshark cannot take another suite's keys.
        log.esp_sa("192.0.2.2", "outbound", other.spi, suite, keymat(suite, 1))
        packets += [IP(src="192.0.2.1", dst="192.0.2.2", proto=50) / Raw(datagram) for datagram in sent]
    log.close()
    capture = tmp_path / "esp.pcap"
    wrpcap(str(capture), packets)
    echoes, complaints = echoes_seen_by_tshark(capture, tmp_path / "keys")
    assert "Error loading table" not in complaints
    assert echoes == [["8", "0x0000002a", "1"]] * 18, complaints


def test_a_stage_that_is_an_aead_takes_none_of_them() -> None:
    from dsvpn_native import Cipher

    with pytest.raises(ValueError, match='suite: "aes256-sha256" is no AEAD'):
        Cipher("aes256-sha256", bytes(64))
