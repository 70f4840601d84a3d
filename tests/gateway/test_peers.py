"""Which known peer a caller or a mapping belongs to."""

from __future__ import annotations

from dsvpn.gateway.peers import Peer, PeerTable
from tests.gateway.model import address

NAT = address("203.0.113.1")


def table(*peers: Peer) -> PeerTable:
    found = PeerTable()
    for peer in peers:
        found.add(peer)
    return found


def test_the_identity_decides_first() -> None:
    one = Peer("default", NAT, {"t": 0}, address("192.168.0.1"), identity="s1")
    two = Peer("default", NAT, {"t": 1}, address("192.168.0.1"), identity="s2")
    peers = table(one, two)
    assert peers.for_caller("default", NAT, "s2", address("192.168.0.9")) is two
    assert peers.for_caller("other", NAT, "s2", None) is None


def test_a_wanted_peer_takes_only_the_host_that_was_meant() -> None:
    """Two spokes share a NAT address: the one that nobody asked for must not get the other's traffic."""
    wanted = Peer("default", NAT, {"t": 0}, address("192.168.0.1"))
    peers = table(wanted)
    assert peers.for_caller("default", NAT, "s3", address("192.168.0.3")) is None
    assert peers.for_caller("default", NAT, "s1", address("192.168.0.1")) is wanted


def test_a_peer_that_is_wanted_by_its_public_address_alone_may_be_behind_nat() -> None:
    """A static mapping knows no private address. A host that was meant by its private address comes first."""
    any_host = Peer("default", NAT, {"t": 0})
    meant = Peer("default", NAT, {"t": 1}, address("192.168.0.1"))
    peers = table(any_host, meant)
    assert peers.for_caller("default", NAT, "s1", address("192.168.0.1")) is meant
    assert peers.for_caller("default", NAT, "s3", address("192.168.0.3")) is any_host
    assert peers.for_mapping("default", NAT, None) is any_host


def test_a_mapping_finds_the_host_behind_the_nat() -> None:
    one = Peer("default", NAT, {"t": 0}, address("192.168.0.1"), identity="s1")
    two = Peer("default", NAT, {"t": 1}, address("192.168.0.2"), identity="s2")
    peers = table(one, two)
    assert peers.for_mapping("default", NAT, address("192.168.0.2")) is two
    assert peers.for_mapping("default", NAT, address("192.168.0.3")) is None
    assert peers.for_mapping("default", address("203.0.113.2"), address("192.168.0.2")) is None


def test_a_peer_that_moved_is_found_at_its_new_address() -> None:
    peer = Peer("default", NAT, {"t": 4}, identity="s1")
    peers = table(peer)
    peers.move(peer, address("203.0.113.9"))
    assert list(peers.at("default", NAT)) == []
    assert list(peers.at("default", address("203.0.113.9"))) == [peer]
    assert peers.by_adjacency(4) == ("t", peer)
    peers.remove(peer)
    assert len(peers) == 0
    assert peers.by_adjacency(4) is None
