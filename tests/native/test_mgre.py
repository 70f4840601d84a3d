"""One tunnel, many next hops: VPP's tests of multipoint GRE with IPsec, on our data plane."""

from __future__ import annotations

from functools import cache

import pytest
from scapy.layers.inet import ICMP

from tests.native.network import KEYMAT
from tests.native.vectors import ADJACENCY, MTU, Gateway, TunPacket, datagram_rows, ip, octets_of, split_datagrams

SUITE = "aes256gcm16"
NEXT_HOPS = 16
PACKETS = 63
FIRST = 100


@cache
def packets_of(inner: int) -> list[list[TunPacket]]:
    """63 packets for each next hop."""
    network = "10.2.{}.9" if inner == 4 else "fd02:0:0:{}::9"
    return [
        [
            TunPacket(bytes(ip(inner, dst=network.format(number)) / ICMP(seq=sequence) / bytes(64)))
            for sequence in range(PACKETS)
        ]
        for number in range(NEXT_HOPS)
    ]


class Hub:
    """A forwarder with 16 peers: an adjacency, a next hop, a route and an SA for each. One other forwarder opens
    for all of them."""

    def __init__(self, inner: int, nbma: str) -> None:
        self.inner = inner
        self.gateway, self.peer = Gateway(1), Gateway(2)
        self.spis = [self.peer.forwarder.allocate_spi() for _ in range(NEXT_HOPS)]
        forwarder = self.gateway.forwarder
        for number, spi in enumerate(self.spis):
            hop = FIRST + number
            local, remote = nbma.format(1), nbma.format(hop)
            forwarder.set_adjacency(hop, self.gateway.tunnel, "udp", local, remote, 4500, MTU)
            forwarder.set_next_hop(hop, hop, False)
            route = f"10.2.{number}.0/24" if inner == 4 else f"fd02:0:0:{number}::/64"
            forwarder.set_route(self.gateway.tunnel, route, hop)
            forwarder.set_outbound_sa(spi, SUITE, KEYMAT[SUITE], [hop], True)
            self.peer.forwarder.add_inbound_sa(spi, SUITE, KEYMAT[SUITE], [ADJACENCY], True, 1024)
        forwarder.commit()
        self.peer.forwarder.commit()

    def arrived(self) -> list[int]:
        """Send 63 packets to each peer, one peer after the other; how many each has got, all of them its own."""
        sent = packets_of(self.inner)
        datagrams = split_datagrams(*self.gateway.encap_all([one for turn in zip(*sent, strict=True) for one in turn]))
        counts = []
        for packets, spi in zip(sent, self.spis, strict=True):
            own = [datagram for datagram in datagrams if datagram[:4] == spi.to_bytes(4, "big")]
            got: list[bytes] = []
            if own:
                arena, rows = datagram_rows(own, "udp")
                got = octets_of(*self.peer.decap(arena, rows).gather(arena))
            assert got in ([], [packet.octets for packet in packets])
            counts.append(len(got))
        assert sum(counts) == len(datagrams)
        assert not self.peer.drops()
        return counts


@pytest.mark.parametrize("nbma", ["192.0.2.{}", "2001:db8::{}"], ids=["over-ipv4", "over-ipv6"])
@pytest.mark.parametrize("inner", [4, 6])
def test_sixteen_next_hops_lose_and_regain_their_mapping(inner: int, nbma: str) -> None:
    hub = Hub(inner, nbma)
    forwarder = hub.gateway.forwarder
    assert hub.arrived() == [PACKETS] * NEXT_HOPS
    assert not hub.gateway.drops()
    dropped = 0
    for number in (0, 7, NEXT_HOPS - 1):
        forwarder.set_next_hop(FIRST + number, None, False)
        forwarder.commit()
        assert hub.arrived() == [0 if other == number else PACKETS for other in range(NEXT_HOPS)]
        dropped += PACKETS
        assert hub.gateway.drops() == {"drop_no_adjacency": dropped}
        forwarder.set_next_hop(FIRST + number, FIRST + number, False)
        forwarder.commit()
        assert hub.arrived() == [PACKETS] * NEXT_HOPS
        assert hub.gateway.drops() == {"drop_no_adjacency": dropped}


def test_one_protection_is_taken_away() -> None:
    hub = Hub(4, "192.0.2.{}")
    hub.gateway.forwarder.clear_outbound_sa(FIRST + 5)
    hub.gateway.forwarder.commit()
    assert hub.arrived() == [0 if number == 5 else PACKETS for number in range(NEXT_HOPS)]
    assert hub.gateway.drops() == {"drop_no_sa": PACKETS}
