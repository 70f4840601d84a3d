"""Commands on the tables: what they refuse and in which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import dsvpn_native
from dsvpn_native import Dataplane, MemoryForwarder, Tables
from tests.native.network import KEYMAT

Command = Callable[[MemoryForwarder], object]
KEY = KEYMAT["aes128gcm16"]
OTHER: Any = "tcp"


@pytest.fixture
def tables() -> MemoryForwarder:
    """A tunnel (0), an adjacency (1) and a next hop (2) with a route."""
    made = MemoryForwarder()
    made.add_tunnel(key=1)
    made.set_adjacency(1, 0, "udp", "192.0.2.1", "192.0.2.2", 4500, 1400)
    made.set_next_hop(2, 1, False)
    made.set_route(0, "10.0.0.0/8", 2)
    made.commit()
    return made


REFUSED: list[tuple[Command, str]] = [
    (lambda t: t.set_adjacency(1, 9, "udp", "", "192.0.2.2", 4500, 1400), "tunnel: there is no tunnel 9"),
    (lambda t: t.set_adjacency(-1, 0, "udp", "", "192.0.2.2", 4500, 1400), "adjacency: -1 is not an unsigned integer"),
    (lambda t: t.set_adjacency(1, 0, OTHER, "", "192.0.2.2", 4500, 1400), 'encapsulation: "tcp" is none of udp'),
    (lambda t: t.set_adjacency(1, 0, "gre", "", "192.0.2.2", 0, 1400), "encapsulation: tunnel 0 is protected"),
    (lambda t: t.set_adjacency(1, 0, "udp", "here", "192.0.2.2", 4500, 1400), 'local: "here" is not an IP address'),
    (lambda t: t.set_adjacency(1, 0, "udp", "", "there", 4500, 1400), 'remote: "there" is not an IP address'),
    (lambda t: t.set_adjacency(1, 0, "udp", "::1", "192.0.2.2", 4500, 1400), "local: ::1 is not of the same address"),
    (lambda t: t.set_adjacency(1, 0, "udp", "", "192.0.2.2", 65536, 1400), "remote_port: 65536 is not"),
    (lambda t: t.set_adjacency(1, 0, "udp", "", "192.0.2.2", 0, 1400), "remote_port: udp needs a port"),
    (lambda t: t.set_adjacency(1, 0, "udp", "", "192.0.2.2", 4500, 20), "mtu: 20 is not between"),
    (lambda t: t.remove_adjacency(8), "adjacency: there is no adjacency 8"),
    (lambda t: t.set_route(0, "10.0.0.1/8", 2), 'prefix: "10.0.0.1/8" is not a prefix without host bits'),
    (lambda t: t.set_route(0, "10.0.0.0/8", 9), "next_hop: there is no next hop 9"),
    (lambda t: t.remove_route(0, "11.0.0.0/8"), "prefix: tunnel 0 has no route 11.0.0.0/8"),
    (lambda t: t.remove_next_hop(2), "next_hop: 1 routes point at 2"),
    (lambda t: t.set_multicast(0, [4]), "adjacency: there is no adjacency 4"),
    (lambda t: t.release_spi(300), "spi: 0x0000012c was not allocated"),
    (lambda t: t.add_inbound_sa(300, "aes128gcm16", KEY, [1], True, 64), "spi: 0x0000012c was not allocated"),
    (lambda t: t.set_outbound_sa(255, "aes128gcm16", KEY, [1], True), "spi: 255 is reserved"),
    (lambda t: t.set_outbound_sa(256, "aes128gcm16", KEY[1:], [1], True), "keymat: aes128gcm16 takes 20 octets"),
    (lambda t: t.set_outbound_sa(256, "des", KEY, [1], True), 'suite: "des" is none of'),
    (lambda t: t.set_outbound_sa(256, "aes128gcm16", KEY, [], True), "adjacencies: name at least one"),
    (lambda t: t.clear_outbound_sa(9), "adjacency: there is no adjacency 9"),
    (lambda t: t.set_outbound_sa(256, "aes128gcm16", KEY, [1], True, 16), "resource: 16 is not between 0 and 15"),
    (lambda t: t.clear_outbound_sa(1, -1), "resource: "),
    (lambda t: t.outbound_sa_counters(1, 3), "adjacency: 1 has no outbound SA"),
    (lambda t: t.adjacency_counters(9), "adjacency: there is no adjacency 9"),
    (lambda t: t.sa_counters(300), "spi: there is no inbound SA 0x0000012c"),
    (lambda t: t.outbound_sa_counters(1), "adjacency: 1 has no outbound SA"),
]


@pytest.mark.parametrize(("command", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_a_refused_command_says_what_and_why(tables: MemoryForwarder, command: Command, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        command(tables)
    assert str(caught.value).startswith(words)


def test_replay_window_is_bounded(tables: MemoryForwarder) -> None:
    spi = tables.allocate_spi()
    with pytest.raises(ValueError, match="replay_window: 8193 is not between 0 and 8192"):
        tables.add_inbound_sa(spi, "aes128gcm16", KEY, [1], True, 8193)
    tables.release_spi(spi)


def test_spis_are_distinct_and_not_reserved(tables: MemoryForwarder) -> None:
    spis = {tables.allocate_spi() for _ in range(1000)}
    assert len(spis) == 1000
    assert min(spis) >= 256
    for spi in spis:
        tables.release_spi(spi)
    assert not spis & {tables.allocate_spi() for _ in range(1000)}, "a slot came back with the same SPI"


def test_a_removed_sa_is_gone(tables: MemoryForwarder) -> None:
    spi = tables.allocate_spi()
    tables.add_inbound_sa(spi, "aes128gcm16", KEY, [1], True, 64)
    assert tables.sa_counters(spi) == {"packets": 0, "bytes": 0, "replayed": 0, "unauthentic": 0}
    tables.remove_inbound_sa(spi)
    with pytest.raises(ValueError, match="there is no inbound SA"):
        tables.remove_inbound_sa(spi)


def test_counters_before_any_packet(tables: MemoryForwarder) -> None:
    assert tables.adjacency_counters(1) == {
        "packets_in": 0,
        "bytes_in": 0,
        "packets_out": 0,
        "bytes_out": 0,
        "idle_ms_in": -1,
        "idle_ms_out": -1,
    }
    counters = tables.counters()
    assert set(counters.values()) == {0}
    assert {"tun_rx_packets", "drop_no_route", "drop_unauthentic", "drop_send_too_big"} <= counters.keys()


def test_the_null_cipher_is_no_suite_of_a_gateway() -> None:
    dataplane = Dataplane()
    with pytest.raises(ValueError, match='suite: "null" is none of'):
        dataplane.set_outbound_sa(256, "null", bytes(4), [1], True)


def test_build() -> None:
    assert dsvpn_native.__version__ == "0.1.0"
    assert dsvpn_native.BUILD_PROFILE in {"release", "debug"}
    assert Dataplane(aead_backend="ring").aead_backend.startswith("ring (")
    assert Dataplane().aead_backend.startswith(("dsvpn (", "ring ("))
    assert issubclass(Dataplane, Tables)
    with pytest.raises(ValueError, match='aead_backend: "openssl" is none of auto, ring'):
        Dataplane(aead_backend="openssl")


MISUSED: list[tuple[Callable[[Dataplane], object], str]] = [
    (lambda d: d.add_tunnel("a" * 16), "name: 'aaaaaaaaaaaaaaaa' is no name for a network device"),
    (lambda d: d.add_tunnel("tun%d"), "name: 'tun%d' is no name"),
    (lambda d: d.add_tunnel("x/y"), "name: 'x/y' is no name"),
    (lambda d: d.add_tunnel("x", key=1 << 32), "key: 4294967296 is not an unsigned integer"),
    (lambda d: d.remove_tunnel(0), "tunnel: there is no tunnel 0"),
    (lambda d: d.open_underlay(ike_port=0), "ike_port, nat_port: 0 is no port"),
    (lambda d: d.open_underlay(ike_port=7, nat_port=7), "nat_port: must differ"),
    (lambda d: d.open_underlay(ipv4=False, ipv6=False), "ipv4, ipv6: at least one"),
    (lambda d: d.send_ike("", 500, "192.0.2.1", 500, b"x"), "the underlay is not open"),
    (lambda d: d.send_keepalive("", "192.0.2.1", 4500), "the underlay is not open"),
    (lambda d: d.drain(0, 8), "descriptor: 0 is none of descriptors()"),
    (lambda d: d.drain(0, -1), "budget: -1 is not an unsigned integer"),
]


@pytest.mark.parametrize(("call", "words"), MISUSED, ids=[words for _, words in MISUSED])
def test_a_misused_data_plane_says_so(call: Callable[[Dataplane], object], words: str) -> None:
    dataplane = Dataplane()
    with pytest.raises(ValueError) as caught:
        call(dataplane)
    assert str(caught.value).startswith(words)


def test_nhrp_without_adjacency_is_refused_and_counted() -> None:
    dataplane = Dataplane()
    assert dataplane.send_nhrp(1, b"nhrp") is False
    assert dataplane.counters()["drop_no_adjacency"] == 1
    assert dataplane.descriptors() == []
    assert dataplane.take_punts(10) == []


def test_workers_without_descriptors_start_and_stop() -> None:
    dataplane = Dataplane()
    dataplane.start_workers()
    dataplane.start_workers()
    with pytest.raises(ValueError, match="the workers own the descriptors"):
        dataplane.drain(0, 1)
    dataplane.stop_workers()
    dataplane.stop_workers()
    dataplane.start_workers()
    del dataplane
