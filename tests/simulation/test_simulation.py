"""The simulated network does what it says: otherwise tests upon it prove nothing."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest

from dsvpn.addresses import Endpoint
from tests.simulation import Conditions, Datagram, DeadlineExceeded, NatBox, Simulation, Underlay

A, B, C = (IPv4Address(f"192.0.2.{n}") for n in (1, 2, 3))
PUBLIC = IPv4Address("203.0.113.1")
INSIDE, INSIDE2 = IPv4Address("192.168.1.2"), IPv4Address("192.168.1.3")


def udp(source: IPv4Address, destination: IPv4Address, payload: object, sport: int = 500, dport: int = 500) -> Datagram:
    return Datagram(Endpoint(source, sport), Endpoint(destination, dport), "udp", payload)


def build(conditions: Conditions | None = None, seed: int = 1) -> tuple[Simulation, Underlay, list[Datagram]]:
    simulation = Simulation(seed)
    underlay = Underlay(simulation, conditions or Conditions())
    got: list[Datagram] = []
    underlay.add_host("b", B, got.append)
    return simulation, underlay, got


def test_time_passes_in_order() -> None:
    simulation = Simulation(1)
    log: list[tuple[str, float]] = []
    for name, delay in (("b", 2.0), ("a", 1.0), ("a2", 1.0)):
        simulation.schedule(delay, lambda name=name: log.append((name, simulation.now)))  # type: ignore[misc]
    simulation.schedule(1.5, lambda: log.append(("never", 0))).cancel()
    simulation.run_for(10)
    start = Simulation.START
    assert log == [("a", start + 1), ("a2", start + 1), ("b", start + 2)]
    assert simulation.now == start + 10


def test_deadline_names_the_seed() -> None:
    simulation = Simulation(77)
    with pytest.raises(DeadlineExceeded, match="seed 77: rain not reached within 5 s"):
        simulation.run_until(lambda: False, 5, "rain")
    assert simulation.run_until(lambda: True, 5) == 0.0


def test_a_loop_that_stops_time_is_found() -> None:
    simulation = Simulation(1)
    simulation.MAX_EVENTS_PER_INSTANT = 100

    def again() -> None:
        simulation.schedule(0, again)

    again()
    with pytest.raises(DeadlineExceeded, match="time stands still"):
        simulation.run_for(1)


def test_delay() -> None:
    simulation, underlay, got = build(Conditions(delay=0.5))
    underlay.send(udp(A, B, 1))
    simulation.run_for(0.49)
    assert got == []
    simulation.run_for(0.02)
    assert [datagram.payload for datagram in got] == [1]


def test_loss_duplication_and_reordering_are_about_what_is_asked() -> None:
    simulation, underlay, got = build(Conditions(loss=0.3, duplicate=0.2, reorder=0.2))
    fates: list[str] = []
    underlay.taps.append(lambda now, datagram, fate: fates.append(fate))
    for number in range(2000):
        underlay.send(udp(A, B, number))
        simulation.run_for(0.001)
    simulation.run_for(1)
    payloads = [datagram.payload for datagram in got]
    assert 1450 < len(payloads) < 1900
    assert fates.count("lost") + len(payloads) == len(fates)
    assert len(set(payloads)) < len(payloads)
    assert payloads != sorted(payloads)  # type: ignore[type-var]


def test_cut_and_mend() -> None:
    simulation, underlay, got = build()
    underlay.cut(A, B)
    underlay.send(udp(A, B, 1))
    simulation.run_for(1)
    underlay.mend(A, B)
    underlay.send(udp(A, B, 2))
    simulation.run_for(1)
    assert [datagram.payload for datagram in got] == [2]


def test_renumbered_host() -> None:
    simulation, underlay, _ = build()
    got: list[Datagram] = []
    host = underlay.add_host("a", A, got.append)
    underlay.renumber(host, C)
    for to in (A, C):
        underlay.send(udp(B, to, str(to)))
    simulation.run_for(1)
    assert [datagram.payload for datagram in got] == [str(C)]
    host.up = False
    underlay.send(udp(B, C, "down"))
    simulation.run_for(1)
    assert len(got) == 1


class TestNat:
    def build(self, **settings: Any) -> tuple[Simulation, Underlay, NatBox, list[Datagram], list[Datagram]]:
        simulation, underlay, got = build()
        box = NatBox(underlay, PUBLIC, **settings)
        inside: list[Datagram] = []
        box.add_host("inside", INSIDE, inside.append)
        return simulation, underlay, box, got, inside

    def test_there_and_back(self) -> None:
        simulation, underlay, box, got, inside = self.build()
        box.send(udp(INSIDE, B, "ask"))
        simulation.run_for(1)
        assert got[0].source == Endpoint(PUBLIC, 500)
        underlay.send(udp(B, PUBLIC, "answer"))
        simulation.run_for(1)
        assert inside[0] == udp(B, INSIDE, "answer")

    def test_nobody_else_gets_in(self) -> None:
        simulation, underlay, box, _, inside = self.build()
        underlay.send(udp(B, PUBLIC, "early"))
        simulation.run_for(1)
        box.send(udp(INSIDE, B, "ask"))
        simulation.run_for(1)
        for datagram in (udp(C, PUBLIC, 1), udp(B, PUBLIC, 2, sport=501), udp(B, PUBLIC, 3, dport=501)):
            underlay.send(datagram)
        simulation.run_for(1)
        assert inside == []
        assert box.refused == 4

    def test_two_hosts_with_one_source_port(self) -> None:
        simulation, underlay, box, got, inside = self.build()
        other: list[Datagram] = []
        box.add_host("other", INSIDE2, other.append)
        box.send(udp(INSIDE, B, 1))
        box.send(udp(INSIDE2, B, 2))
        simulation.run_for(1)
        assert got[0].source.port == 500
        assert got[1].source.port != 500
        for datagram in got:
            underlay.send(Datagram(datagram.destination, datagram.source, "udp", datagram.payload))
        simulation.run_for(1)
        assert [d.payload for d in inside] == [1]
        assert [d.payload for d in other] == [2]

    def test_flow_times_out(self) -> None:
        simulation, underlay, box, _, inside = self.build()
        box.send(udp(INSIDE, B, "ask"))
        simulation.run_for(box.timeout + 1)
        underlay.send(udp(B, PUBLIC, "late"))
        simulation.run_for(1)
        assert inside == []

    def test_forget_gives_another_port(self) -> None:
        simulation, _, box, got, _ = self.build()
        box.send(udp(INSIDE, B, 1))
        box.forget()
        box.send(udp(INSIDE, B, 2))
        simulation.run_for(1)
        assert got[0].source != got[1].source

    def test_full_cone(self) -> None:
        simulation, underlay, box, got, inside = self.build(endpoint_independent=True, preserve_port=False)
        box.send(udp(INSIDE, B, 1))
        box.send(udp(INSIDE, C, 2))
        simulation.run_for(1)
        underlay.send(udp(A, PUBLIC, "anyone", dport=got[0].source.port))
        simulation.run_for(1)
        assert [datagram.payload for datagram in inside] == ["anyone"]
        assert len({flow.outside for flow in box._flows.values()}) == 1

    def test_protocol_without_ports_serves_one_host_per_remote(self) -> None:
        simulation, _, box, got, _ = self.build()
        box.add_host("other", INSIDE2, lambda datagram: None)
        for source in (INSIDE, INSIDE2):
            box.send(Datagram(Endpoint(source, 0), Endpoint(B, 0), "esp", str(source)))
        simulation.run_for(1)
        assert [datagram.payload for datagram in got] == [str(INSIDE)]
        assert got[0].source == Endpoint(PUBLIC, 0)

    def test_port_forwarding(self) -> None:
        simulation, underlay, box, got, inside = self.build()
        box.forward("udp", 500, Endpoint(INSIDE, 500))
        underlay.send(udp(B, PUBLIC, "ask"))
        simulation.run_for(1)
        assert inside[0].payload == "ask"
        box.send(udp(INSIDE, B, "answer"))
        simulation.run_for(1)
        assert got[0].source == Endpoint(PUBLIC, 500)

    def test_renumbered_box(self) -> None:
        simulation, underlay, box, got, inside = self.build()
        box.send(udp(INSIDE, B, 1))
        box.renumber(C)
        box.send(udp(INSIDE, B, 2))
        simulation.run_for(1)
        assert [datagram.source.address for datagram in got] == [PUBLIC, C]
        underlay.send(udp(B, PUBLIC, "old"))
        underlay.send(udp(B, C, "new"))
        simulation.run_for(1)
        assert [datagram.payload for datagram in inside] == ["new"]

    def test_inside_hosts_reach_each_other(self) -> None:
        simulation, _, box, _, inside = self.build()
        box.add_host("other", INSIDE2, lambda datagram: None)
        box.send(udp(INSIDE2, INSIDE, "neighbour"))
        simulation.run_for(1)
        assert inside[0].source == Endpoint(INSIDE2, 500)
