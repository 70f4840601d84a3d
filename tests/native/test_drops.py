"""What is not delivered: every reason by its name, punts, and input of strangers."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from scapy.layers.inet import ICMP, UDP

from dsvpn_native import Punt
from tests.native.network import KEYMAT
from tests.native.vectors import (
    ADJACENCY,
    KEY,
    KIND,
    NEXT_HOP,
    SECOND,
    Gateway,
    TunPacket,
    datagram_rows,
    gateways,
    ip,
    octets_of,
    payload,
    split_datagrams,
    tcp_superpacket,
    vector,
)

PACKET = TunPacket(bytes(ip() / UDP(sport=1, dport=2) / payload(64)))
SEED = 415


def sealed(one: Gateway, count: int = 1) -> list[bytes]:
    return split_datagrams(*one.encap_all([PACKET] * count))


def received(other: Gateway, datagrams: list[bytes], kind: str = "udp") -> list[bytes]:
    arena, rows = datagram_rows(datagrams, kind)
    return octets_of(*other.decap(arena, rows).gather(arena))


def no_sa(one: Gateway) -> None:
    one.forwarder.clear_outbound_sa(ADJACENCY)


def no_adjacency(one: Gateway) -> None:
    one.forwarder.set_next_hop(NEXT_HOP, None, False)


def no_route(one: Gateway) -> None:
    one.forwarder.remove_route(one.tunnel, "10.2.0.0/16")


def no_tunnel(one: Gateway) -> None:
    one.forwarder.remove_tunnel(one.tunnel)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(no_sa, "no_sa"), (no_adjacency, "no_adjacency"), (no_route, "no_route"), (no_tunnel, "no_tunnel")],
)
def test_what_cannot_leave_is_counted(change: Callable[[Gateway], None], reason: str) -> None:
    one, _ = gateways()
    change(one)
    assert len(sealed(one)) == 1, "tables change before the commit"
    one.forwarder.commit()
    assert sealed(one, 3) == []
    assert one.drops() == {f"drop_{reason}": 3}


def test_multicast_goes_to_its_list() -> None:
    one, other = gateways()
    packet = TunPacket(bytes(ip(ttl=1) / UDP() / b"hello").replace(bytes([10, 2, 0, 9]), bytes([224, 0, 0, 5])))
    assert split_datagrams(*one.encap_all([packet])) == []
    assert one.drops() == {"drop_no_multicast": 1}
    one.forwarder.set_multicast(one.tunnel, [ADJACENCY])
    one.forwarder.commit()
    (datagram,) = split_datagrams(*one.encap_all([packet]))
    assert received(other, [datagram]) == [packet.octets]


def test_a_replayed_packet_is_dropped() -> None:
    one, other = gateways()
    datagrams = sealed(one, 4)
    assert received(other, datagrams) == [PACKET.octets] * 4
    assert received(other, datagrams) == []
    assert other.drops() == {"drop_replayed": 4}
    assert other.forwarder.sa_counters(other.spi)["replayed"] == 4


def test_a_forged_packet_is_dropped_and_takes_no_place_in_the_window() -> None:
    one, other = gateways()
    (datagram,) = sealed(one)
    for at in (4, 12, 20, len(datagram) - 1):
        forged = bytearray(datagram)
        forged[at] ^= 1
        assert received(other, [bytes(forged)]) == []
    assert other.forwarder.sa_counters(other.spi)["unauthentic"] == 4
    assert received(other, [datagram]) == [PACKET.octets]


def test_an_unknown_spi_is_dropped() -> None:
    one, other = gateways()
    (datagram,) = sealed(one)
    for spi in (other.spi ^ 1, other.spi ^ (1 << 31), 1, 0xFFFFFFFF):
        assert received(other, [struct.pack(">I", spi) + datagram[4:]]) == []
    other.forwarder.remove_inbound_sa(other.spi)
    other.forwarder.commit()
    assert received(other, [datagram]) == []
    assert other.drops() == {"drop_unknown_spi": 5}


def test_a_wrong_gre_key_is_dropped() -> None:
    one = Gateway(1, key=KEY + 1)
    other = Gateway(2)
    other.accept("aes128gcm16", True)
    one.seal(other.spi, "aes128gcm16", True)
    assert received(other, sealed(one)) == []
    assert other.drops() == {"drop_wrong_key": 1}


def test_plain_gre_does_not_enter_a_protected_tunnel() -> None:
    plain, _ = gateways("gre")
    _, other = gateways("udp")
    assert received(other, sealed(plain), "gre") == []
    assert other.drops() == {"drop_unprotected": 1}


def test_plain_gre_of_a_stranger_is_dropped() -> None:
    one, other = gateways("gre")
    datagrams = sealed(one)
    other.forwarder.add_endpoints("192.0.2.2", 0, "198.51.100.1", 0)
    arena, rows = datagram_rows(datagrams, "gre")
    rows[:, 4] = 1
    assert not len(other.decap(arena, rows).packets)
    assert other.drops() == {"drop_unknown_peer": 1}


def test_a_sequence_without_esn_ends() -> None:
    one, other = gateways(esn=False)
    assert received(other, sealed(one)) == [PACKET.octets]
    assert one.forwarder.outbound_sa_counters(ADJACENCY)["sequence"] == 1


def test_an_sa_that_comes_back_goes_on_where_it_was() -> None:
    """No sequence number, which is the nonce, is used again when the control plane returns to an SA."""
    one, other = gateways()
    assert received(other, sealed(one, 3)) == [PACKET.octets] * 3
    (keymat, stranger) = KEYMAT["aes128gcm16"], bytes(20)
    for key, spi in ((stranger, other.spi ^ 1), (keymat, other.spi), (keymat, other.spi)):
        one.forwarder.set_outbound_sa(spi, "aes128gcm16", key, [ADJACENCY], True)
        one.forwarder.commit()
        expected = [] if key == stranger else [PACKET.octets] * 2
        assert received(other, sealed(one, 2)) == expected
    one.forwarder.clear_outbound_sa(ADJACENCY)
    one.forwarder.set_outbound_sa(other.spi, "aes128gcm16", keymat, [ADJACENCY], True)
    one.forwarder.commit()
    assert received(other, sealed(one)) == [PACKET.octets]
    assert one.forwarder.outbound_sa_counters(ADJACENCY)["sequence"] == 8
    assert other.drops() == {"drop_unknown_spi": 2}


def test_keepalives_and_ike_on_the_nat_port() -> None:
    _, other = gateways()
    ike = bytes(range(28))
    assert received(other, [b"\xff", bytes(4) + ike, b"\x00", b"\x00\x00\x00"]) == []
    (punt,) = other.forwarder.take_punts(10)
    assert (punt.kind, punt.data, punt.adjacency, punt.tunnel) == ("ike", ike, -1, -1)
    assert (punt.local, punt.local_port, punt.remote, punt.remote_port) == ("192.0.2.2", 4500, "192.0.2.1", 4500)
    assert other.forwarder.counters()["keepalives_received"] == 1
    assert sum(other.drops().values()) == 2


def test_ike_on_its_own_port_has_no_marker() -> None:
    other = Gateway(2)
    ike = bytes(range(28))
    assert received(other, [ike], "ike") == []
    (punt,) = other.forwarder.take_punts(10)
    assert (punt.kind, punt.data) == ("ike", ike)


def test_punts_are_bounded() -> None:
    other = Gateway(2)
    for _ in range(50):
        received(other, [bytes(28)] * 100, "ike")
    overflow = other.drops()["drop_punt_overflow"]
    assert 0 < overflow < 5000
    assert len(other.forwarder.take_punts(10_000)) == 5000 - overflow


def punts(gateway: Gateway, kind: str) -> list[Punt]:
    return [punt for punt in gateway.forwarder.take_punts(1000) if punt.kind == kind]


def test_a_miss_is_punted_once_a_second() -> None:
    one, _ = gateways()
    one.forwarder.set_next_hop(NEXT_HOP, ADJACENCY, True)
    one.forwarder.commit()
    arena, rows = vector([PACKET] * 5)
    for now in (SECOND, SECOND + 1, SECOND * 3):
        assert len(one.encap(arena, rows, now).messages)
    first, second = punts(one, "miss")
    assert (first.tunnel, first.next_hop, first.data) == (one.tunnel, NEXT_HOP, bytes([10, 2, 0, 9]))
    assert second.data == first.data


def test_a_peer_that_moved_is_punted() -> None:
    one, other = gateways()
    other.forwarder.add_endpoints("192.0.2.2", 4500, "198.51.100.7", 1024)
    arena, rows = datagram_rows(sealed(one), "udp")
    rows[:, 4] = 1
    assert len(other.decap(arena, rows).packets) == 1
    (punt,) = punts(other, "moved")
    assert (punt.adjacency, punt.remote, punt.remote_port) == (ADJACENCY, "198.51.100.7", 1024)


def test_hostile_datagrams_do_no_harm() -> None:
    """Random octets, and sound ESP that was cut short, from every kind of socket."""
    random = np.random.default_rng(SEED)
    _, udp = gateways("udp")
    one, _ = gateways("esp")
    good = sealed(one)[0]
    for _ in range(300):
        datagrams = [random.bytes(int(length)) for length in random.integers(0, 120, 20)]
        datagrams += [good[: int(length)] for length in random.integers(0, len(good), 4)]
        arena, rows = datagram_rows(datagrams, "udp")
        rows[:, 3] = random.integers(0, len(KIND), len(rows))
        # Rows beyond the arena too, and strides that fit nothing.
        rows[::7, 1] = random.integers(0, 2**32, len(rows[::7]))
        rows[::5, 2] = random.integers(0, 2**32, len(rows[::5]))
        assert octets_of(*udp.decap(arena, rows).gather(arena)) == [], f"seed {SEED}"
    assert udp.forwarder.counters()["tun_tx_packets"] == 0


def test_hostile_virtio_headers_do_no_harm() -> None:
    """Whatever the virtio header claims, what is sent is a bounded number of sound datagrams."""
    random = np.random.default_rng(SEED)
    one, other = gateways()
    originals = [
        PACKET.octets,
        tcp_superpacket(4, 3000, 1000).octets,
        tcp_superpacket(6, 3000, 1000).octets,
        bytes(ip() / ICMP() / payload(20)),
    ]
    for _ in range(500):
        packets = []
        for _ in range(4):
            octets = bytearray(originals[int(random.integers(0, len(originals)))])
            for _ in range(int(random.integers(0, 4))):
                octets[int(random.integers(0, min(60, len(octets))))] = int(random.integers(0, 256))
            small = [int(value) for value in random.integers(0, [2, 8, 200, 3000, 80, 40])]
            wild = [int(value) for value in random.integers(0, [256, 256, 65536, 65536, 65536, 65536])]
            fields = [a if random.integers(0, 4) else b for a, b in zip(small, wild, strict=True)]
            packets.append(TunPacket(bytes(octets[: int(random.integers(0, len(octets) + 1)) or None]), *fields))
        arena, datagrams = one.encap_all(packets)
        assert len(split_datagrams(arena, datagrams)) <= sum(len(packet.octets) + 1 for packet in packets)
        before = other.drops()
        other.decap(arena, datagrams)
        after = other.drops()
        assert {name for name in after if after[name] != before.get(name, 0)} <= {"drop_malformed_inner"}, (
            f"seed {SEED}"
        )


def test_suites_do_not_mix() -> None:
    one, other = gateways()
    one.forwarder.set_outbound_sa(other.spi, "chacha20poly1305", KEYMAT["chacha20poly1305"], [ADJACENCY], True)
    one.forwarder.commit()
    assert received(other, sealed(one)) == []
    assert other.drops() == {"drop_unauthentic": 1}
