"""Registration (RFC 2332 section 5.2.3), both sides."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from dsvpn.errors import MisuseError
from dsvpn.nhrp import Claim, NhrpConfig
from dsvpn.nhrp.events import MappingAdded, MappingRemoved, NhsDown, NhsUp
from dsvpn.nhrp.limits import MAX_REGISTRATIONS_PER_PEER, PARKED_TIME
from dsvpn.wire.nhrp import ErrorIndication, NhrpMessage, PacketType, encode
from dsvpn.wire.nhrp_cie import AddressFamily, Cie, ProtocolType
from dsvpn.wire.nhrp_extensions import CieExtension, RawExtension, cisco_authentication
from tests.nhrp.bench import (
    HUB_PEER,
    Bench,
    a,
    cie_extension,
    hub,
    register,
    registration,
    registration_reply,
    spoke,
)


class TestClient:
    # spoke                                  hub
    #   peer_up(192.0.2.1)
    #   Registration Request  -------------->
    #   <--------------  Registration Reply
    def test_request_has_the_form_that_frr_sends(self) -> None:
        bench = spoke(up=False)
        assert bench.events() == [MappingAdded(a("10.0.0.1"), a("192.0.2.1"), a("192.0.2.1"), "nhs", None)]
        assert bench.sent() == []
        assert bench.engine.get_timer() is None
        bench.engine.peer_up(a("192.0.2.99"), 3, bench.now)
        assert bench.sent() == []
        bench.engine.peer_up(a("192.0.2.1"), HUB_PEER, bench.now)
        [(data, peer)] = bench.engine.packets_to_send(bench.now)
        # The octets of frr8.4.4_plain_registration but for addresses, holding time and request id.
        assert len(data) == 92
        assert peer == HUB_PEER
        bench.engine.peer_down(HUB_PEER, bench.now)
        bench.engine.peer_up(a("192.0.2.1"), 8, bench.now)
        request = bench.message(PacketType.REGISTRATION_REQUEST)
        assert (request.hop_count, request.flags) == (1, 0x0002)
        assert request.source_protocol == a("10.0.0.11")
        assert request.source_nbma == a("192.0.2.11")
        assert request.destination_protocol == a("10.0.0.1")
        assert request.cies == [Cie(prefix_length=32, holding_time=600)]
        assert [extension.type for extension in request.extensions] == [4, 5, 3, 9]
        assert cie_extension(request, 9) == [Cie(prefix_length=32, nbma=a("192.0.2.1"), protocol=a("10.0.0.1"))]

    def test_reply_then_refresh_at_a_third_of_the_holding_time(self) -> None:
        bench = spoke(up=False)
        bench.engine.peer_up(a("192.0.2.1"), HUB_PEER, bench.now)
        first = bench.message(PacketType.REGISTRATION_REQUEST)
        bench.receive(registration_reply(first), HUB_PEER, "192.0.2.1")
        assert bench.events()[1:] == [NhsUp(a("10.0.0.1"), None)]
        assert bench.engine.get_timer() == bench.now + 200
        bench.pass_time(200)
        second = bench.message(PacketType.REGISTRATION_REQUEST)
        assert second.request_id != first.request_id
        bench.receive(registration_reply(second), HUB_PEER, "192.0.2.1")
        assert bench.events() == [], "a refresh is no news"

    def test_retry_doubles_to_64_s_with_the_same_id_and_then_wants_a_new_sa(self) -> None:
        bench = spoke(up=False)
        bench.events()
        bench.engine.peer_up(a("192.0.2.1"), HUB_PEER, bench.now)
        times, ids, start = [], set(), bench.now
        for _ in range(200):
            for packet, _ in bench.sent():
                assert isinstance(packet, NhrpMessage)
                times.append(bench.now - start)
                ids.add(packet.request_id)
            bench.pass_time(1)
        assert times == [0, 1, 3, 7, 15, 31, 63, 127, 191]
        assert len(ids) == 1
        events = [event for event in bench.events() if isinstance(event, NhsDown)]
        assert [event.restart_peer for event in events] == [False, True, True, True]
        assert events[0].reason == "no answer (3 requests)"
        assert bench.engine.snapshot(bench.now).nhs[0].state == "silent"

    def test_late_answer_to_a_retry_is_taken(self) -> None:
        bench = spoke(up=False)
        bench.engine.peer_up(a("192.0.2.1"), HUB_PEER, bench.now)
        request = bench.message(PacketType.REGISTRATION_REQUEST)
        bench.pass_time(20)
        bench.sent()
        bench.receive(registration_reply(request), HUB_PEER, "192.0.2.1")
        assert bench.events()[-1] == NhsUp(a("10.0.0.1"), None)

    def test_nat_address_is_learned_and_used(self) -> None:
        bench = spoke(up=False)
        bench.engine.peer_up(a("192.0.2.1"), HUB_PEER, bench.now)
        request = bench.message(PacketType.REGISTRATION_REQUEST)
        bench.receive(registration_reply(request, nat="203.0.113.5"), HUB_PEER, "192.0.2.1")
        assert bench.events()[-1] == NhsUp(a("10.0.0.1"), a("203.0.113.5"))
        assert bench.engine.snapshot(bench.now).nat_address == a("203.0.113.5")

    @pytest.mark.parametrize(
        ("code", "text"), [(4, "administratively prohibited"), (14, "unique"), (13, "not unique"), (99, "code 99")]
    )
    def test_refusal_is_reported_once_and_retried(self, code: int, text: str) -> None:
        bench = spoke(up=False)
        bench.events()
        bench.engine.peer_up(a("192.0.2.1"), HUB_PEER, bench.now)
        for seconds in (1, 2, 4, 8, 16, 32, 64, 64):
            request = bench.message(PacketType.REGISTRATION_REQUEST)
            bench.receive(registration_reply(request, code), HUB_PEER, "192.0.2.1")
            bench.pass_time(seconds)
        [event] = bench.events()
        assert isinstance(event, NhsDown)
        assert text in event.reason
        assert not event.restart_peer
        request = bench.message(PacketType.REGISTRATION_REQUEST)
        bench.receive(registration_reply(request), HUB_PEER, "192.0.2.1")
        assert bench.events() == [NhsUp(a("10.0.0.1"), None)]

    def test_replies_that_nobody_asked_for_change_nothing(self) -> None:
        bench = spoke(up=False)
        bench.engine.peer_up(a("192.0.2.1"), HUB_PEER, bench.now)
        request = bench.message(PacketType.REGISTRATION_REQUEST)
        bench.engine.peer_up(a("192.0.2.66"), 66, bench.now)
        bench.receive(registration_reply(replace(request, request_id=12345)), HUB_PEER, "192.0.2.1")
        bench.receive(registration_reply(request), 66, "192.0.2.66")
        assert bench.counters()["drop.unexpected_reply"] == 2
        assert bench.engine.snapshot(bench.now).nhs[0].state == "registering"

    def test_peer_down_stops_and_peer_up_starts_anew(self) -> None:
        bench = spoke()
        bench.engine.peer_down(HUB_PEER, bench.now)
        assert bench.events() == [NhsDown(a("10.0.0.1"), "no path to NHS 10.0.0.1", False)]
        bench.pass_time(3600)
        assert bench.sent() == []
        assert bench.engine.get_timer() is None
        bench.engine.peer_up(a("192.0.2.1"), 9, bench.now)
        bench.receive(registration_reply(bench.message(PacketType.REGISTRATION_REQUEST)), 9, "192.0.2.1")
        assert bench.events() == [NhsUp(a("10.0.0.1"), None)]

    def test_second_peer_at_the_same_address_takes_over(self) -> None:
        bench = spoke()
        bench.engine.peer_up(a("192.0.2.1"), 9, bench.now)
        bench.sent()
        bench.engine.peer_down(9, bench.now)
        assert bench.engine.snapshot(bench.now).nhs[0].state in ("up", "registering")

    def test_own_address_changes(self) -> None:
        bench = spoke()
        bench.engine.set_nbma(a("192.0.2.11"), bench.now)
        assert bench.sent() == []
        bench.engine.set_nbma(a("198.51.100.7"), bench.now)
        assert bench.message(PacketType.REGISTRATION_REQUEST).source_nbma == a("198.51.100.7")

    def test_unique_registration(self) -> None:
        bench = spoke(lambda config: replace(config, unique=True), up=False)
        bench.engine.peer_up(a("192.0.2.1"), HUB_PEER, bench.now)
        request = bench.message(PacketType.REGISTRATION_REQUEST)
        assert request.flags == 0x8002
        assert request.cies[0].prefix_length == 0xFF

    def test_wrong_configuration_is_refused(self) -> None:
        with pytest.raises(MisuseError, match="holding time 2 s"):
            spoke(lambda config: replace(config, holding_time=2), up=False)
        with pytest.raises(MisuseError, match="without a protocol address"):
            Bench(NhrpConfig(()))


class TestServer:
    # spoke                                  hub
    #   Registration Request  -------------->   MappingAdded(registered)
    #   <--------------  Registration Reply
    def test_reply_names_the_responder(self) -> None:
        bench = hub()
        reply = register(bench, 1, 1)
        assert reply.hop_count == 64
        assert reply.request_id == 1001
        assert reply.destination_protocol == a("10.0.0.1")
        assert reply.source_protocol == a("10.0.0.11")
        assert reply.cies == [Cie(prefix_length=32, holding_time=600)]
        [responder] = cie_extension(reply, 3)
        assert (responder.nbma, responder.protocol) == (a("192.0.2.1"), a("10.0.0.1"))
        assert len(cie_extension(reply, 9)) == 1, "no NAT, nothing to add"
        assert bench.events() == [MappingAdded(a("10.0.0.11"), a("192.0.2.11"), a("192.0.2.11"), "registered", 1)]

    def test_refresh_is_no_news_and_expiry_is(self) -> None:
        bench = hub()
        register(bench, 1, 1)
        bench.pass_time(500)
        register(bench, 1, 1)
        bench.pass_time(500)
        assert len(bench.events()) == 1
        bench.pass_time(101)
        assert bench.events() == [MappingRemoved(a("10.0.0.11"), "expired")]
        assert bench.engine.get_timer() is None

    def test_behind_nat_the_public_address_counts(self) -> None:
        bench = hub()
        reply = register(bench, 1, 1, outer="203.0.113.9", nbma="192.168.1.2")
        assert cie_extension(reply, 9)[1] == Cie(prefix_length=32, nbma=a("203.0.113.9"), protocol=a("10.0.0.11"))
        assert bench.events() == [MappingAdded(a("10.0.0.11"), a("203.0.113.9"), a("192.168.1.2"), "registered", 1)]

    def test_spokes_behind_one_nat_address_do_not_flap(self) -> None:
        bench = hub()
        for _ in range(3):
            for number in (1, 2, 3):
                register(bench, number, number, outer="203.0.113.9", nbma=f"192.168.1.{number}")
            bench.pass_time(200)
        added = bench.events()
        assert [event.protocol for event in added if isinstance(event, MappingAdded)] == [
            a("10.0.0.11"),
            a("10.0.0.12"),
            a("10.0.0.13"),
        ]
        assert len(added) == 3
        bench.engine.peer_down(2, bench.now)
        assert bench.events() == [MappingRemoved(a("10.0.0.12"), "peer down")]

    def test_not_unique_is_replaced_from_elsewhere(self) -> None:
        bench = hub()
        register(bench, 1, 1)
        bench.events()
        register(bench, 1, 2, outer="198.51.100.1", nbma="198.51.100.1")
        assert bench.events() == [MappingAdded(a("10.0.0.11"), a("198.51.100.1"), a("198.51.100.1"), "registered", 2)]
        bench.engine.peer_down(1, bench.now)
        assert bench.events() == [], "the old adjacency has nothing left"

    def test_unique_is_defended_with_code_14(self) -> None:
        bench = hub()
        unique = [Cie(prefix_length=0xFF, holding_time=600)]
        assert register(bench, 1, 1, flags=0x8002, cies=unique).cies[0].code == 0
        bench.events()
        reply = register(bench, 1, 2, outer="198.51.100.1", nbma="198.51.100.1")
        assert reply.cies[0].code == 14
        assert reply.cies[0].holding_time == 0
        assert bench.events() == []
        # The same client again, by its adjacency or (after a new SA) by its NBMA address.
        assert register(bench, 1, 1, flags=0x8002, cies=unique).cies[0].code == 0
        assert register(bench, 1, 5, flags=0x8002, cies=unique).cies[0].code == 0
        bench.pass_time(601)
        assert register(bench, 1, 2, outer="198.51.100.1", nbma="198.51.100.1").cies[0].code == 0

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"cies": [Cie(prefix_length=24, holding_time=600)]}, 13),
            ({"cies": [Cie(prefix_length=24, holding_time=600)], "flags": 0x8002}, 4),
            ({"cies": [Cie(prefix_length=0, holding_time=600)]}, 0),
            ({"cies": [Cie(prefix_length=0xFF, holding_time=600)]}, 0),
            ({"cies": [Cie(prefix_length=32, holding_time=600, protocol=a("10.0.0.99"))]}, 4),
            ({"cies": [Cie(prefix_length=32, holding_time=600, protocol=a("10.0.0.11"))]}, 0),
            ({"source_protocol": a("10.9.0.1")}, 4),
            ({"source_protocol": a("10.0.0.1")}, 4),
            ({"source_protocol": a("224.0.0.1")}, 4),
            ({"source_protocol": a("0.0.0.0")}, 4),
            ({"cies": [Cie(prefix_length=32, holding_time=0)]}, 0),
            ({"extensions": []}, 0),
        ],
    )
    def test_what_is_accepted(self, changes: dict[str, Any], code: int) -> None:
        bench = hub()
        reply = register(bench, 1, 1, **changes)
        assert reply.cies[0].code == code
        accepted = code == 0 and reply.cies[0].holding_time > 0
        assert bool(bench.events()) is accepted

    def test_frr_style_destination(self) -> None:
        """A client that does not know its NHS's address names itself (facts from FRR's `nhs dynamic`)."""
        bench = hub()
        reply = register(bench, 1, 1, destination_protocol=a("10.0.0.11"))
        assert reply.destination_protocol == a("10.0.0.1")
        assert reply.cies[0].code == 0

    def test_configured_mappings_stand(self) -> None:
        bench = hub(lambda config: replace(config, static_maps=((a("10.0.0.12"), a("192.0.2.12")),)))
        bench.events()
        assert register(bench, 2, 2).cies[0].code == 0
        assert register(bench, 2, 3, outer="198.51.100.66").cies[0].code == 4
        assert bench.events() == []

    def test_holding_time_0_withdraws_only_ones_own(self) -> None:
        bench = hub()
        register(bench, 1, 1)
        bench.events()
        nothing = [Cie(prefix_length=32, holding_time=0)]
        register(bench, 1, 2, outer="198.51.100.66", nbma="198.51.100.66", cies=nothing)
        assert bench.events() == []
        register(bench, 1, 1, cies=nothing)
        assert len(bench.events()) == 1

    def test_unknown_compulsory_extension_is_error_1(self) -> None:
        bench = hub()
        bench.engine.peer_up(a("192.0.2.11"), 1, bench.now)
        bench.receive(registration(1, extensions=[RawExtension(77, True, b"x")]), 1, "192.0.2.11")
        assert bench.one(ErrorIndication).code == 1
        bench.receive(registration(1, extensions=[RawExtension(77, False, b"x")]), 1, "192.0.2.11")
        assert bench.message(PacketType.REGISTRATION_REPLY).extensions == [RawExtension(77, False, b"x")]

    def test_several_entries_are_answered_one_by_one(self) -> None:
        bench = hub()
        entries = [Cie(prefix_length=length, holding_time=600) for length in (32, 24)]
        reply = register(bench, 1, 1, cies=entries)
        assert [cie.code for cie in reply.cies] == [0, 13]

    def test_entries_for_other_addresses_that_the_client_was_given(self) -> None:
        bench = hub()
        given = tuple(ip_network(text) for text in ("10.0.0.11/32", "10.0.0.64/28"))
        bench.engine.peer_up(a("192.0.2.11"), 1, bench.now, Claim("s1", given, given))
        names = ("10.0.0.11", "10.0.0.65", "10.0.0.99")
        entries = [Cie(prefix_length=32, holding_time=600, protocol=a(name)) for name in names]
        bench.receive(registration(1, cies=entries), 1, "192.0.2.11")
        assert [cie.code for cie in bench.message(PacketType.REGISTRATION_REPLY).cies] == [0, 0, 4]
        found = [event.protocol for event in bench.events() if isinstance(event, MappingAdded)]
        assert found == [a("10.0.0.11"), a("10.0.0.65")]

    def test_link_local_address_beside_the_global_one(self) -> None:
        """Cisco routers register both in one request over IPv6."""
        config = NhrpConfig((ip_interface("2001:db8:1::1/64"),), a("192.0.2.1"))
        bench = Bench(config)
        bench.engine.peer_up(a("192.0.2.11"), 1, bench.now)
        names = ("2001:db8:1::11", "fe80::11", "2001:db8:1::12")
        request = registration(
            1,
            source_protocol=a(names[0]),
            destination_protocol=a("2001:db8:1::1"),
            cies=[Cie(prefix_length=128, holding_time=600, protocol=a(name)) for name in names],
            extensions=[],
        )
        bench.receive(replace(request, protocol_type=ProtocolType.IPV6), 1, "192.0.2.11")
        assert [cie.code for cie in bench.message(PacketType.REGISTRATION_REPLY).cies] == [0, 0, 4]

    def test_one_peer_cannot_fill_the_table(self) -> None:
        bench = hub()
        bench.engine.peer_up(a("192.0.2.11"), 1, bench.now)
        codes = []
        for number in range(2, 40):
            bench.receive(registration(1, source_protocol=a(f"10.0.0.{number}")), 1, "192.0.2.11")
            codes.append(bench.message(PacketType.REGISTRATION_REPLY).cies[0].code)
        assert codes == [0] * MAX_REGISTRATIONS_PER_PEER + [5] * (38 - MAX_REGISTRATIONS_PER_PEER)

    def test_peer_moves_to_another_address(self) -> None:
        bench = hub()
        register(bench, 1, 1, outer="203.0.113.9", nbma="192.168.1.2")
        bench.events()
        bench.engine.peer_up(a("203.0.113.77"), 1, bench.now)
        assert bench.events() == [MappingAdded(a("10.0.0.11"), a("203.0.113.77"), a("192.168.1.2"), "registered", 1)]

    # stranger (plain GRE)                    hub
    #   Registration Request  -------------->   MappingAdded(registered, peer=None)
    #                                           peer_up
    #   <--------------  Registration Reply
    def test_stranger_gets_its_reply_once_it_has_a_peer(self) -> None:
        bench = hub()
        bench.receive(registration(1), None, "192.0.2.11")
        assert bench.sent() == []
        assert bench.events() == [MappingAdded(a("10.0.0.11"), a("192.0.2.11"), a("192.0.2.11"), "registered", None)]
        bench.engine.peer_up(a("192.0.2.11"), 4, bench.now)
        [(packet, peer)] = bench.sent()
        assert isinstance(packet, NhrpMessage)
        assert packet.cies[0].code == 0
        assert peer == 4
        assert bench.engine.snapshot(bench.now).mappings[0].peer == 4
        bench.engine.peer_down(4, bench.now)
        assert bench.events() == [MappingRemoved(a("10.0.0.11"), "peer down")]

    def test_stranger_without_a_peer_is_forgotten(self) -> None:
        bench = hub()
        bench.receive(registration(1), None, "192.0.2.11")
        bench.pass_time(PARKED_TIME + 1)
        bench.engine.peer_up(a("192.0.2.11"), 4, bench.now)
        assert bench.sent() == []
        assert bench.counters()["drop.parked_timeout"] == 1
        bench.receive(registration(2, source_protocol=a("10.9.9.9")), None, "192.0.2.12")
        bench.engine.peer_up(a("192.0.2.12"), 5, bench.now)
        assert bench.sent() == [], "a refused stranger gets nothing"

    def test_host_addresses_on_tunnels_as_frr_wants_them(self) -> None:
        bench = hub(lambda config: replace(config, protocol_addresses=(ip_interface("10.255.0.1/32"),)))
        reply = register(bench, 1, 1, source_protocol=a("10.255.0.11"), destination_protocol=a("10.255.0.1"))
        assert reply.cies[0].code == 0

    def test_ipv6_tunnel_over_ipv6(self) -> None:
        bench = hub(
            lambda config: replace(config, protocol_addresses=(ip_interface("fd00::1/64"),), nbma=a("2001:db8::1"))
        )
        bench.engine.peer_up(a("2001:db8::11"), 1, bench.now)
        request = replace(
            registration(1),
            family=AddressFamily.IPV6,
            protocol_type=ProtocolType.IPV6,
            source_nbma=a("2001:db8:f::2"),
            source_protocol=a("fd00::11"),
            destination_protocol=a("fd00::1"),
            cies=[Cie(prefix_length=128, holding_time=60)],
            extensions=[CieExtension(9, False)],
        )
        bench.receive(request, 1, "2001:db8::11")
        reply = bench.message(PacketType.REGISTRATION_REPLY)
        assert cie_extension(reply, 9) == [Cie(prefix_length=128, nbma=a("2001:db8::11"), protocol=a("fd00::11"))]


class TestAuthentication:
    def authenticated(self, config: NhrpConfig) -> NhrpConfig:
        return replace(config, authentication=b"s3cret")

    def test_right_word(self) -> None:
        bench = hub(self.authenticated)
        reply = register(bench, 1, 1, extensions=[CieExtension(9, False), cisco_authentication(b"s3cret")])
        assert reply.cies[0].code == 0
        assert reply.extensions[-1] == cisco_authentication(b"s3cret")

    @pytest.mark.parametrize(
        "extensions",
        [
            [],
            [cisco_authentication(b"other")],
            [cisco_authentication(b"s3cre")],
            [RawExtension(7, True, b"\x00\x00\x00\x02s3cret")],
            [cisco_authentication(b"other"), cisco_authentication(b"s3cret")],
        ],
    )
    def test_wrong_word_is_error_11(self, extensions: list[RawExtension]) -> None:
        bench = hub(self.authenticated)
        bench.engine.peer_up(a("192.0.2.11"), 1, bench.now)
        request = registration(1, extensions=extensions)
        bench.receive(request, 1, "192.0.2.11")
        error = bench.one(ErrorIndication)
        assert error.code == 11
        assert error.packet == encode(request)
        assert error.destination_protocol == a("10.0.0.11")
        assert bench.events() == []

    def test_errors_are_limited_and_never_answered(self) -> None:
        bench = hub(self.authenticated)
        bench.engine.peer_up(a("192.0.2.11"), 1, bench.now)
        for _ in range(100):
            bench.receive(registration(1), 1, "192.0.2.11")
        errors = bench.sent()
        assert 1 <= len(errors) <= 5
        assert bench.counters()["drop.error_limit"] == 100 - len(errors)
        other = hub(self.authenticated)
        other.engine.peer_up(a("192.0.2.1"), 1, other.now)
        for packet, _ in errors:
            other.receive(packet, 1, "192.0.2.1")
        assert other.sent() == []

    def test_spoke_says_why(self) -> None:
        # spoke (word "s3cret")               hub (word "other")
        #   Registration Request  -------------->
        #   <--------------  Error Indication 11
        bench, far = spoke(self.authenticated, up=False), hub(lambda config: replace(config, authentication=b"other"))
        bench.events()
        bench.engine.peer_up(a("192.0.2.1"), HUB_PEER, bench.now)
        far.engine.peer_up(a("192.0.2.11"), 1, far.now)
        for data, _ in bench.engine.packets_to_send(bench.now):
            far.receive(data, 1, "192.0.2.11")
        for data, _ in far.engine.packets_to_send(far.now):
            bench.receive(data, HUB_PEER, "192.0.2.1")
        [event] = bench.events()
        assert isinstance(event, NhsDown)
        assert "authentication failure" in event.reason
        assert bench.engine.snapshot(bench.now).nhs[0].state == "refused"
        assert bench.engine.get_timer() == bench.now + 1, "retries go on"

    def test_answer_without_the_word_is_not_believed(self) -> None:
        bench = spoke(self.authenticated, up=False)
        bench.events()
        bench.engine.peer_up(a("192.0.2.1"), HUB_PEER, bench.now)
        reply = registration_reply(bench.message(PacketType.REGISTRATION_REQUEST))
        bench.receive(replace(reply, extensions=reply.extensions[:4]), HUB_PEER, "192.0.2.1")
        [event] = bench.events()
        assert isinstance(event, NhsDown)
        assert "authentication extension is missing" in event.reason
        bench.receive(reply, HUB_PEER, "192.0.2.1")
        assert bench.events() == [NhsUp(a("10.0.0.1"), None)]
