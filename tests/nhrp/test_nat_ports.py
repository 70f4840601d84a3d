"""Public UDP ports of stations behind NAT: told by an NHS, believed of an NHS alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dsvpn.nhrp.events import MappingAdded
from dsvpn.nhrp.nat_ports import nat_port, set_nat_port
from dsvpn.wire.nhrp import NhrpMessage, PacketType
from dsvpn.wire.nhrp_cie import Cie
from dsvpn.wire.nhrp_extensions import CieExtension, Extension
from dsvpn.wire.nhrp_nat_port import MAX_NAT_PORTS, nat_port_extension
from tests.nhrp.bench import (
    HUB_PEER,
    Bench,
    a,
    hub,
    register,
    request_extensions,
    resolution,
    resolution_reply,
    spoke,
)

S1, S2 = a("10.0.0.11"), a("10.0.0.12")


def nated_hub(ports: dict[int, int], **config: Any) -> Bench:
    """A hub with spokes 1 (peer 1, at 203.0.113.1) and 2 (peer 2, at 203.0.113.2), seen at these ports by peer."""
    bench = hub(lambda given: replace(given, **config))
    bench.engine._context.port_seen = ports.get
    for number in (1, 2):
        register(bench, number, number, f"203.0.113.{number}", source_nbma=a(f"192.168.0.{number}"))
    bench.events()
    return bench


def request(*more: Extension) -> NhrpMessage:
    return resolution(1, "10.2.0.5", source_nbma=a("192.168.0.1"), extensions=[*request_extensions(), *more])


def reply(asked: NhrpMessage, *more: Extension) -> NhrpMessage:
    answer = resolution_reply(asked, 2, nbma=a("192.168.0.2"))
    answer.extensions += more
    return answer


class TestServer:
    def test_both_directions_are_told_the_port_that_is_seen(self) -> None:
        bench = nated_hub({1: 40001, 2: 40002})
        bench.receive(request(), 1, "203.0.113.1")
        forwarded = bench.message(PacketType.RESOLUTION_REQUEST)
        assert nat_port(forwarded.extensions, S1) == 40001
        assert not forwarded.extensions[-1].compulsory
        bench.receive(reply(forwarded, *forwarded.extensions[4:]), 2, "203.0.113.2")
        answer = bench.message(PacketType.RESOLUTION_REPLY)
        assert nat_port(answer.extensions, S2) == 40002

    def test_what_a_client_says_of_itself_is_replaced(self) -> None:
        bench = nated_hub({1: 40001})
        bench.receive(request(nat_port_extension({S1: 53})), 1, "203.0.113.1")
        forwarded = bench.message(PacketType.RESOLUTION_REQUEST)
        assert nat_port(forwarded.extensions, S1) == 40001
        bench.receive(reply(forwarded, nat_port_extension({S2: 53})), 2, "203.0.113.2")
        answer = bench.message(PacketType.RESOLUTION_REPLY)
        assert nat_port(answer.extensions, S2) is None, "no port of spoke 2 is seen here"

    def test_the_port_goes_with_the_address_that_is_seen(self) -> None:
        bench = nated_hub({1: 40001})
        asked = request()
        asked.extensions = request_extensions(Cie(prefix_length=32, nbma=a("198.51.100.7"), protocol=S1))
        bench.receive(asked, 1, "203.0.113.1")
        assert nat_port(bench.message(PacketType.RESOLUTION_REQUEST).extensions, S1) is None

    def test_a_full_extension_keeps_no_port_out(self) -> None:
        bench = nated_hub({1: 40001})
        full = nat_port_extension({a(f"10.9.0.{number}"): 1 for number in range(MAX_NAT_PORTS)})
        bench.receive(request(full), 1, "203.0.113.1")
        assert nat_port(bench.message(PacketType.RESOLUTION_REQUEST).extensions, S1) == 40001

    def test_without_nat_nothing_is_added(self) -> None:
        bench = hub()
        for number in (1, 2):
            register(bench, number, number)
        bench.receive(resolution(1, "10.2.0.5"), 1, "192.0.2.11")
        forwarded = bench.message(PacketType.RESOLUTION_REQUEST)
        assert [extension.type for extension in forwarded.extensions] == [4, 5, 3, 9]

    def test_an_answer_from_the_cache_has_it_too(self) -> None:
        bench = nated_hub({2: 40002}, answer_from_cache=True)
        asked = resolution(1, "10.0.0.12", source_nbma=a("192.168.0.1"))
        bench.receive(asked, 1, "203.0.113.1")
        assert nat_port(bench.message(PacketType.RESOLUTION_REPLY).extensions, S2) == 40002


class TestClient:
    def answered(self, bench: Bench, port: int | None, peer: int = HUB_PEER, nat: str | None = "203.0.113.2") -> Any:
        bench.engine._resolutions.resolve(a("10.2.0.5"), bench.now)
        asked = bench.message(PacketType.RESOLUTION_REQUEST)
        answer = resolution_reply(asked, 2, nbma=a("192.168.0.2"), nat=nat)
        set_nat_port(answer.extensions, S2, port)
        bench.receive(answer, peer, "192.0.2.1")
        return [event for event in bench.events() if isinstance(event, MappingAdded)]

    def test_the_responder_s_port_is_learned_and_a_new_one_is_told(self) -> None:
        bench = spoke()
        expected = MappingAdded(S2, a("203.0.113.2"), a("192.168.0.2"), "resolved", None, 40002)
        assert self.answered(bench, 40002) == [expected]
        assert self.answered(bench, 40002) == []
        assert self.answered(bench, 40003) == [replace(expected, port=40003)]

    def test_without_nat_a_port_means_nothing(self) -> None:
        assert self.answered(spoke(), 40002, nat=None)[0].port is None

    @pytest.mark.parametrize("port", [None, 40002])
    def test_the_requester_s_port_is_learned(self, port: int | None) -> None:
        bench = spoke()
        asked = resolution(2, "10.0.0.11", source_nbma=a("192.168.0.2"))
        entry = Cie(prefix_length=32, nbma=a("203.0.113.2"), protocol=S2)
        asked.extensions[3] = CieExtension(9, False, [entry])
        set_nat_port(asked.extensions, S2, port)
        bench.receive(asked, HUB_PEER, "192.0.2.1")
        assert bench.events() == [MappingAdded(S2, a("203.0.113.2"), a("192.168.0.2"), "observed", None, port)]

    def test_of_anybody_but_an_nhs_no_port_is_believed(self) -> None:
        bench = spoke()
        bench.engine.peer_up(a("203.0.113.2"), 9, bench.now)
        asked = resolution(2, "10.0.0.11", source_nbma=a("192.168.0.2"))
        entry = Cie(prefix_length=32, nbma=a("203.0.113.2"), protocol=S2)
        asked.extensions[3] = CieExtension(9, False, [entry])
        set_nat_port(asked.extensions, S2, 53)
        bench.receive(asked, 9, "203.0.113.2")
        assert bench.events() == [MappingAdded(S2, a("203.0.113.2"), a("192.168.0.2"), "observed", None, None)]
