"""Who may claim what: one peer's SA speaks for one peer."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from dsvpn.nhrp import Claim
from dsvpn.nhrp.events import ClaimDenied, MappingAdded
from dsvpn.nhrp.limits import MAX_DENIALS
from dsvpn.wire.nhrp import FLAG_PURGE_NO_REPLY, NhrpMessage, PacketType
from dsvpn.wire.nhrp_cie import AddressFamily, Cie, ProtocolType
from tests.nhrp.bench import (
    HUB_PEER,
    Bench,
    a,
    hub,
    register,
    registration,
    registration_reply,
    resolution,
    resolution_reply,
    spoke,
)


def nets(*texts: str) -> tuple[Any, ...]:
    return tuple(ip_network(text) for text in texts)


def join(bench: Bench, number: int, claim: Claim | None = None, as_number: int | None = None) -> NhrpMessage:
    """Spoke `number` comes by adjacency `number`, and registers its address, or that of another."""
    nbma = f"192.0.2.1{number}"
    bench.engine.peer_up(a(nbma), number, bench.now, claim or Claim(f"s{number}"))
    bench.receive(registration(as_number or number, nbma), number, nbma)
    return bench.message(PacketType.REGISTRATION_REPLY)


def purge(source: str, destination: str, *prefixes: str, flags: int = 0) -> NhrpMessage:
    cies = [Cie(prefix_length=net.prefixlen, protocol=net.network_address) for net in map(ip_network, prefixes)]
    return NhrpMessage(
        PacketType.PURGE_REQUEST, AddressFamily.IPV4, ProtocolType.IPV4, 64, flags, 77, None, a(source), a(destination),
        cies,
    )  # fmt: skip


def denied(bench: Bench) -> list[ClaimDenied]:
    return [event for event in bench.events() if isinstance(event, ClaimDenied)]


class TestRegistration:
    def test_an_address_that_one_identity_holds_is_not_taken_by_another(self) -> None:
        bench = hub()
        assert join(bench, 1).cies[0].code == 0
        assert join(bench, 2, as_number=1).cies[0].code == 14
        assert denied(bench) == [ClaimDenied("s2", "register", a("10.0.0.11"), "s1 holds it for another 600 s")]
        mapping = bench.engine.snapshot(bench.now).mappings[0]
        assert (mapping.nbma, mapping.holder) == (a("192.0.2.11"), "s1")

    def test_not_even_while_its_holder_is_cut_off(self) -> None:
        bench = hub()
        join(bench, 1)
        bench.engine.peer_down(1, bench.now)
        assert bench.engine.snapshot(bench.now).mappings == ()
        assert join(bench, 2, as_number=1).cies[0].code == 14
        bench.pass_time(601)
        assert join(bench, 2, as_number=1).cies[0].code == 0

    def test_its_holder_comes_back_from_anywhere(self) -> None:
        bench = hub()
        join(bench, 1)
        assert join(bench, 3, Claim("s1"), as_number=1).cies[0].code == 0
        assert bench.engine.snapshot(bench.now).mappings[0].nbma == a("192.0.2.13")
        assert denied(bench) == []

    @pytest.mark.parametrize("how", ["purge", "holding time 0", "holding time 0 after a cut", "operator"])
    def test_a_holder_that_leaves_frees_its_address(self, how: str) -> None:
        bench = hub()
        join(bench, 1)
        if how == "purge":
            bench.receive(purge("10.0.0.11", "10.0.0.1", "10.0.0.11/32", flags=FLAG_PURGE_NO_REPLY), 1, "192.0.2.11")
        elif how == "operator":
            bench.engine.clear(bench.now)
        else:
            if "cut" in how:
                bench.engine.peer_down(1, bench.now)
                bench.engine.peer_up(a("192.0.2.11"), 1, bench.now, Claim("s1"))
            bench.receive(registration(1, cies=[Cie(prefix_length=32, holding_time=0)]), 1, "192.0.2.11")
        bench.sent()
        assert join(bench, 2, as_number=1).cies[0].code == 0

    def test_one_that_is_denied_withdraws_nothing(self) -> None:
        bench = hub()
        join(bench, 1)
        bench.engine.peer_down(1, bench.now)
        bench.engine.peer_up(a("192.0.2.12"), 2, bench.now, Claim("s2"))
        withdrawal = registration(1, "192.0.2.12", cies=[Cie(prefix_length=32, holding_time=0)])
        bench.receive(withdrawal, 2, "192.0.2.12")
        assert bench.message(PacketType.REGISTRATION_REPLY).cies[0].code == 14
        assert join(bench, 2, as_number=1).cies[0].code == 14

    def test_an_identity_with_addresses_registers_no_other(self) -> None:
        bench = hub()
        claim = Claim("s2", nets("10.0.0.12/32"))
        assert join(bench, 2, claim).cies[0].code == 0
        reply = join(bench, 2, claim, as_number=3)
        assert (reply.cies[0].code, reply.cies[0].holding_time) == (4, 0)
        assert denied(bench) == [ClaimDenied("s2", "register", a("10.0.0.13"), "it may claim 10.0.0.12")]

    def test_an_identity_without_any_registers_nothing(self) -> None:
        bench = hub()
        assert join(bench, 2, Claim("s2", (), ())).cies[0].code == 4
        [told] = denied(bench)
        assert told.reason == "it may claim nothing"

    def test_without_identities_the_place_counts(self) -> None:
        """Plain GRE proves nothing: a client may come from another address."""
        bench = hub()
        register(bench, 1, 1)
        bench.engine.peer_up(a("198.51.100.1"), 2, bench.now)
        bench.receive(registration(1, "198.51.100.1"), 2, "198.51.100.1")
        assert bench.message(PacketType.REGISTRATION_REPLY).cies[0].code == 0


class TestRequests:
    def test_no_request_in_the_name_of_another(self) -> None:
        bench = hub()
        for number in (1, 2, 3):
            join(bench, number)
        bench.events()
        bench.receive(resolution(1, "10.3.0.5"), 2, "192.0.2.12")
        assert bench.sent() == []
        assert denied(bench) == [ClaimDenied("s2", "resolve", a("10.0.0.11"), "it does not have that address")]
        bench.receive(resolution(2, "10.3.0.5"), 2, "192.0.2.12")
        assert bench.message(PacketType.RESOLUTION_REQUEST).source_protocol == a("10.0.0.12")

    def test_nor_in_that_of_one_that_is_cut_off(self) -> None:
        bench = hub()
        for number in (1, 2, 3):
            join(bench, number)
        bench.engine.peer_down(1, bench.now)
        bench.receive(resolution(1, "10.3.0.5"), 2, "192.0.2.12")
        assert bench.sent() == []

    def test_a_registration_for_another_nhs_neither(self) -> None:
        bench = hub()
        join(bench, 1)
        join(bench, 3)
        request = registration(1, "192.0.2.12", destination_protocol=a("10.0.0.13"), request_id=9)
        request.hop_count = 5
        bench.engine.peer_up(a("192.0.2.12"), 2, bench.now, Claim("s2"))
        bench.receive(request, 2, "192.0.2.12")
        assert bench.sent() == []
        assert bench.counters()["denied.register"] == 1

    def test_the_hub_may_speak_for_all(self) -> None:
        bench = spoke()
        bench.receive(resolution(2, "10.1.0.5"), HUB_PEER, "192.0.2.1")
        assert bench.message(PacketType.RESOLUTION_REPLY).source_protocol == a("10.0.0.12")
        assert [type(event) for event in bench.events()] == [MappingAdded]


class TestAnswers:
    def asked(self, claim: Claim | None = None) -> Bench:
        """A hub with three spokes; what spoke 2 may say is in its claim."""
        bench = hub()
        join(bench, 1)
        join(bench, 2, claim)
        join(bench, 3)
        bench.events()
        return bench

    def answer(self, bench: Bench, target: str, by: int, length: int = 24, **changes: Any) -> list[NhrpMessage]:
        """Spoke 2 answers a request of spoke 1, in the name of spoke `by`."""
        bench.receive(resolution_reply(resolution(1, target), by, length, **changes), 2, "192.0.2.12")
        return [packet for packet, peer in bench.sent() if isinstance(packet, NhrpMessage) and peer == 1]

    def test_what_is_routed_to_it_passes(self) -> None:
        bench = self.asked()
        [reply] = self.answer(bench, "10.2.0.5", 2)
        assert reply.cies[0].prefix_length == 24
        assert denied(bench) == []

    def test_the_network_of_another_does_not(self) -> None:
        bench = self.asked()
        assert self.answer(bench, "10.3.0.5", 2) == []
        assert denied(bench) == [ClaimDenied("s2", "answer", a("10.3.0.5"), "it is not the way there")]

    def test_nor_an_answer_in_the_name_of_another(self) -> None:
        bench = self.asked()
        assert self.answer(bench, "10.2.0.5", 3) == []
        assert denied(bench) == [ClaimDenied("s2", "answer", a("10.0.0.13"), "it does not have that address")]

    def test_a_wider_answer_is_narrowed_to_the_route(self) -> None:
        bench = self.asked()
        [reply] = self.answer(bench, "10.2.0.5", 2, 8)
        assert reply.cies[0].prefix_length == 24
        assert bench.counters()["narrowed.answer"] == 1

    def test_a_narrower_one_is_left_alone(self) -> None:
        [reply] = self.answer(self.asked(), "10.2.0.5", 2, 28)
        assert reply.cies[0].prefix_length == 28

    def test_a_tunnel_address_answers_for_itself_alone(self) -> None:
        [reply] = self.answer(self.asked(), "10.0.0.12", 2, 24)
        assert reply.cies[0].prefix_length == 32

    def test_configured_prefixes_stand_before_routes(self) -> None:
        bench = self.asked(Claim("s2", nets("10.0.0.12/32"), nets("10.0.0.12/32", "10.2.0.0/25")))
        [reply] = self.answer(bench, "10.2.0.5", 2)
        assert reply.cies[0].prefix_length == 25
        assert self.answer(bench, "10.2.0.200", 2) == []
        assert [event.protocol for event in denied(bench)] == [a("10.2.0.200")]

    def test_a_refusal_always_passes(self) -> None:
        [reply] = self.answer(self.asked(), "10.2.0.5", 2, code=12, protocol=None, nbma=None)
        assert reply.cies[0].code == 12

    def test_by_the_direct_path_a_spoke_answers_for_itself_alone(self) -> None:
        bench = spoke()
        bench.engine.peer_up(a("192.0.2.13"), 3, bench.now, Claim("s3"))
        bench.engine.handle_redirect(b"", HUB_PEER, bench.now)
        bench.engine.handle_miss(a("10.0.0.12"), bench.now)
        request = bench.message(PacketType.RESOLUTION_REQUEST)
        bench.receive(resolution_reply(request, 2, 32), 3, "192.0.2.13")
        assert bench.counters()["denied.answer"] == 1
        bench.engine.peer_up(a("192.0.2.12"), 2, bench.now, Claim("s2"))
        bench.receive(resolution_reply(request, 2, 32), 2, "192.0.2.12")
        assert [m.protocol for m in bench.engine.snapshot(bench.now).mappings if m.kind == "resolved"] == [
            a("10.0.0.12")
        ]


class TestPurges:
    def relayed(self) -> Bench:
        """A hub by which spoke 1 has resolved the LAN of spoke 2."""
        bench = hub()
        for number in (1, 2, 3):
            join(bench, number)
        bench.receive(resolution_reply(resolution(1, "10.2.0.5"), 2), 2, "192.0.2.12")
        bench.message(PacketType.RESOLUTION_REPLY)
        bench.events()
        return bench

    def test_the_responder_takes_its_answer_back(self) -> None:
        bench = self.relayed()
        bench.receive(purge("10.0.0.12", "10.0.0.11", "10.2.0.0/24"), 2, "192.0.2.12")
        assert bench.message(PacketType.PURGE_REQUEST).cies == [Cie(prefix_length=24, protocol=a("10.2.0.0"))]

    def test_even_when_the_prefix_is_routed_elsewhere_by_then(self) -> None:
        bench = self.relayed()
        bench.routes = [route for route in bench.routes if route.prefix != ip_network("10.2.0.0/24")]
        bench.receive(purge("10.0.0.12", "10.0.0.11", "10.2.0.0/24"), 2, "192.0.2.12")
        assert bench.message(PacketType.PURGE_REQUEST).cies == [Cie(prefix_length=24, protocol=a("10.2.0.0"))]

    def test_no_purge_in_the_name_of_another(self) -> None:
        bench = self.relayed()
        bench.receive(purge("10.0.0.12", "10.0.0.11", "10.2.0.0/24"), 3, "192.0.2.13")
        assert bench.sent() == []
        assert denied(bench) == [ClaimDenied("s3", "purge", a("10.0.0.12"), "it does not have that address")]

    def test_nor_of_the_prefix_of_another(self) -> None:
        bench = self.relayed()
        bench.receive(purge("10.0.0.13", "10.0.0.11", "10.2.0.0/24", "10.3.0.0/24"), 3, "192.0.2.13")
        assert bench.message(PacketType.PURGE_REQUEST).cies == [Cie(prefix_length=24, protocol=a("10.3.0.0"))]
        assert [event.protocol for event in denied(bench)] == [a("10.2.0.0")]


class TestReports:
    def test_once_for_each_cause_and_counted(self) -> None:
        bench = hub()
        join(bench, 1)
        for _ in range(5):
            join(bench, 2, as_number=1)
        assert len(denied(bench)) == 1
        bench.pass_time(3)
        [denial] = bench.engine.snapshot(bench.now).denials
        assert (denial.identity, denial.action, denial.count, denial.ago) == ("s2", "register", 5, 3.0)
        assert bench.counters()["denied.register"] == 5

    def test_bounded(self) -> None:
        bench = hub()
        for number in range(MAX_DENIALS + 20):
            bench.engine.peer_up(a("192.0.2.77"), 100 + number, bench.now, Claim(f"x{number}", ()))
            bench.receive(registration(1, "192.0.2.77"), 100 + number, "192.0.2.77")
            bench.pass_time(1)
        denials = bench.engine.snapshot(bench.now).denials
        assert len(denials) == MAX_DENIALS
        assert denials[0].identity == f"x{MAX_DENIALS + 19}"

    def test_who_proved_to_be_somebody_else_is_not_the_nhs_at_its_address(self) -> None:
        bench = spoke(up=False)
        bench.engine.peer_up(a("192.0.2.1"), 77, bench.now, Claim("neighbour", server=False))
        assert not bench.engine.trusts(77)
        assert not bench.sent()
        bench.engine.peer_up(a("192.0.2.1"), HUB_PEER, bench.now, Claim("hub"))
        assert bench.engine.trusts(HUB_PEER)
        # It came last, but nothing is sent there in the name of the hub.
        bench.engine.peer_up(a("192.0.2.1"), 78, bench.now, Claim("another", server=False))
        assert {peer for _, peer in bench.sent()} == {HUB_PEER}
        bench.engine.peer_down(HUB_PEER, bench.now)
        assert bench.engine.snapshot(bench.now).nhs[0].state == "waiting"

    def test_the_spoke_learns_why(self) -> None:
        bench = spoke(up=False)
        bench.engine.peer_up(a("192.0.2.1"), HUB_PEER, bench.now, Claim("hub"))
        bench.receive(registration_reply(bench.message(PacketType.REGISTRATION_REQUEST), 14), HUB_PEER, "192.0.2.1")
        assert "unique by another gateway" in bench.engine.snapshot(bench.now).nhs[0].last_error
