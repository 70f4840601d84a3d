"""Per-resource CHILD_SAs (RFC 9611): the rules of dsvpn/ike/per_resource.py."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from dsvpn.ike import events
from dsvpn.ike.child_sa import LINGER
from dsvpn.ike.per_resource import BELIEF, PATIENCE, PER_PLACE, RETRY, VACANCY
from dsvpn.ike.volume import Carried
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType
from tests.ike.harness import DEFAULT_IKE, End, InFlight, Wire, make_profile, make_wire
from tests.ike.interleaving import every_run

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "key exchange": {"esp": ("aes128gcm16-x25519", "aes128gcm16")},
    "childless": {"childless": "prefer"},
    "additional key exchanges": {"esp": ("aes256gcm16-x25519-ke1_mlkem768",), "childless": "prefer"},
    "several suites": {"esp": ("chacha20poly1305", "aes128gcm16")},
}


def connected(a: dict[str, Any], b: dict[str, Any], seed: int = 0, **options: Any) -> Wire:
    net = make_wire(make_profile("a", **options, **a), make_profile("b", **options, **b), seed=seed)
    net.connect()
    return net


def carry(net: Wire, *ends: End) -> None:
    """A packet goes through the fallback of each of these ends."""
    for end in ends:
        count = end.engine.snapshot(net.now)[0].children[0].packets_in + 1
        end.engine.note_carried(
            end.child.inbound_spi, Carried(count, count * 1000, count, count * 1000, count), net.now
        )


def grown(a: int, b: int, **options: Any) -> Wire:
    """A wire whose CHILD_SAs have grown to what both want."""
    net = connected({"per_resource_sas": a}, {"per_resource_sas": b}, **options)
    for _ in range(4):
        carry(net, *net.ends)
        net.settle()
        net.sleep(PATIENCE + 0.1)
    net.check_agreement()
    return net


def resources(end: End) -> list[int]:
    return sorted(owned.event.resource for owned in end.children.values())


def places_sealed(end: End) -> list[int]:
    return sorted([0] * len(end.sealing) + [resource for _, resource in end.workers])


def infos(net: Wire, flight: InFlight) -> list[bytes]:
    return [
        payload.data
        for payload in net.inside(flight)
        if isinstance(payload, wire.Notify) and payload.type == NotifyType.SA_RESOURCE_INFO
    ]


def refusals(net: Wire) -> int:
    return sum(
        isinstance(payload, wire.Notify) and payload.type == NotifyType.TS_MAX_QUEUE
        for flight in net.record
        if wire.Message.decode(flight.data).header.exchange_type == wire.ExchangeType.CREATE_CHILD_SA
        for payload in net.inside(flight)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_grows_when_its_first_carries_traffic(kind: str) -> None:
    net = connected({"per_resource_sas": 3}, {"per_resource_sas": 0}, **KINDS[kind])
    assert resources(net.a) == resources(net.b) == [0]
    net.sleep(100)
    assert resources(net.a) == [0], "nobody uses it yet"
    carry(net, net.a)
    net.settle()
    assert resources(net.a) == resources(net.b) == [0, 1, 2, 3]
    assert len({owned.event.suite for owned in net.a.children.values()}) == 1
    # The initiator knows that the peer has them; the peer believes it after a while.
    assert places_sealed(net.a) == [0, 1, 2, 3]
    assert places_sealed(net.b) == [0]
    net.sleep(BELIEF)
    assert places_sealed(net.b) == [0, 1, 2, 3]
    carry(net, *net.ends)
    net.sleep(VACANCY * 3)
    assert resources(net.a) == [0, 1, 2, 3], "it has what it wants"
    net.check_agreement()


def test_a_packet_shows_that_the_peer_has_it() -> None:
    net = connected({"per_resource_sas": 1}, {})
    carry(net, net.a)
    net.settle()
    (late,) = [spi for spi, owned in net.b.children.items() if owned.event.resource == 1]
    assert places_sealed(net.b) == [0]
    net.b.engine.note_carried(late, Carried(1, 100), net.now)
    net.settle()
    assert places_sealed(net.b) == [0, 1]
    net.check_agreement()


def test_what_the_messages_say() -> None:
    """
    HDR, SK {IDi, …, N(SA_RESOURCE_INFO), SAi2, TSi, TSr}  -->
                            <--  HDR, SK {IDr, AUTH, N(SA_RESOURCE_INFO), SAr2, TSi, TSr}
    HDR, SK {N(SA_RESOURCE_INFO), SA, Ni, TSi, TSr}  -->
                            <--  HDR, SK {N(SA_RESOURCE_INFO), SA, Nr, TSi, TSr}
    """
    net = connected({"per_resource_sas": 1}, {})
    # Bound to no resource: it is the fallback.
    assert [infos(net, flight) for flight in net.record[-2:]] == [[b""], [b""]]
    carry(net, net.a)
    net.settle()
    assert [infos(net, flight) for flight in net.record[-2:]] == [[b"\0\0\0\1"], [b"\0\0\0\1"]]
    for flight in net.record[-2:]:
        assert wire.find_notify(net.inside(flight), NotifyType.REKEY_SA) is None
        assert wire.find_notify(net.inside(flight), NotifyType.USE_TRANSPORT_MODE) is not None


@pytest.mark.parametrize("limits", [{"per_resource_sas": 3, "per_resource_limit": 16}, {"per_resource_limit": 16}])
def test_a_peer_without_it_gets_one(limits: dict[str, int]) -> None:
    net = connected(limits, {"per_resource_limit": 1})
    for _ in range(5):
        carry(net, *net.ends)
        net.settle()
        net.sleep(VACANCY)
    assert resources(net.a) == resources(net.b) == [0]
    if "per_resource_sas" not in limits:
        # What nobody wants is not asked for.
        assert not any(infos(net, flight) for flight in net.record[2:])
    net.check_agreement()


def test_other_data_means_nothing() -> None:
    net = make_wire(make_profile("a", per_resource_sas=1), make_profile("b"))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")

    def change(payloads: Any) -> list[wire.Payload]:
        return [
            wire.Notify(NotifyType.SA_RESOURCE_INFO, bytes(200))
            if isinstance(payload, wire.Notify) and payload.type == NotifyType.SA_RESOURCE_INFO
            else payload
            for payload in payloads
        ]

    net.deliver_inside("a", change)
    net.deliver_inside("b", change)
    carry(net, net.a)
    net.collect()
    net.deliver_inside("a", change)
    net.settle()
    assert resources(net.a) == resources(net.b) == [0, 1]
    net.check_agreement()


def test_the_limit_of_the_responder_ends_the_asking_until_the_ike_sa_is_rekeyed() -> None:
    net = connected({"per_resource_sas": 15}, {"per_resource_limit": 3})
    for _ in range(10):
        carry(net, *net.ends)
        net.settle()
        net.sleep(VACANCY)
    assert resources(net.a) == resources(net.b) == [0, 1, 2]
    assert refusals(net) == 1
    net.a.engine.rekey_ike(net.a.handle, net.now)
    net.settle()
    net.sleep(RETRY * 2)
    start = len(net.record)
    for _ in range(10):
        carry(net, *net.ends)
        net.settle()
        net.sleep(VACANCY)
    asked = [
        flight
        for flight in net.record[start:]
        if flight.sender is net.a
        and wire.Message.decode(flight.data).header.exchange_type == wire.ExchangeType.CREATE_CHILD_SA
    ]
    assert len(asked) == 1
    assert resources(net.a) == resources(net.b) == [0, 1, 2]
    net.check_agreement()


def test_an_own_limit_is_kept_to() -> None:
    net = connected({"per_resource_sas": 15, "per_resource_limit": 4}, {"per_resource_sas": 15})
    carry(net, net.a)
    net.settle()
    for _ in range(10):
        carry(net, *net.ends)
        net.settle()
        net.sleep(PATIENCE + 0.1)
    assert resources(net.a) == resources(net.b) == [0, 1, 2, 3]
    # b learns it from a.
    assert refusals(net) == 1
    net.check_agreement()


def test_the_responder_of_the_ike_sa_asks_for_what_the_initiator_does_not() -> None:
    net = connected({"per_resource_sas": 1}, {"per_resource_sas": 3})
    carry(net, *net.ends)
    net.settle()
    assert resources(net.a) == [0, 1], "the responder waits"
    net.sleep(PATIENCE + 0.1)
    carry(net, *net.ends)
    net.settle()
    assert resources(net.a) == resources(net.b) == [0, 1, 2, 3]
    net.sleep(BELIEF)
    assert places_sealed(net.a) == places_sealed(net.b) == [0, 1, 2, 3]
    net.check_agreement()


def test_two_that_want_the_same_number_make_it_once() -> None:
    net = grown(3, 3)
    assert resources(net.a) == resources(net.b) == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", [2, 3, 16])
def test_both_ends_ask_at_once(limit: int) -> None:
    """However the messages meet, both have the same ones, and not many more than either wanted."""

    def scenario() -> Wire:
        net = connected(
            {"per_resource_sas": 2, "per_resource_limit": limit}, {"per_resource_sas": 2, "per_resource_limit": limit}
        )
        net.sleep(PATIENCE + 0.1)
        carry(net, *net.ends)
        return net

    def check(net: Wire) -> None:
        for end in net.ends:
            assert len(resources(end)) <= min(limit, 4)
            assert len(set(resources(end))) == len(resources(end))

    runs = 0
    for script, net in every_run(scenario, 1, check):
        runs += 1
        net.check_agreement()
        for _ in range(30):
            carry(net, *net.ends)
            net.settle()
            net.sleep(PATIENCE + 0.1)
        assert min(limit, 3) <= len(resources(net.a)) <= min(limit, 4), script
        net.check_agreement()
    assert runs > 10


@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize("place", range(3))
def test_a_rekey_keeps_the_place(who: str, place: int) -> None:
    net = grown(2, 0)
    end = net.a if who == "a" else net.b
    (old,) = [spi for spi, owned in end.children.items() if owned.event.resource == place]
    end.engine.rekey_child(end.handle, old, net.now)
    net.settle()
    net.sleep(LINGER + 0.1)
    assert old not in end.children
    assert resources(net.a) == resources(net.b) == [0, 1, 2]
    assert places_sealed(net.a) == places_sealed(net.b) == [0, 1, 2]
    net.check_agreement()


def test_both_ends_rekey_all_at_once() -> None:
    """The rules of simultaneous rekeys hold for each by itself (RFC 7296 section 2.8.1)."""
    net = grown(3, 3)
    for _ in range(3):
        before = set(net.a.children)
        for end in net.ends:
            for spi in list(end.children):
                end.engine.rekey_child(end.handle, spi, net.now)
        net.settle()
        net.sleep(LINGER + BELIEF + 5)
        net.settle()
        assert not before & set(net.a.children)
        assert resources(net.a) == resources(net.b) == [0, 1, 2, 3]
        assert places_sealed(net.a) == places_sealed(net.b) == [0, 1, 2, 3]
        net.check_agreement()


@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize("place", range(4))
def test_any_of_them_may_be_deleted_and_its_place_is_filled_later(who: str, place: int) -> None:
    net = grown(3, 0)
    end = net.a if who == "a" else net.b
    (gone,) = [spi for spi, owned in end.children.items() if owned.event.resource == place]
    end.engine.delete_child(end.handle, gone, net.now)
    net.settle()
    for one in net.ends:
        assert len(one.children) == 3
        assert len(places_sealed(one)) == 3
    net.check_agreement()
    living = next(iter(net.a.children))
    for step in range(1, 200):
        net.a.engine.note_carried(living, Carried(1000 + step, 1000, 1000 + step, 1000, 1000 + step), net.now)
        net.settle()
        if len(net.a.children) > 3:
            break
        net.sleep(1)
    assert VACANCY - 1 <= step <= VACANCY * 2 + 1
    net.sleep(BELIEF)
    assert resources(net.a) == resources(net.b) == [0, 1, 2, 3]
    assert places_sealed(net.a) == places_sealed(net.b) == [0, 1, 2, 3]
    net.check_agreement()


def test_a_hard_lifetime_ends_one_alone() -> None:
    net = grown(1, 0, child_packets=1000)
    (spi,) = [spi for spi, owned in net.a.children.items() if owned.event.resource == 1]
    net.a.engine.note_carried(spi, Carried(2000, 2000, 2000, 2000, 2000), net.now)
    net.settle()
    net.sleep(LINGER + BELIEF)
    assert spi not in net.a.children
    assert resources(net.a) == resources(net.b) == [0, 1]
    assert places_sealed(net.a) == places_sealed(net.b) == [0, 1]
    net.check_agreement()


def test_they_outlive_the_ike_sa_and_end_with_the_association() -> None:
    net = grown(3, 3)
    before = set(net.a.children)
    net.b.engine.rekey_ike(net.b.handle, net.now)
    net.settle()
    assert set(net.a.children) == before
    net.check_agreement()
    for end in net.ends:
        end.events.clear()
    net.a.engine.delete(net.a.handle, net.now, "the test says so")
    net.settle()
    net.sleep(100)
    for end in net.ends:
        assert not end.children
        # The fallback goes last.
        deleted = [event.inbound_spi for event in end.of(events.ChildSaDeleted)]
        assert len(deleted) == 4
    net.check_agreement()


def test_authenticated_anew_it_grows_anew() -> None:
    net = grown(2, 2)
    net.a.engine.reauthenticate(net.a.handle, net.now)
    net.settle()
    net.sleep(10)
    assert resources(net.a) == resources(net.b) == [0]
    carry(net, *net.ends)
    net.settle()
    net.sleep(BELIEF + 0.1)
    assert places_sealed(net.a) == places_sealed(net.b) == [0, 1, 2]
    net.check_agreement()


def test_what_a_peer_can_make_us_hold_is_bounded() -> None:
    """One that asks for more whatever it is told, and rekeys without deleting what it replaces."""
    net = grown(15, 0)
    assert resources(net.b) == list(range(16))
    chance = Random(9611)
    sa = net.a.engine._context.associations[net.a.handle].current
    assert sa is not None
    for _ in range(300):
        if chance.random() < 0.5:
            net.a.engine.create_child(net.a.handle, net.now)
        else:
            net.a.engine.rekey_child(net.a.handle, chance.choice(sorted(net.a.children)), net.now)
        net.collect()
        while any(net.flying.values()):
            for name in ("a", "b"):
                if net.flying[name]:
                    flight = net.flying[name][0]
                    if name == "a" and any(isinstance(payload, wire.Delete) for payload in net.inside(flight)):
                        # Its delete says nothing.
                        net.deliver_inside(name, lambda _: [])
                    else:
                        net.deliver(name)
        assert len(net.b.children) <= PER_PLACE * 16
        assert {owned.event.resource for owned in net.b.children.values()} <= set(range(16))
    assert len(net.b.children) == PER_PLACE * 16


def test_an_ike_suite_more_is_no_matter() -> None:
    """The group is of ESP: what protects IKE may change under it."""
    net = grown(1, 1, ike=("aes256gcm16-prfsha384-ecp384", *DEFAULT_IKE))
    net.a.engine.rekey_ike(net.a.handle, net.now)
    net.settle()
    assert places_sealed(net.a) == [0, 1]
    net.check_agreement()
