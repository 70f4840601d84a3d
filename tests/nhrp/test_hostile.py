"""Whatever arrives, an engine neither raises nor grows without bound."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsvpn.nhrp.limits import (
    COMMON_BURST,
    COMMON_RATE,
    MAX_PARKED,
    MAX_REGISTRATIONS_PER_PEER,
    PEER_BURST,
    SHARE_BURST,
    SHARE_RATE,
    STRANGER_BURST,
)
from dsvpn.wire.nhrp import NhrpPacket, PacketType, encode
from tests.nhrp.bench import HUB_PEER, Bench, a, hub, register, registration, resolution, spoke
from tests.wire.nhrp_samples import all_captured, own_samples, packets, reseal

SAMPLES = [data for _, data in all_captured()] + [encode(packet) for packet in own_samples()]


def busy_hub() -> Bench:
    bench = hub(lambda config: replace(config, shortcut=True, answer_from_cache=True))
    for number in (1, 2, 3):
        register(bench, number, number)
    return bench


def shake(bench: Bench, data: bytes, peer: int | None, nbma: str) -> None:
    """Hand over a packet and look at everything that an owner would look at."""
    bench.receive(data, peer, nbma)
    bench.events()
    for packet, to in bench.sent():
        assert to in (1, 2, 3, HUB_PEER)
        assert packet is not None
    bench.engine.get_timer()
    bench.pass_time(0.01)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(packets(), st.sampled_from((1, 2, None))), max_size=8))
def test_any_packets(sequence: list[tuple[NhrpPacket, int | None]]) -> None:
    for bench in (busy_hub(), spoke()):
        for packet, peer in sequence:
            known = peer if bench.engine._context.peers.nbma(1) else (HUB_PEER if peer else None)
            shake(bench, encode(packet), known, "192.0.2.11")
        bench.pass_time(100_000 if bench.engine._context.config.redirect else 100)
        bench.engine.snapshot(bench.now)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_samples(seed: int) -> None:
    chance = Random(seed)
    hub_bench, spoke_bench = busy_hub(), spoke()
    for _ in range(1500):
        data = bytearray(chance.choice(SAMPLES))
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        octets = reseal(bytes(data)) if chance.random() < 0.9 else bytes(data)
        shake(hub_bench, octets, chance.choice((1, 2, 3, None)), "192.0.2.11")
        shake(spoke_bench, octets, chance.choice((HUB_PEER, None)), "192.0.2.1")
    counters = hub_bench.counters()
    assert counters["drop.malformed"] > 100, f"seed {seed}: {counters}"


def test_one_peer_is_limited() -> None:
    bench = busy_hub()
    for number in range(3000):
        bench.receive(resolution(1, "10.2.0.5", request_id=number), 1, "192.0.2.11")
    assert len(bench.sent()) <= PEER_BURST
    assert bench.counters()["drop.rate"] >= 3000 - PEER_BURST
    bench.receive(resolution(3, "10.2.0.5"), 3, "192.0.2.13")
    assert len(bench.sent()) == 1, "the others are not"
    bench.pass_time(1)
    bench.receive(resolution(1, "10.2.0.5"), 1, "192.0.2.11")
    assert len(bench.sent()) == 1, "and it may go on later"


def test_peers_that_flood_slow_down_each_other_alone() -> None:
    """A hundred peers send what they can; one that registers and asks once in a while is always heard."""
    bench = hub()
    register(bench, 1, 1)
    for peer in range(100, 200):
        bench.engine.peer_up(a(f"198.51.100.{peer - 99}"), peer, bench.now)
    noise = encode(resolution(9, "10.3.0.5"))
    for second in range(5):
        before = bench.counters().get("rx.resolution_request", 0)
        for _ in range(100):
            for peer in range(100, 200):
                bench.engine.receive_packet(noise, peer, a("198.51.100.9"), bench.now)
        bench.engine.packets_to_send(bench.now)
        taken = bench.counters()["rx.resolution_request"] - before
        assert taken <= (COMMON_BURST + 100 * SHARE_BURST if second == 0 else COMMON_RATE + 100 * SHARE_RATE) + 1
        bench.receive(registration(1), 1, "192.0.2.11")
        assert bench.message(PacketType.REGISTRATION_REPLY).cies[0].code == 0
        bench.pass_time(1)
    assert bench.counters()["drop.rate"] > 20_000


def test_strangers_are_limited_together() -> None:
    bench = hub()
    for number in range(3000):
        host = a("198.51.0.0") + number
        request = registration(1, source_protocol=a("10.0.0.2") + number % 250)
        bench.engine.receive_packet(encode(request), None, host, bench.now)
    assert len(bench.engine.snapshot(bench.now).mappings) <= STRANGER_BURST
    assert len(bench.engine._context._parked) <= MAX_PARKED
    assert bench.sent() == []
    bench.pass_time(10)
    assert bench.engine._context._parked == {}


def test_strangers_get_nothing_but_registrations_processed() -> None:
    bench = busy_hub()
    for data in SAMPLES:
        bench.receive(data, None, "198.51.100.66")
    assert bench.sent() == []


def test_registrations_of_one_peer_are_bounded_over_time() -> None:
    bench = busy_hub()
    for number in range(500):
        bench.receive(registration(1, source_protocol=a("10.0.0.2") + number % 250), 1, "192.0.2.11")
        bench.sent()
        bench.pass_time(0.1)
    owned = [mapping for mapping in bench.engine.snapshot(bench.now).mappings if mapping.peer == 1]
    assert len(owned) == MAX_REGISTRATIONS_PER_PEER


def test_peer_that_goes_leaves_nothing() -> None:
    bench = busy_hub()
    bench.receive(resolution(1, "10.2.0.5"), 1, "192.0.2.11")
    for peer in (1, 2, 3):
        bench.engine.peer_down(peer, bench.now)
    assert bench.sent() == [], "nothing is sent to a peer that is gone"
    assert bench.engine.snapshot(bench.now).mappings == ()
    assert bench.engine.get_timer() is None
    bench.engine.peer_down(1, bench.now)
