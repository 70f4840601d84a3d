"""Resolution (RFC 2332 sections 5.2.1 and 5.2.2): requester, NHS and egress."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from dsvpn.nhrp import NhrpConfig, NhsConfig, Route
from dsvpn.nhrp.events import MappingAdded, MappingRemoved, ShortcutAdded, ShortcutRemoved
from dsvpn.nhrp.limits import MAX_PENDING_RESOLUTIONS
from dsvpn.nhrp.resolution import NEGATIVE_TIME
from dsvpn.wire.nhrp import ErrorIndication, NhrpMessage, PacketType, encode
from dsvpn.wire.nhrp_cie import Cie
from dsvpn.wire.nhrp_extensions import CieExtension, RawExtension
from tests.nhrp.bench import (
    HUB_PEER,
    Bench,
    a,
    cie_extension,
    hub,
    register,
    registration,
    request_extensions,
    resolution,
    resolution_reply,
    spoke,
)


def quiet(config: NhrpConfig) -> NhrpConfig:
    """No refresh of the registration in between."""
    return replace(config, registration_interval=100_000.0)


def ask(bench: Bench, target: str = "10.2.0.5") -> NhrpMessage:
    """Make a spoke ask for an address, as a redirect does."""
    bench.engine._resolutions.resolve(a(target), bench.now)
    return bench.message(PacketType.RESOLUTION_REQUEST)


class TestRequester:
    # spoke1                                 hub
    #   Resolution Request 10.2.0.5  ------>
    #   <----------------  Resolution Reply 10.2.0.0/24 by 10.0.0.12
    def test_request_has_the_form_that_frr_sends(self) -> None:
        request = ask(spoke())
        assert (request.hop_count, request.flags) == (64, 0xC802)
        assert request.source_nbma == a("192.0.2.11")
        assert request.source_protocol == a("10.0.0.11")
        assert request.destination_protocol == a("10.2.0.5")
        assert request.cies == [Cie(prefix_length=32, holding_time=600)]
        assert [(e.type, e.compulsory) for e in request.extensions] == [(4, True), (5, True), (3, True), (9, False)]
        assert cie_extension(request, 9) == []
        assert len(encode(request)) == 72

    def test_reply_makes_mapping_then_shortcut(self) -> None:
        bench = spoke()
        bench.receive(resolution_reply(ask(bench), 2), HUB_PEER, "192.0.2.1")
        assert bench.events() == [
            MappingAdded(a("10.0.0.12"), a("192.0.2.12"), a("192.0.2.12"), "resolved", None),
            ShortcutAdded(ip_network("10.2.0.0/24"), a("10.0.0.12")),
        ]

    def test_public_address_of_the_nat_extension_counts(self) -> None:
        bench = spoke()
        reply = resolution_reply(ask(bench), 2, nbma=a("192.168.1.2"), nat="203.0.113.5")
        bench.receive(reply, HUB_PEER, "192.0.2.1")
        assert bench.events()[0] == MappingAdded(a("10.0.0.12"), a("203.0.113.5"), a("192.168.1.2"), "resolved", None)

    def test_nat_entry_of_another_station_does_not_count(self) -> None:
        bench = spoke()
        reply = resolution_reply(ask(bench), 2)
        reply.extensions = [CieExtension(9, False, [Cie(nbma=a("203.0.113.5"), protocol=a("10.0.0.11"))])]
        bench.receive(reply, HUB_PEER, "192.0.2.1")
        assert bench.events()[0] == MappingAdded(a("10.0.0.12"), a("192.0.2.12"), a("192.0.2.12"), "resolved", None)

    def test_own_public_address_goes_into_requests(self) -> None:
        bench = spoke()
        bench.engine._context.nat_address = a("203.0.113.9")
        request = ask(bench)
        assert cie_extension(request, 9) == [Cie(prefix_length=32, nbma=a("203.0.113.9"), protocol=a("10.0.0.11"))]

    def test_retries_at_1_2_4_7_s_then_gives_up(self) -> None:
        bench = spoke(lambda config: replace(config, holding_time=6000))
        ids, times, start = {ask(bench).request_id}, [0.0], bench.now
        for _ in range(120):
            bench.pass_time(0.5)
            for packet, _ in bench.sent():
                assert isinstance(packet, NhrpMessage)
                ids.add(packet.request_id)
                times.append(bench.now - start)
        assert times == [0, 1, 3, 7, 14, 21, 28]
        assert len(ids) == 1
        assert bench.engine.snapshot(bench.now).resolutions == ()

    def test_given_up_rests_then_is_asked_again(self) -> None:
        bench = spoke()
        ask(bench)
        bench.pass_time(30)
        bench.sent()
        [status] = bench.engine.snapshot(bench.now).resolutions
        assert (status.state, status.reason) == ("negative", "no answer within 30 s")
        bench.engine._resolutions.resolve(a("10.2.0.5"), bench.now)
        assert bench.sent() == []
        bench.pass_time(NEGATIVE_TIME)
        ask(bench)

    @pytest.mark.parametrize("code", [12, 11, 4, 200])
    def test_refusal_rests(self, code: int) -> None:
        bench = spoke()
        bench.receive(resolution_reply(ask(bench), 2, code=code, holding_time=0), HUB_PEER, "192.0.2.1")
        assert bench.events() == []
        [status] = bench.engine.snapshot(bench.now).resolutions
        assert status.state == "negative"
        assert ("no binding exists" in status.reason) is (code in (11, 12))

    @pytest.mark.parametrize("code", [2, 3, 15, 6, 77])
    def test_error_indication_ends_the_request(self, code: int) -> None:
        bench = spoke()
        request = ask(bench)
        error = ErrorIndication(
            request.family,
            request.protocol_type,
            0,
            code,
            0,
            a("192.0.2.1"),
            a("10.0.0.1"),
            a("10.0.0.11"),
            encode(request)[:40],
        )
        bench.receive(error, HUB_PEER, "192.0.2.1")
        [status] = bench.engine.snapshot(bench.now).resolutions
        assert status.state == "negative"
        assert ("loop detected" in status.reason) is (code in (2, 3))
        assert bench.sent() == []

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"prefix_length": 33}, "prefix length 33"),
            ({"nbma": None}, "no NBMA address"),
            ({"nbma": a("0.0.0.0")}, "no NBMA address"),
            ({"nbma": a("224.0.0.5")}, "no NBMA address"),
            ({"protocol": a("10.0.0.11")}, "own address"),
            ({"holding_time": 0}, "holding time 0"),
        ],
    )
    def test_nonsense_is_not_believed(self, changes: dict[str, Any], why: str) -> None:
        bench = spoke()
        bench.receive(resolution_reply(ask(bench), 2, **changes), HUB_PEER, "192.0.2.1")
        assert bench.events() == []
        assert why in bench.engine.snapshot(bench.now).resolutions[0].reason
        assert bench.one(ErrorIndication).code == 10

    @pytest.mark.parametrize(
        ("length", "prefix"),
        [
            (0, "10.2.0.5/32"),
            (0xFF, "10.2.0.5/32"),
            (32, "10.2.0.5/32"),
            (16, "10.2.0.0/16"),
            # These would take over the hub's or this gateway's own tunnel address.
            (8, "10.2.0.5/32"),
            (1, "10.2.0.5/32"),
            (14, "10.2.0.5/32"),
        ],
    )
    def test_prefix(self, length: int, prefix: str) -> None:
        bench = spoke()
        bench.receive(resolution_reply(ask(bench), 2, length), HUB_PEER, "192.0.2.1")
        assert bench.events()[1] == ShortcutAdded(ip_network(prefix), a("10.0.0.12"))

    def test_reply_with_another_id_or_target_is_dropped(self) -> None:
        bench = spoke()
        request = ask(bench)
        for wrong in (replace(request, request_id=9), replace(request, destination_protocol=a("10.3.0.5"))):
            bench.receive(resolution_reply(wrong, 2), HUB_PEER, "192.0.2.1")
        assert bench.events() == []
        bench.receive(resolution_reply(request, 2), HUB_PEER, "192.0.2.1")
        bench.receive(resolution_reply(request, 3), HUB_PEER, "192.0.2.1")
        assert len(bench.events()) == 2, "the second copy answers nothing"

    def test_best_preference_is_taken(self) -> None:
        bench = spoke()
        reply = resolution_reply(ask(bench), 2)
        reply.cies.append(replace(reply.cies[0], protocol=a("10.0.0.13"), nbma=a("192.0.2.13"), preference=9))
        bench.receive(reply, HUB_PEER, "192.0.2.1")
        assert bench.events()[1] == ShortcutAdded(ip_network("10.2.0.0/24"), a("10.0.0.13"))

    def test_destination_behind_the_hub_makes_no_shortcut(self) -> None:
        bench = spoke()
        reply = resolution_reply(ask(bench, "10.100.0.9"), 2, nbma=a("192.0.2.1"), protocol=a("10.0.0.1"))
        bench.receive(reply, HUB_PEER, "192.0.2.1")
        assert bench.events() == []
        bench.engine._resolutions.resolve(a("10.100.0.9"), bench.now)
        assert bench.sent() == [], "that is the way already"

    def test_without_a_path_nothing_is_kept(self) -> None:
        bench = spoke(up=False)
        bench.engine.handle_miss(a("10.0.0.12"), bench.now)
        assert bench.sent() == []
        assert bench.engine.snapshot(bench.now).resolutions == ()

    def test_table_is_bounded(self) -> None:
        bench = spoke()
        for number in range(MAX_PENDING_RESOLUTIONS + 50):
            bench.engine.handle_miss(
                a(f"10.0.0.{2 + number % 9}") if number < 9 else a(f"10.9.{number // 250}.{number % 250}"), bench.now
            )
        for number in range(MAX_PENDING_RESOLUTIONS + 50):
            bench.engine._resolutions.resolve(a(f"10.9.{number // 250}.{1 + number % 250}"), bench.now)
        assert len(bench.engine.snapshot(bench.now).resolutions) == MAX_PENDING_RESOLUTIONS
        assert len(bench.sent()) == MAX_PENDING_RESOLUTIONS

    def test_second_nhs_is_asked_when_the_first_is_not_up(self) -> None:
        nhs = (NhsConfig(a("10.0.0.1"), a("192.0.2.1"), 0), NhsConfig(a("10.0.0.2"), a("192.0.2.2"), 1))
        bench = spoke(lambda config: replace(config, nhs=nhs), up=False)
        bench.routes = [Route(ip_network("10.0.0.0/8"), True)]
        bench.engine.peer_up(a("192.0.2.2"), 2, bench.now)
        bench.sent()
        bench.engine._resolutions.resolve(a("10.2.0.5"), bench.now)
        assert [peer for _, peer in bench.sent()] == [2]


class TestMiss:
    # non-shortcut mode: spoke1 has spoke2's routes with spoke2 as next hop
    #   packet to 10.2.0.5 by 10.0.0.12
    #   Resolution Request 10.0.0.12  ------>
    def test_the_next_hop_is_resolved(self) -> None:
        bench = spoke(lambda config: replace(config, shortcut=False))
        bench.routes.append(Route(ip_network("10.2.0.0/24"), True, a("10.0.0.12")))
        bench.engine.handle_miss(a("10.2.0.5"), bench.now)
        request = bench.message(PacketType.RESOLUTION_REQUEST)
        assert request.destination_protocol == a("10.0.0.12")
        bench.engine.handle_miss(a("10.2.0.6"), bench.now)
        assert bench.sent() == [], "it is under way"
        bench.receive(resolution_reply(request, 2, 32), HUB_PEER, "192.0.2.1")
        assert bench.events()[1] == ShortcutAdded(ip_network("10.0.0.12/32"), a("10.0.0.12"))
        bench.engine.handle_miss(a("10.2.0.5"), bench.now)
        assert bench.sent() == []

    def test_what_needs_no_resolution(self) -> None:
        bench = spoke()
        for destination in ("10.2.0.5", "10.1.0.5", "10.0.0.11", "198.51.100.1", "10.0.0.1"):
            bench.engine.handle_miss(a(destination), bench.now)
        assert bench.sent() == []


class TestNhs:
    # spoke1                    hub                        spoke2
    #   Resolution Request  -->
    #                             Resolution Request  -->     (hop count 63, transit record, NAT filled)
    def test_forwarded_request(self) -> None:
        bench = hub()
        register(bench, 1, 1, outer="203.0.113.9", nbma="192.168.1.2")
        register(bench, 2, 2)
        bench.receive(resolution(1, "10.2.0.5", source_nbma=a("192.168.1.2")), 1, "203.0.113.9")
        [(packet, peer)] = bench.sent()
        assert isinstance(packet, NhrpMessage)
        assert peer == 2
        assert (packet.hop_count, packet.request_id, packet.flags) == (63, 2001, 0xC802)
        [record] = cie_extension(packet, 4)
        assert (record.nbma, record.protocol) == (a("192.0.2.1"), a("10.0.0.1"))
        assert cie_extension(packet, 9) == [Cie(prefix_length=32, nbma=a("203.0.113.9"), protocol=a("10.0.0.11"))]

    def test_nat_entry_is_not_doubled(self) -> None:
        bench = hub()
        register(bench, 1, 1, outer="203.0.113.9", nbma="192.168.1.2")
        register(bench, 2, 2)
        known = request_extensions(Cie(prefix_length=32, nbma=a("203.0.113.9"), protocol=a("10.0.0.11")))
        request = resolution(1, "10.2.0.5", source_nbma=a("192.168.1.2"), extensions=known)
        bench.receive(request, 1, "203.0.113.9")
        assert len(cie_extension(bench.message(PacketType.RESOLUTION_REQUEST), 9)) == 1

    #   <-- Resolution Reply
    #                             <-- Resolution Reply
    def test_forwarded_reply(self) -> None:
        bench = hub()
        register(bench, 1, 1)
        register(bench, 2, 2, outer="203.0.113.9", nbma="192.168.1.2")
        bench.receive(resolution_reply(resolution(1, "10.2.0.5"), 2, nbma=a("192.168.1.2")), 2, "203.0.113.9")
        [(packet, peer)] = bench.sent()
        assert isinstance(packet, NhrpMessage)
        assert peer == 1
        assert packet.hop_count == 62
        [record] = cie_extension(packet, 5)
        assert record.protocol == a("10.0.0.1")
        assert cie_extension(packet, 9) == [Cie(prefix_length=32, nbma=a("203.0.113.9"), protocol=a("10.0.0.12"))]

    def test_hop_count_0_is_error_15(self) -> None:
        bench = hub()
        register(bench, 1, 1)
        register(bench, 2, 2)
        bench.receive(resolution(1, "10.2.0.5", hop_count=0), 1, "192.0.2.11")
        assert bench.one(ErrorIndication).code == 15
        bench.receive(resolution(1, "10.100.0.5", hop_count=0), 1, "192.0.2.11")
        bench.message(PacketType.RESOLUTION_REPLY)

    @pytest.mark.parametrize(
        ("record", "loop"),
        [
            (Cie(nbma=a("192.0.2.1"), protocol=a("10.0.0.1")), True),
            (Cie(nbma=a("192.0.2.1"), protocol=a("0.0.0.0")), True),
            (Cie(nbma=a("192.0.2.1")), True),
            (Cie(protocol=a("10.0.0.1")), True),
            # Another NHS behind another NAT may have the same private NBMA address.
            (Cie(nbma=a("192.0.2.1"), protocol=a("10.0.0.2")), False),
            (Cie(nbma=a("192.0.2.2"), protocol=a("10.0.0.2")), False),
        ],
    )
    def test_loop_is_error_3(self, record: Cie, loop: bool) -> None:
        bench = hub()
        register(bench, 1, 1)
        register(bench, 2, 2)
        extensions = request_extensions()
        extensions[0] = CieExtension(4, True, [record])
        bench.receive(resolution(1, "10.2.0.5", extensions=extensions), 1, "192.0.2.11")
        [(packet, _)] = bench.sent()
        if loop:
            assert isinstance(packet, ErrorIndication)
            assert packet.code == 3
        else:
            assert isinstance(packet, NhrpMessage)
            assert len(cie_extension(packet, 4)) == 2

    def test_no_binding_is_code_12(self) -> None:
        bench = hub()
        register(bench, 1, 1)
        bench.receive(resolution(1, "10.2.0.5"), 1, "192.0.2.11")
        reply = bench.message(PacketType.RESOLUTION_REPLY)
        assert reply.cies == [Cie(code=12)]
        assert reply.request_id == 2001

    def test_unknown_extensions_pass(self) -> None:
        bench = hub()
        register(bench, 1, 1)
        register(bench, 2, 2)
        extra = [*request_extensions(), RawExtension(77, True, b"x"), RawExtension(8, False, b"vendor")]
        bench.receive(resolution(1, "10.2.0.5", extensions=extra), 1, "192.0.2.11")
        assert bench.message(PacketType.RESOLUTION_REQUEST).extensions[4:] == extra[4:]

    def test_answer_from_cache_where_configured(self) -> None:
        bench = hub(lambda config: replace(config, answer_from_cache=True))
        register(bench, 1, 1)
        register(bench, 2, 2, outer="203.0.113.9", nbma="192.168.1.2")
        bench.receive(resolution(1, "10.0.0.12"), 1, "192.0.2.11")
        reply = bench.message(PacketType.RESOLUTION_REPLY)
        assert reply.cies == [Cie(prefix_length=32, holding_time=600, nbma=a("192.168.1.2"), protocol=a("10.0.0.12"))]
        assert cie_extension(reply, 9)[0].nbma == a("203.0.113.9")
        bench.receive(resolution(1, "10.2.0.5"), 1, "192.0.2.11")
        bench.message(PacketType.RESOLUTION_REQUEST)

    def test_nothing_from_the_cache_outlives_the_cache(self) -> None:
        bench = hub(lambda config: replace(config, answer_from_cache=True))
        register(bench, 1, 1)
        register(bench, 2, 2)
        bench.events()
        bench.pass_time(500)
        bench.receive(resolution(1, "10.0.0.12"), 1, "192.0.2.11")
        assert bench.message(PacketType.RESOLUTION_REPLY).cies[0].holding_time == 100
        bench.receive(registration(2, cies=[Cie(prefix_length=32, holding_time=0)]), 2, "192.0.2.12")
        told = [packet for packet, peer in bench.sent() if isinstance(packet, NhrpMessage) and peer == 1]
        assert [packet.type for packet in told] == [PacketType.PURGE_REQUEST]
        assert told[0].cies[0].protocol == a("10.0.0.12")

    @pytest.mark.parametrize(("unique", "code"), [(True, 0), (False, 13)])
    def test_unique_request_takes_only_a_unique_registration(self, unique: bool, code: int) -> None:
        bench = hub(lambda config: replace(config, answer_from_cache=True))
        register(bench, 1, 1)
        register(bench, 2, 2, flags=0x8002 if unique else 0x0002, cies=[Cie(prefix_length=0xFF, holding_time=600)])
        bench.receive(resolution(1, "10.0.0.12", flags=0xD802), 1, "192.0.2.11")
        assert bench.message(PacketType.RESOLUTION_REPLY).cies[0].code == code

    def test_hub_is_the_egress_of_its_own_lan(self) -> None:
        bench = hub()
        register(bench, 1, 1)
        bench.receive(resolution(1, "10.100.0.9"), 1, "192.0.2.11")
        reply = bench.message(PacketType.RESOLUTION_REPLY)
        assert reply.cies[0].prefix_length == 24
        bench.receive(resolution(1, "10.0.0.1"), 1, "192.0.2.11")
        assert bench.message(PacketType.RESOLUTION_REPLY).cies[0].prefix_length == 32

    def test_default_route_answers_for_one_address(self) -> None:
        bench = hub()
        register(bench, 1, 1)
        bench.receive(resolution(1, "198.51.100.77"), 1, "192.0.2.11")
        assert bench.message(PacketType.RESOLUTION_REPLY).cies[0].prefix_length == 32

    def test_never_back_where_it_came_from(self) -> None:
        bench = hub()
        register(bench, 1, 1)
        bench.receive(resolution(2, "10.1.0.5"), 1, "192.0.2.11")
        assert bench.message(PacketType.RESOLUTION_REPLY).cies[0].code == 12


class TestEgress:
    # hub                                    spoke1
    #   Resolution Request 10.1.0.7  ------>   MappingAdded(observed)
    #   <----------------  Resolution Reply 10.1.0.0/24 by 10.0.0.11
    def test_answer(self) -> None:
        bench = spoke()
        extensions = request_extensions()
        extensions[0] = CieExtension(4, True, [Cie(nbma=a("192.0.2.1"), protocol=a("10.0.0.1"))])
        extensions.append(RawExtension(8, False, b"vendor"))
        bench.receive(resolution(2, "10.1.0.7", extensions=extensions, hop_count=63), HUB_PEER, "192.0.2.1")
        [(reply, peer)] = bench.sent()
        assert isinstance(reply, NhrpMessage)
        assert (peer, reply.type, reply.hop_count, reply.request_id) == (HUB_PEER, 2, 64, 2002)
        assert reply.flags & 0xF800 == 0xE800
        assert (reply.source_protocol, reply.destination_protocol) == (a("10.0.0.12"), a("10.1.0.7"))
        assert reply.cies == [Cie(prefix_length=24, holding_time=600, nbma=a("192.0.2.11"), protocol=a("10.0.0.11"))]
        assert [extension.type for extension in reply.extensions] == [4, 5, 3, 9, 8]
        assert cie_extension(reply, 4) == cie_extension(replace(reply, extensions=extensions), 4)
        assert cie_extension(reply, 3)[0].protocol == a("10.0.0.11")
        assert cie_extension(reply, 9) == []
        assert bench.events() == [MappingAdded(a("10.0.0.12"), a("192.0.2.12"), a("192.0.2.12"), "observed", None)]

    def test_behind_nat_the_answer_says_so(self) -> None:
        bench = spoke()
        bench.engine._context.nat_address = a("203.0.113.9")
        bench.receive(resolution(2, "10.0.0.11"), HUB_PEER, "192.0.2.1")
        reply = bench.message(PacketType.RESOLUTION_REPLY)
        assert reply.cies[0].nbma == a("192.0.2.11")
        assert cie_extension(reply, 9) == [Cie(prefix_length=32, nbma=a("203.0.113.9"), protocol=a("10.0.0.11"))]

    def test_public_address_of_the_requester_is_observed(self) -> None:
        bench = spoke(quiet)
        nat = request_extensions(Cie(prefix_length=32, nbma=a("203.0.113.5"), protocol=a("10.0.0.12")))
        bench.receive(resolution(2, "10.0.0.11", extensions=nat, source_nbma=a("192.168.1.2")), HUB_PEER, "192.0.2.1")
        assert bench.events() == [MappingAdded(a("10.0.0.12"), a("203.0.113.5"), a("192.168.1.2"), "observed", None)]
        bench.pass_time(601)
        assert bench.events() == [MappingRemoved(a("10.0.0.12"), "expired")]

    @pytest.mark.parametrize("changes", [{"flags": 0xC002}, {"cies": []}, {"cies": [Cie(prefix_length=32)]}])
    def test_only_stable_bindings_with_a_holding_time_are_learned(self, changes: dict[str, Any]) -> None:
        bench = spoke()
        bench.receive(resolution(2, "10.0.0.11", **changes), HUB_PEER, "192.0.2.1")
        bench.message(PacketType.RESOLUTION_REPLY)
        assert bench.events() == []

    def test_a_spoke_may_speak_for_itself_alone(self) -> None:
        bench = spoke()
        bench.engine.peer_up(a("192.0.2.13"), 3, bench.now)
        bench.receive(resolution(2, "10.0.0.11"), 3, "192.0.2.13")
        assert bench.events() == []
        assert bench.counters()["drop.observation"] == 1
        bench.sent()
        bench.receive(resolution(3, "10.0.0.11"), 3, "192.0.2.13")
        assert len(bench.events()) == 1

    def test_observation_does_not_weaken_a_resolution(self) -> None:
        bench = spoke()
        bench.receive(resolution_reply(ask(bench), 2), HUB_PEER, "192.0.2.1")
        bench.events()
        bench.receive(resolution(2, "10.0.0.11"), HUB_PEER, "192.0.2.1")
        assert bench.events() == []
        bench.receive(resolution(2, "10.0.0.11", source_nbma=a("198.51.100.3")), HUB_PEER, "192.0.2.1")
        assert bench.events() == [MappingAdded(a("10.0.0.12"), a("198.51.100.3"), a("198.51.100.3"), "resolved", None)]

    def test_unique_answer_has_prefix_length_255(self) -> None:
        bench = spoke()
        bench.receive(resolution(2, "10.1.0.7", flags=0xD802), HUB_PEER, "192.0.2.1")
        assert bench.message(PacketType.RESOLUTION_REPLY).cies[0].prefix_length == 0xFF

    def test_unknown_compulsory_extension_is_error_1(self) -> None:
        bench = spoke()
        extensions = [*request_extensions(), RawExtension(77, True, b"x")]
        bench.receive(resolution(2, "10.1.0.7", extensions=extensions), HUB_PEER, "192.0.2.1")
        assert bench.one(ErrorIndication).code == 1

    def test_not_the_egress_and_nobody_else_to_ask(self) -> None:
        bench = spoke()
        bench.receive(resolution(2, "10.77.0.7"), HUB_PEER, "192.0.2.1")
        assert bench.message(PacketType.RESOLUTION_REPLY).cies[0].code == 12

    def test_own_request_that_comes_back_is_dropped(self) -> None:
        bench = spoke()
        bench.receive(resolution(1, "10.2.0.5"), HUB_PEER, "192.0.2.1")
        assert bench.sent() == []
        assert bench.counters()["drop.loop"] == 1

    @pytest.mark.parametrize("changes", [{"source_protocol": None}, {"source_protocol": a("224.0.0.1")}])
    def test_request_from_nobody(self, changes: dict[str, Any]) -> None:
        bench = spoke()
        bench.receive(resolution(2, "10.1.0.7", **changes), HUB_PEER, "192.0.2.1")
        assert bench.counters()["drop.incomplete"] == 1
        assert bench.events() == []


class TestShortcutLife:
    def made(self, holding_time: int = 600) -> Bench:
        bench = spoke(quiet)
        bench.receive(resolution_reply(ask(bench), 2, holding_time=holding_time), HUB_PEER, "192.0.2.1")
        bench.events()
        return bench

    def test_idle_one_expires_with_its_mapping(self) -> None:
        bench = self.made()
        bench.engine.note_traffic(ip_network("10.2.0.0/24"), bench.now + 10)
        bench.pass_time(599)
        assert bench.events() == []
        bench.pass_time(2)
        assert bench.events() == [
            ShortcutRemoved(ip_network("10.2.0.0/24"), "expired"),
            MappingRemoved(a("10.0.0.12"), "expired"),
        ]

    def test_used_one_is_renewed_in_its_last_third(self) -> None:
        bench = self.made(540)
        bench.pass_time(350)
        bench.engine.note_traffic(ip_network("10.2.0.0/24"), bench.now)
        assert bench.sent() == [], "too early"
        bench.pass_time(20)
        bench.engine.note_traffic(a("10.0.0.12"), bench.now)
        request = bench.message(PacketType.RESOLUTION_REQUEST)
        assert request.destination_protocol == a("10.2.0.5")
        assert bench.engine.snapshot(bench.now).shortcuts[0].state == "renewing"
        bench.engine.note_traffic(a("10.0.0.12"), bench.now)
        assert bench.sent() == []
        bench.receive(resolution_reply(request, 2), HUB_PEER, "192.0.2.1")
        assert bench.events() == [], "renewal is no news"
        bench.pass_time(500)
        assert bench.events() == []
        [status] = bench.engine.snapshot(bench.now).shortcuts
        assert (status.expires_in, status.idle) == (100, 500)

    def test_refused_renewal_ends_it_at_once(self) -> None:
        bench = self.made(300)
        bench.pass_time(250)
        bench.engine.note_traffic(a("10.0.0.12"), bench.now)
        request = bench.message(PacketType.RESOLUTION_REQUEST)
        bench.receive(resolution_reply(request, 2, code=12), HUB_PEER, "192.0.2.1")
        assert bench.events() == [ShortcutRemoved(ip_network("10.2.0.0/24"), "not renewed: no binding exists")]

    def test_new_owner_moves_it(self) -> None:
        bench = self.made(300)
        bench.pass_time(250)
        bench.engine.note_traffic(a("10.0.0.12"), bench.now)
        bench.receive(resolution_reply(bench.message(PacketType.RESOLUTION_REQUEST), 3), HUB_PEER, "192.0.2.1")
        assert bench.events() == [
            MappingAdded(a("10.0.0.13"), a("192.0.2.13"), a("192.0.2.13"), "resolved", None),
            ShortcutAdded(ip_network("10.2.0.0/24"), a("10.0.0.13")),
        ]
        bench.pass_time(100)
        assert bench.events() == [MappingRemoved(a("10.0.0.12"), "expired")]
        assert len(bench.engine.snapshot(bench.now).shortcuts) == 1

    def test_peer_down_returns_the_traffic_to_the_hub(self) -> None:
        bench = self.made()
        bench.engine.peer_up(a("192.0.2.12"), 9, bench.now)
        bench.engine.peer_up(a("192.0.2.12"), 10, bench.now)
        bench.engine.peer_down(9, bench.now)
        assert bench.events() == [], "there is another path to that address"
        bench.engine.peer_down(10, bench.now)
        assert bench.events() == [
            ShortcutRemoved(ip_network("10.2.0.0/24"), "peer down"),
            MappingRemoved(a("10.0.0.12"), "peer down"),
        ]

    def test_used_mapping_without_a_shortcut_is_renewed(self) -> None:
        bench = spoke(quiet)
        bench.receive(resolution(2, "10.0.0.11"), HUB_PEER, "192.0.2.1")
        bench.sent()
        bench.engine.note_traffic(a("10.0.0.12"), bench.now)
        bench.pass_time(399)
        bench.engine.note_traffic(a("10.0.0.12"), bench.now)
        assert bench.sent() == []
        bench.pass_time(2)
        bench.engine.note_traffic(a("10.0.0.12"), bench.now)
        request = bench.message(PacketType.RESOLUTION_REQUEST)
        assert request.destination_protocol == a("10.0.0.12")
        bench.receive(resolution_reply(request, 2, 32), HUB_PEER, "192.0.2.1")
        bench.pass_time(500)
        assert MappingRemoved(a("10.0.0.12"), "expired") not in bench.events()

    def test_clear(self) -> None:
        bench = self.made()
        bench.engine.clear(bench.now, a("10.0.0.99"))
        assert bench.events() == []
        bench.engine.clear(bench.now, a("10.0.0.12"))
        assert len(bench.events()) == 2
        assert bench.sent() == []
        bench.engine.clear(bench.now)
        bench.message(PacketType.REGISTRATION_REQUEST)
