"""Memory forwarders with tables of any size."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Literal

import numpy as np

import dsvpn_native
from bench.micro.vectors import Octets, Rows

KEYMAT = {"aes128gcm16": bytes(range(20)), "chacha20poly1305": bytes(range(36)), "null": bytes(4)}
MTU = 1434
_OVERHEAD = 128
_LEFT, _RIGHT = "192.0.2.1", "192.0.2.2"
#: Where routes and peers lie: far from the addresses of the packets' sources.
FIRST_PREFIX = int(IPv4Address("20.0.0.0"))
_FIRST_PEER = int(IPv4Address("60.0.0.0"))


def keymat(suite: str, peer: int) -> bytes:
    """Key material of one peer. No two have the same: SAs with one key would share their sequence numbers."""
    return bytes(a ^ b for a, b in zip(KEYMAT[suite], peer.to_bytes(4, "big").ljust(64, b"\0"), strict=False))


class Pair:
    """Two forwarders that are each other's peer. `suite` None: plain GRE.

    The sender has `peers` adjacencies with an SA each and `routes` /24 prefixes spread over them; the receiver knows
    the first of the adjacencies.
    """

    def __init__(self, suite: str | None = "aes128gcm16", *, routes: int = 1, peers: int = 1, far: bool = True) -> None:
        self.sender = dsvpn_native.MemoryForwarder()
        self.tunnel = self.sender.add_tunnel(protected=suite is not None)
        self.receiver = dsvpn_native.MemoryForwarder()
        encapsulation: Literal["udp", "gre"] = "gre" if suite is None else "udp"
        port = 0 if suite is None else 4500
        for peer in range(peers):
            remote = _RIGHT if peer == 0 else str(IPv4Address(_FIRST_PEER + peer))
            self.sender.set_adjacency(peer, self.tunnel, encapsulation, _LEFT, remote, port, MTU)
            self.sender.set_next_hop(peer, peer, False)
        for route in range(routes):
            self.sender.set_route(self.tunnel, f"{IPv4Address(FIRST_PREFIX + route * 256)}/24", route % peers)
        self.spi = 0
        if far:
            there = self.receiver.add_tunnel(protected=suite is not None)
            self.receiver.set_adjacency(0, there, encapsulation, _RIGHT, _LEFT, port, MTU)
            self.endpoint = self.receiver.add_endpoints(_RIGHT, port, _LEFT, port)
        if suite is not None:
            if far:
                self.spi = self.receiver.allocate_spi()
                self.receiver.add_inbound_sa(self.spi, suite, keymat(suite, 0), [0], False, 1024)
            for peer in range(peers):
                spi = self.spi if peer == 0 and far else 0x1000 + peer
                self.sender.set_outbound_sa(spi, suite, keymat(suite, peer), [peer], False)
        self.sender.commit()
        self.receiver.commit()
        self.kind = 2 if suite is None else 0
        self._now = 0

    @staticmethod
    def destinations(count: int, routes: int) -> list[IPv4Address]:
        """Addresses behind `count` of the routes, far apart."""
        order = np.random.default_rng(1).permutation(routes)[:count]
        return [IPv4Address(FIRST_PREFIX + int(route) * 256 + 10) for route in order]

    @staticmethod
    def output(arena: Octets, packets: Rows) -> Octets:
        """A send arena that takes a whole vector."""
        return np.zeros(131072 + len(arena) + _OVERHEAD * 64 * len(packets), dtype=np.uint8)

    def encap(self, arena: Octets, packets: Rows, output: Octets) -> dsvpn_native.EncapResult:
        """One vector."""
        self._now += 1000
        return self.sender.encap(self.tunnel, arena, packets, output, self._now)

    def datagrams(self, result: dsvpn_native.EncapResult) -> Rows:
        """What the receiver's socket would give."""
        messages = result.messages
        rows = np.zeros((len(messages), 5), dtype=np.uint32)
        rows[:, 0], rows[:, 1] = messages[:, 4], messages[:, 5]
        rows[:, 2] = np.where(messages[:, 7] > 1, messages[:, 6], 0)
        rows[:, 3], rows[:, 4] = self.kind, self.endpoint
        return rows

    def decap(self, arena: Octets, datagrams: Rows) -> dsvpn_native.DecapResult:
        """One vector, in place."""
        self._now += 1000
        return self.receiver.decap(arena, datagrams, self._now)
