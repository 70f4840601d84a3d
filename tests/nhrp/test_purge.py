"""Purges (RFC 2332 section 5.2.5)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from dsvpn.addresses import Prefix
from dsvpn.nhrp import NhrpConfig
from dsvpn.nhrp.events import ClaimDenied, MappingRemoved, ShortcutRemoved
from dsvpn.wire.nhrp import ErrorIndication, NhrpMessage, PacketType
from dsvpn.wire.nhrp_cie import AddressFamily, Cie, ProtocolType
from tests.nhrp.bench import HUB_PEER, Bench, a, hub, register, registration, resolution, resolution_reply, spoke


def quiet(config: NhrpConfig) -> NhrpConfig:
    return replace(config, registration_interval=100_000.0)


def purge(source: str, destination: str, *prefixes: str, flags: int = 0) -> NhrpMessage:
    cies = []
    for text in prefixes:
        prefix: Prefix = ip_network(text)
        cies.append(Cie(prefix_length=prefix.prefixlen, protocol=prefix.network_address))
    return NhrpMessage(
        PacketType.PURGE_REQUEST,
        AddressFamily.IPV4,
        ProtocolType.IPV4,
        64,
        flags,
        77,
        a("192.0.2.99"),
        a(source),
        a(destination),
        cies,
    )


def with_shortcut() -> Bench:
    """Spoke 1 with a shortcut to spoke 2's LAN."""
    bench = spoke(quiet)
    bench.engine._resolutions.resolve(a("10.2.0.5"), bench.now)
    bench.receive(resolution_reply(bench.message(PacketType.RESOLUTION_REQUEST), 2), HUB_PEER, "192.0.2.1")
    bench.events()
    return bench


class TestEgressWithdraws:
    # spoke1 (egress)                        hub (and beyond it spoke2, which asked)
    #   Purge Request 10.1.0.0/24  -------->
    #   <----------------------  Purge Reply
    def answered(self) -> Bench:
        bench = spoke(quiet)
        bench.receive(resolution(2, "10.1.0.7"), HUB_PEER, "192.0.2.1")
        bench.message(PacketType.RESOLUTION_REPLY)
        bench.events()
        return bench

    def test_withdraw(self) -> None:
        bench = self.answered()
        bench.engine.withdraw(ip_network("10.77.0.0/24"), bench.now)
        assert bench.sent() == [], "nobody was told of that"
        bench.engine.withdraw(ip_network("10.1.0.0/24"), bench.now)
        request = bench.message(PacketType.PURGE_REQUEST)
        assert (request.source_protocol, request.destination_protocol) == (a("10.0.0.11"), a("10.0.0.12"))
        assert request.cies == [Cie(prefix_length=24, protocol=a("10.1.0.0"))]
        assert request.flags == 0
        bench.receive(replace(request, type=PacketType.PURGE_REPLY), HUB_PEER, "192.0.2.1")
        bench.pass_time(60)
        assert bench.sent() == []
        bench.engine.withdraw(ip_network("10.1.0.0/24"), bench.now)
        assert bench.sent() == [], "it was taken back already"

    def test_retries_with_the_same_id_and_ends(self) -> None:
        bench = self.answered()
        bench.engine.withdraw(ip_network("10.1.0.0/16"), bench.now)
        bench.pass_time(60)
        packets = [packet for packet, _ in bench.sent()]
        assert len(packets) == 4
        assert len({packet.request_id for packet in packets if isinstance(packet, NhrpMessage)}) == 1
        assert bench.counters()["purge.unanswered"] == 1

    def test_direct_peer_is_told_directly(self) -> None:
        bench = self.answered()
        bench.engine.peer_up(a("192.0.2.12"), 9, bench.now)
        bench.engine.withdraw(ip_network("10.1.0.0/24"), bench.now)
        assert [peer for _, peer in bench.sent()] == [9]

    def test_what_has_expired_is_not_purged(self) -> None:
        bench = self.answered()
        bench.pass_time(601)
        bench.engine.withdraw(ip_network("10.1.0.0/24"), bench.now)
        assert bench.sent() == []

    # spoke1                                 hub
    #   Purge Request 10.1.0.0/24 (N) ----->     for spoke2
    #   Purge Request 10.0.0.11/32 (N) ---->     for the hub: the registration
    def test_shutdown(self) -> None:
        bench = self.answered()
        bench.engine.shutdown(bench.now)
        packets = [packet for packet, _ in bench.sent() if isinstance(packet, NhrpMessage)]
        assert [(p.destination_protocol, p.flags) for p in packets] == [
            (a("10.0.0.12"), 0x8000),
            (a("10.0.0.1"), 0x8000),
        ]
        assert packets[0].cies == [
            Cie(prefix_length=24, protocol=a("10.1.0.0")),
            Cie(prefix_length=32, protocol=a("10.0.0.11")),
        ]
        assert packets[1].cies == [Cie(prefix_length=32, protocol=a("10.0.0.11"))]


class TestReceiver:
    # spoke1                                 hub
    #   <--------------------  Purge Request
    #   Purge Reply  ---------------------->
    @pytest.mark.parametrize(
        ("prefixes", "shortcut_goes", "mapping_goes"),
        [
            (["10.2.0.0/24"], True, False),
            (["10.2.0.0/16"], True, False),
            (["10.2.0.0/25"], False, False),
            (["10.3.0.0/24"], False, False),
            (["10.0.0.12/32"], True, True),
            (["10.3.0.0/24", "10.2.0.0/24"], True, False),
            ([], False, False),
        ],
    )
    def test_purge_from_the_hub(self, prefixes: list[str], shortcut_goes: bool, mapping_goes: bool) -> None:
        bench = with_shortcut()
        request = purge("10.0.0.12", "10.0.0.11", *prefixes)
        bench.receive(request, HUB_PEER, "192.0.2.1")
        reply = bench.message(PacketType.PURGE_REPLY)
        assert (reply.request_id, reply.cies) == (77, request.cies)
        assert (reply.source_protocol, reply.destination_protocol) == (a("10.0.0.12"), a("10.0.0.11"))
        events = bench.events()
        assert any(isinstance(event, ShortcutRemoved) for event in events) is shortcut_goes
        assert any(isinstance(event, MappingRemoved) for event in events) is mapping_goes

    def test_no_reply_when_none_is_wanted(self) -> None:
        bench = with_shortcut()
        bench.receive(purge("10.0.0.12", "10.0.0.11", "10.2.0.0/24", flags=0x8000), HUB_PEER, "192.0.2.1")
        assert bench.sent() == []
        assert len(bench.events()) == 1

    def test_another_spoke_has_no_say(self) -> None:
        bench = with_shortcut()
        bench.engine.peer_up(a("192.0.2.13"), 3, bench.now)
        for source in ("10.0.0.12", "10.0.0.13", "10.0.0.1"):
            bench.receive(purge(source, "10.0.0.11", "10.2.0.0/24", "10.0.0.12/32"), 3, "192.0.2.13")
        [denied] = bench.events()
        assert isinstance(denied, ClaimDenied)
        assert (denied.identity, denied.action) == ("192.0.2.13", "purge")
        assert bench.counters()["drop.purge_refused"] == 3

    def test_the_responder_itself_has(self) -> None:
        bench = with_shortcut()
        bench.engine.peer_up(a("192.0.2.12"), 3, bench.now)
        bench.receive(purge("10.0.0.12", "10.0.0.11", "10.2.0.0/24"), 3, "192.0.2.12")
        assert len(bench.events()) == 1

    def test_configured_mappings_are_not_purged(self) -> None:
        bench = with_shortcut()
        bench.receive(purge("10.0.0.1", "10.0.0.11", "10.0.0.1/32"), HUB_PEER, "192.0.2.1")
        assert bench.events() == []

    def test_other_nbma_address_is_not_meant(self) -> None:
        bench = with_shortcut()
        request = purge("10.0.0.12", "10.0.0.11", "10.0.0.12/32")
        request.cies[0].nbma = a("198.51.100.1")
        bench.receive(request, HUB_PEER, "192.0.2.1")
        assert bench.events() == []


class TestNhs:
    def relayed(self) -> Bench:
        """A hub by which spoke 1 has resolved spoke 2's LAN."""
        bench = hub()
        register(bench, 1, 1)
        register(bench, 2, 2)
        bench.receive(resolution_reply(resolution(1, "10.2.0.5"), 2), 2, "192.0.2.12")
        bench.message(PacketType.RESOLUTION_REPLY)
        bench.events()
        return bench

    def told(self, bench: Bench) -> NhrpMessage:
        request = bench.message(PacketType.PURGE_REQUEST)
        assert request.destination_protocol == a("10.0.0.11")
        assert request.cies == [
            Cie(prefix_length=32, protocol=a("10.0.0.12")),
            Cie(prefix_length=24, protocol=a("10.2.0.0")),
        ]
        return request

    # spoke2                    hub                        spoke1 (has resolved spoke2)
    #   Purge Request (N)  -->
    #                             Purge Request  ------->
    def test_client_that_leaves_is_purged_from_those_who_resolved_it(self) -> None:
        bench = self.relayed()
        bench.receive(purge("10.0.0.12", "10.0.0.1", "10.0.0.12/32", flags=0x8000), 2, "192.0.2.12")
        self.told(bench)
        assert bench.events() == [MappingRemoved(a("10.0.0.12"), "purged by 10.0.0.12")]

    def test_client_that_expires_too(self) -> None:
        bench = self.relayed()
        bench.receive(resolution_reply(resolution(1, "10.2.0.5"), 2, holding_time=6000), 2, "192.0.2.12")
        bench.pass_time(400)
        register_again(bench, 1)
        bench.pass_time(200.5)
        assert bench.events() == [MappingRemoved(a("10.0.0.12"), "expired")]
        self.told(bench)

    def test_client_that_moves_too(self) -> None:
        bench = self.relayed()
        register_again(bench, 2)
        assert bench.sent() == []
        bench.engine.peer_up(a("198.51.100.7"), 5, bench.now)
        request = replace_nbma(2, "198.51.100.7")
        bench.receive(request, 5, "198.51.100.7")
        kinds = [packet.type for packet, _ in bench.sent() if isinstance(packet, NhrpMessage)]
        assert kinds == [PacketType.PURGE_REQUEST, PacketType.REGISTRATION_REPLY]

    def test_a_path_that_is_gone_from_here_cuts_nobody_elses(self) -> None:
        bench = self.relayed()
        bench.engine.peer_down(2, bench.now)
        assert bench.events() == [MappingRemoved(a("10.0.0.12"), "peer down")]
        assert bench.sent() == []
        # It comes back from where it was: the answers given are still right.
        register(bench, 2, 6)
        bench.events()
        # It comes back from elsewhere after another failure: they are not.
        bench.engine.peer_down(6, bench.now)
        bench.engine.peer_up(a("198.51.100.7"), 5, bench.now)
        bench.receive(replace_nbma(2, "198.51.100.7"), 5, "198.51.100.7")
        kinds = [packet.type for packet, _ in bench.sent() if isinstance(packet, NhrpMessage)]
        assert PacketType.PURGE_REQUEST in kinds

    def test_forwarded_purge(self) -> None:
        bench = self.relayed()
        bench.receive(purge("10.0.0.12", "10.0.0.11", "10.2.0.0/24"), 2, "192.0.2.12")
        [(packet, peer)] = bench.sent()
        assert isinstance(packet, NhrpMessage)
        assert (peer, packet.hop_count) == (1, 63)
        assert bench.events() == []

    def test_purge_for_nobody(self) -> None:
        bench = self.relayed()
        bench.receive(purge("10.0.0.12", "10.0.0.99", "10.2.0.0/24"), 2, "192.0.2.12")
        assert bench.one(ErrorIndication).code == 6

    def test_another_client_cannot_unregister(self) -> None:
        bench = self.relayed()
        for source in ("10.0.0.11", "10.0.0.12"):
            bench.receive(purge(source, "10.0.0.1", "10.0.0.12/32"), 1, "192.0.2.11")
        [denied] = bench.events()
        assert denied == ClaimDenied("192.0.2.11", "purge", a("10.0.0.12"), "it does not have that address")
        assert bench.counters()["denied.purge"] == 2


def replace_nbma(number: int, nbma: str) -> NhrpMessage:
    return registration(number, nbma)


def register_again(bench: Bench, number: int) -> None:
    bench.sent()
    bench.receive(registration(number), number, f"192.0.2.1{number}")
    bench.message(PacketType.REGISTRATION_REPLY)
