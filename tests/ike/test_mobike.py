"""MOBIKE: either end's address changes and the SAs go on (RFC 4555)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from dsvpn.addresses import Endpoint, Path
from dsvpn.ike import events
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType
from tests.ike.harness import A, B, Nat, Payloads, Wire, make_profile, make_wire

NEW_A = ip_address("198.51.100.7")
NEW_B = ip_address("198.51.100.8")
NAT_A = ip_address("203.0.113.1")
NAT_B = ip_address("203.0.113.9")


def roaming(*, nats: dict[str, Nat] | None = None, a: Any = None, b: Any = None, **options: Any) -> Wire:
    both = {"mobike": True} | options
    net = make_wire(make_profile("a", **both | (a or {})), make_profile("b", **both | (b or {})), nats=nats)
    net.connect()
    return net


def move(net: Wire, name: str, address: Any) -> bool:
    end = net.a if name == "a" else net.b
    end.address = address
    return end.engine.move(end.handle, address, net.now)


def notifications(payloads: Payloads) -> list[str]:
    return [payload.name for payload in payloads if isinstance(payload, wire.Notify)]


def test_both_ends_say_that_they_can_move_and_go_to_port_4500() -> None:
    net = roaming()
    assert all(end.snapshot(net.now)[0].mobike for end in net.ends)
    assert {flight.path.local.port for flight in net.record[2:]} == {4500}
    assert not net.a.child.udp_encapsulation
    assert "MOBIKE_SUPPORTED" in notifications(net.inside(net.record[2]))
    assert "MOBIKE_SUPPORTED" in notifications(net.inside(net.record[3]))


@pytest.mark.parametrize("who", ["a", "b"])
def test_one_end_without_it_keeps_both_from_moving(who: str) -> None:
    net = roaming(**{who: {"mobike": False}})  # type: ignore[arg-type]
    for end in net.ends:
        assert not end.snapshot(net.now)[0].mobike
        assert not end.engine.can_move(end.handle)
        assert not end.engine.move(end.handle, NEW_A, net.now)
    assert "MOBIKE_SUPPORTED" not in notifications(net.inside(net.record[3]))


def test_the_initiator_moves_and_its_child_sa_is_rekeyed_for_the_new_addresses() -> None:
    net = roaming()
    old = net.a.child.inbound_spi
    start = len(net.record)
    assert move(net, "a", NEW_A)
    net.settle()
    request, answer, check, checked = (notifications(net.inside(flight)) for flight in net.record[start : start + 4])
    assert request == ["UPDATE_SA_ADDRESSES", "NAT_DETECTION_SOURCE_IP", "NAT_DETECTION_DESTINATION_IP", "COOKIE2"]
    assert answer == ["NAT_DETECTION_SOURCE_IP", "NAT_DETECTION_DESTINATION_IP", "COOKIE2"]
    assert (check, checked) == (["COOKIE2"], ["COOKIE2"])
    assert [event.confirmed for event in net.a.of(events.IkePathChanged)] == [False, True]
    (followed,) = net.b.of(events.IkePathChanged)
    assert followed.path == Path(Endpoint(B, 4500), Endpoint(NEW_A, 4500))
    assert not followed.udp_encapsulation
    net.sleep(1)
    assert net.a.child.replaces == old
    assert net.a.child.path == Path(Endpoint(NEW_A, 4500), Endpoint(B, 4500))
    net.sleep(10)
    net.check_agreement()
    # The selectors of the successor are the new addresses.
    selectors = [
        selector.start
        for flight in net.record[start:]
        for payload in net.inside(flight)
        if isinstance(payload, wire.TrafficSelectorsInitiator)
        for selector in payload.selectors
        if isinstance(selector, wire.TrafficSelector)
    ]
    assert set(selectors) == {NEW_A}


def test_the_responder_moves_and_the_initiator_updates() -> None:
    net = roaming()
    start = len(net.record)
    assert move(net, "b", NEW_B)
    net.settle()
    told = [notifications(net.inside(flight)) for flight in net.record[start:]]
    assert told[0] == ["NO_ADDITIONAL_ADDRESSES"]
    assert any("UPDATE_SA_ADDRESSES" in names for names in told)
    assert net.a.snapshot(net.now)[0].path.remote == Endpoint(NEW_B, 4500)
    assert net.a.of(events.IkePathChanged)[-1].confirmed
    net.sleep(10)
    net.check_agreement()


def test_what_was_under_way_is_repeated_from_the_new_address() -> None:
    net = roaming()
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.collect()
    net.lose("a")
    net.sleep(3, deliver=False)
    assert move(net, "a", NEW_A)
    net.settle()
    # No timer had to fire.
    assert net.b.snapshot(net.now)[0].path.remote.address == NEW_A
    assert net.a.of(events.IkePathChanged)[-1].confirmed


def test_two_moves_in_a_row_end_at_the_last_address() -> None:
    net = roaming()
    assert move(net, "a", NEW_A)
    net.collect()
    net.lose("a")
    assert move(net, "a", A)
    net.settle()
    net.sleep(5)
    assert net.b.snapshot(net.now)[0].path.remote.address == A
    assert net.a.of(events.IkePathChanged)[-1].path.local.address == A
    assert net.a.of(events.IkePathChanged)[-1].confirmed
    net.sleep(10)
    net.check_agreement()


def test_to_a_path_with_a_nat_and_back() -> None:
    """Encapsulation follows what NAT detection finds; nothing is sealed for an address that only the IP header has."""
    net = roaming()
    net.nats["a"] = Nat(NAT_A, 10_000)
    assert move(net, "a", ip_address("10.1.0.7"))
    net.collect()
    net.deliver("a")
    # The answer is on its way, but the source may be anybody's word.
    assert not net.b.of(events.IkePathChanged)
    net.settle()
    (followed,) = net.b.of(events.IkePathChanged)
    assert followed.path == Path(Endpoint(B, 4500), Endpoint(NAT_A, 14_500))
    assert (followed.udp_encapsulation, followed.remote_nat) == (True, True)
    mine = net.a.of(events.IkePathChanged)[-1]
    assert (mine.udp_encapsulation, mine.local_nat, mine.confirmed) == (True, True, True)
    net.sleep(10)
    net.check_agreement()
    assert net.a.child.udp_encapsulation
    del net.nats["a"]
    assert move(net, "a", NEW_A)
    net.settle()
    net.sleep(10)
    net.check_agreement()
    assert not net.a.of(events.IkePathChanged)[-1].local_nat
    assert not net.a.child.udp_encapsulation
    assert not net.b.child.udp_encapsulation


def test_a_forged_source_gets_no_esp() -> None:
    """Somebody on the way sends the update on from another address: without the answer to COOKIE2 nothing moves."""
    net = roaming()
    assert move(net, "a", NEW_A)
    net.collect()
    flight = net.flying["a"].popleft()
    net.hand(replace(flight, path=Path(flight.path.local, Endpoint(NAT_A, 4500))))
    for queue in net.flying.values():
        queue.clear()
    net.sleep(2, deliver=False)
    assert not net.b.of(events.IkePathChanged)


@pytest.mark.parametrize("change", ["other", "none"])
def test_an_answer_with_another_cookie_ends_the_ike_sa(change: str) -> None:
    net = roaming()
    assert move(net, "a", NEW_A)
    net.collect()
    net.deliver("a")

    def falsify(payloads: Payloads) -> list[wire.Payload]:
        kept = [p for p in payloads if not (isinstance(p, wire.Notify) and p.type == NotifyType.COOKIE2)]
        return kept if change == "none" else [*kept, wire.Notify(NotifyType.COOKIE2, bytes(16))]

    net.deliver_inside("b", falsify)
    assert "COOKIE2" in net.a.of(events.IkeSaDeleted)[0].reason


def test_a_nat_that_is_not_allowed_is_refused() -> None:
    net = roaming(a={"prohibit_nat": True})
    net.nats["a"] = Nat(NAT_A)
    assert move(net, "a", ip_address("10.1.0.7"))
    net.settle()
    assert "UNEXPECTED_NAT_DETECTED" in net.a.of(events.IkeSaDeleted)[0].reason
    net = make_wire(make_profile("a", mobike=True, prohibit_nat=True), nats={"a": Nat(NAT_A)})
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    net.sleep(5)
    assert "UNEXPECTED_NAT_DETECTED" in net.a.of(events.IkeSaFailed)[0].reason
    without = roaming(a={"prohibit_nat": True})
    without.check_agreement()


def test_an_address_that_nobody_has_is_refused() -> None:
    net = roaming()
    assert move(net, "a", NEW_A)
    net.collect()
    flight = net.flying["a"].popleft()
    net.hand(replace(flight, path=Path(flight.path.local, Endpoint(ip_address("224.0.0.5"), 4500))))
    # The refusal goes where the request came from, which leads to nobody here.
    assert not net.flying["b"]
    assert net.b.snapshot(net.now)[0].path.remote.address == A
    assert not net.b.of(events.IkePathChanged)


def test_a_further_address_of_the_peer_is_tried_when_the_first_is_silent() -> None:
    other = ip_address("192.0.2.77")
    net = roaming(b={"additional_addresses": (other,)}, dpd_interval=5.0)
    assert net.a.snapshot(net.now)[0].peer_addresses == (other,)
    net.b.address = other
    net.sleep(60)
    assert net.a.established
    assert net.b.established
    assert net.a.snapshot(net.now)[0].path.remote.address == other
    assert net.b.snapshot(net.now)[0].path.local.address == other
    net.check_agreement()


def test_a_new_nat_mapping_is_found_by_the_end_that_is_behind_it() -> None:
    """A responder that does not follow by itself is told."""
    net = roaming(nats={"a": Nat(NAT_A, 10_000)}, a={"dpd_interval": 5.0})
    net.sleep(11)
    net.nats["a"] = Nat(NAT_A, 20_000)
    start = len(net.record)
    net.sleep(11)
    names = [notifications(net.inside(flight)) for flight in net.record[start:]]
    assert any("UPDATE_SA_ADDRESSES" in told for told in names)
    assert net.b.snapshot(net.now)[0].path.remote == Endpoint(NAT_A, 24_500)


def test_a_responder_cannot_reach_a_peer_behind_nat_from_elsewhere() -> None:
    net = roaming(nats={"a": Nat(NAT_A, 10_000)})
    assert not move(net, "b", NEW_B)


def test_what_cannot_move_says_goodbye_from_the_new_address() -> None:
    net = roaming(b={"mobike": False})
    handle = net.a.handle
    assert not move(net, "a", NEW_A)
    net.a.engine.delete(handle, net.now, "source address changed")
    net.settle()
    assert not net.b.established
    assert net.record[-1].path.local.address == NEW_A
    assert not any(end.of(events.IkePathChanged) for end in net.ends)


def test_no_move_to_another_family() -> None:
    net = roaming()
    assert not net.a.engine.move(net.a.handle, ip_address("2001:db8::7"), net.now)
    assert not net.a.engine.move(4711, NEW_A, net.now)


@pytest.mark.parametrize("seed", range(20))
def test_a_move_amid_rekeys_ends_with_both_ends_agreeing(seed: int) -> None:
    net = make_wire(make_profile("a", mobike=True), make_profile("b", mobike=True), seed=seed)
    net.connect()
    for end in net.ends:
        if seed & 1:
            end.engine.rekey_ike(end.handle, net.now)
        if seed & 2:
            end.engine.rekey_child(end.handle, end.child.inbound_spi, net.now)
    net.collect()
    for _ in range(seed % 5):
        for name in ("a", "b"):
            if net.flying[name]:
                net.deliver(name)
    assert move(net, "a", NEW_A)
    net.settle()
    net.sleep(30)
    net.check_agreement()
    assert net.b.snapshot(net.now)[0].path.remote.address == NEW_A
