"""Retransmission, duplicates, stale ids, signs of life and deletes (RFC 7296 sections 2.1-2.4, 1.4)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsvpn.errors import MisuseError
from dsvpn.ike import events
from dsvpn.ike.profile import RetransmissionSchedule
from dsvpn.ike.volume import Carried
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType
from tests.ike.harness import InFlight, Wire, both_options, make_profile, make_wire

SCHEDULE = RetransmissionSchedule(0.5, 2.0, 4.0, 5)


def test_schedule() -> None:
    assert [SCHEDULE.wait(sent) for sent in range(1, 7)] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    with pytest.raises(MisuseError):
        RetransmissionSchedule(tries=0)


def test_request_is_sent_on_schedule_and_then_given_up() -> None:
    net = make_wire(make_profile("a", retransmission=SCHEDULE))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    start = net.now
    net.sleep(11.4, deliver=False)
    assert not net.a.events
    net.sleep(0.2, deliver=False)
    assert net.a.of(events.IkeSaFailed)[0].reason == f"peer {net.b.address} does not answer"
    assert len({flight.data for flight in net.record}) == 1
    assert len(net.record) == 5
    assert net.now - start > 11.5
    net.a.check_spis()
    assert net.a.engine.get_timer() is None


@pytest.mark.parametrize("position", range(4))
def test_any_message_of_the_handshake_may_get_lost(position: int) -> None:
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    for step in range(position):
        net.deliver("ab"[step % 2])
    net.lose("ab"[position % 2])
    net.sleep(2)
    net.check_agreement()
    assert len(net.a.established) == len(net.b.established) == 1
    assert not net.a.of(events.IkeSaFailed)


@pytest.mark.parametrize("position", range(4))
def test_any_message_of_the_handshake_may_come_twice(position: int) -> None:
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    for step in range(4):
        flight = net.deliver("ab"[step % 2])
        if step == position:
            net.hand(flight)
    net.settle()
    net.check_agreement()
    assert len(net.a.children) == len(net.b.children) == 1


def test_duplicate_request_gets_the_same_octets_and_no_second_processing() -> None:
    """
    HDR(id), SK {N(REKEY_SA), SA, Ni, TSi, TSr}  -->
                                    <--  HDR(id), SK {SA, Nr, TSi, TSr}     (twice, the same)
    """
    net = make_wire()
    net.connect()
    net.a.engine.rekey_child(net.a.handle, net.a.child.inbound_spi, net.now)
    net.collect()
    request = net.deliver("a")
    first = net.lose("b").data
    children = set(net.b.children)
    net.hand(request)
    assert net.lose("b").data == first
    assert set(net.b.children) == children
    net.hand(request)
    net.settle()
    net.sleep(10)
    net.check_agreement()


def test_stale_and_early_ids_are_ignored() -> None:
    net = make_wire()
    net.connect()
    seen = []
    for _ in range(3):
        net.a.engine.check_liveness(net.a.handle, net.now)
        net.collect()
        seen.append(net.deliver("a"))
        net.settle()
    expected = net.b.snapshot(net.now)[0].expected_request_id
    for flight in seen[:-1]:
        net.hand(flight)
        assert not net.flying["b"]
    # A request beyond the window, sealed by the true peer.
    header = wire.Message.decode(seen[-1].data).header
    early = wire.Header(
        header.initiator_spi, header.responder_spi, header.exchange_type, header.flags, header.message_id + 2
    )
    key = net._key(seen[-1])
    net.b.engine.receive_datagram(key.seal(early, []), seen[-1].path, net.now)
    net.collect()
    assert not net.flying["b"]
    assert net.b.snapshot(net.now)[0].expected_request_id == expected


def test_same_id_with_other_octets_is_no_duplicate() -> None:
    net = make_wire()
    net.connect()
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.collect()
    flight = net.deliver("a")
    net.settle()
    forged = flight.data[:-1] + bytes((flight.data[-1] ^ 1,))
    net.b.engine.receive_datagram(forged, flight.path, net.now)
    assert not net.b.engine.datagrams_to_send(net.now)


def test_dpd_asks_after_silence_and_traffic_is_a_sign_of_life() -> None:
    net = make_wire(make_profile("a", dpd_interval=10.0))
    net.connect()
    sent = len(net.record)
    for carried in range(1, 11):
        net.sleep(5)
        net.a.engine.note_carried(net.a.child.inbound_spi, Carried(carried, 0), net.now)
    net.sleep(5)
    net.a.engine.note_inbound(net.a.child.inbound_spi, net.now)
    net.sleep(9.9)
    assert len(net.record) == sent
    net.sleep(0.2)
    # HDR, SK {}  -->  and  <--  HDR, SK {}
    assert len(net.record) == sent + 2
    assert [net.inside(flight) for flight in net.record[sent:]] == [(), ()]
    # The responder's messages count as well: one exchange per interval.
    net.sleep(30)
    assert len(net.record) == sent + 8


def test_a_dead_peer_is_found_and_everything_with_it_goes() -> None:
    net = make_wire(make_profile("a", dpd_interval=10.0, retransmission=SCHEDULE))
    net.connect()
    start = net.now
    net.sleep(10 + 11.6, deliver=False)
    assert [type(event).__name__ for event in net.a.events[-2:]] == ["ChildSaDeleted", "IkeSaDeleted"]
    assert net.a.of(events.IkeSaDeleted)[0].reason == f"peer {net.b.address} does not answer"
    assert net.now - start < 22
    net.a.check_spis()
    assert not net.a.engine._context.ike_sas
    assert not net.a.engine._context.children
    assert net.a.engine.get_timer() is None


def test_no_dpd_when_it_is_off() -> None:
    net = make_wire(*both_options(dpd_interval=0.0))
    net.connect()
    sent = len(net.record)
    net.sleep(3000)
    assert len(net.record) == sent


@pytest.mark.parametrize("who", ["a", "b"])
def test_delete_ike_sa(who: str) -> None:
    """
    HDR, SK {D}  -->
                                    <--  HDR, SK {}
    """
    net = make_wire()
    net.connect()
    end = net.a if who == "a" else net.b
    other = net.other(end)
    end.engine.delete(end.handle, net.now, "no mapping wants it")
    end.drain()
    # At once for the owner, in the background for the peer.
    assert [e.reason for e in end.of(events.IkeSaDeleted)] == ["no mapping wants it"]
    assert not end.children
    assert end.snapshot(net.now) == []
    net.collect()
    net.deliver(who)
    net.lose(other.name)
    assert [e.reason for e in other.of(events.IkeSaDeleted)] == ["the peer deleted it"]
    net.sleep(100)
    for one in net.ends:
        one.check_spis()
        assert not one.engine._context.ike_sas
        assert one.engine.get_timer() is None


def test_delete_ike_sa_from_both_ends_at_once() -> None:
    net = make_wire()
    net.connect()
    for end in net.ends:
        end.engine.delete(end.handle, net.now, "done")
    net.settle()
    net.sleep(100)
    for end in net.ends:
        assert len(end.of(events.IkeSaDeleted)) == 1
        assert not end.engine._context.ike_sas
        end.check_spis()


def test_delete_waits_for_the_window() -> None:
    """A rekey is outstanding: its answer comes first, then the delete goes."""
    net = make_wire()
    net.connect()
    net.a.engine.rekey_child(net.a.handle, net.a.child.inbound_spi, net.now)
    net.a.engine.delete(net.a.handle, net.now, "done")
    net.settle()
    assert not net.a.children
    assert not net.b.children
    assert not net.b.established
    net.a.check_spis()
    net.b.check_spis()


@pytest.mark.parametrize("messages", range(5))
def test_delete_while_connecting(messages: int) -> None:
    net = make_wire()
    handle = net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    for step in range(messages):
        if net.flying["ab"[step % 2]]:
            net.deliver("ab"[step % 2])
    net.a.engine.delete(handle, net.now, "the peer has called")
    net.settle()
    net.sleep(100)
    ends = net.a.of(events.IkeSaFailed), net.a.of(events.IkeSaDeleted)
    assert [e.reason for kind in ends for e in kind] == ["the peer has called"]
    for end in net.ends:
        assert not end.established
        end.check_spis()
        assert not end.engine._context.ike_sas
    # Nothing happens for a handle that is gone.
    net.a.engine.delete(handle, net.now, "again")
    net.collect()
    assert not net.flying["a"]


@pytest.mark.parametrize("who", ["a", "b"])
def test_delete_child_and_make_another(who: str) -> None:
    """
    HDR, SK {D(SPI)}  -->
                                    <--  HDR, SK {D(SPI')}
    HDR, SK {N(USE_TRANSPORT_MODE), SA, Ni, TSi, TSr}  -->
                                    <--  HDR, SK {N(USE_TRANSPORT_MODE), SA, Nr, TSi, TSr}
    """
    net = make_wire()
    net.connect()
    end = net.a if who == "a" else net.b
    gone = end.child
    end.engine.delete_child(end.handle, gone.inbound_spi, net.now)
    net.collect()
    assert net.inside(net.flying[who][0]) == (wire.Delete(3, (gone.inbound_spi.to_bytes(4, "big"),)),)
    net.deliver(who)
    assert net.inside(net.flying[net.other(end).name][0]) == (wire.Delete(3, (gone.outbound_spi.to_bytes(4, "big"),)),)
    net.settle()
    assert not net.a.children
    assert not net.b.children
    assert net.a.established
    assert net.b.established
    end.engine.create_child(end.handle, net.now)
    net.settle()
    net.check_agreement()
    assert len(net.a.children) == len(net.b.children) == 1
    assert net.a.sealing
    assert net.b.sealing


def test_delete_child_from_both_ends_at_once() -> None:
    """Both answer without a Delete payload (RFC 7296 section 1.4.1)."""
    net = make_wire()
    net.connect()
    for end in net.ends:
        end.engine.delete_child(end.handle, end.child.inbound_spi, net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    assert net.inside(net.flying["a"][0]) == net.inside(net.flying["b"][0]) == ()
    net.settle()
    for end in net.ends:
        assert len(end.of(events.ChildSaDeleted)) == 1
        end.check_spis()


def test_close_tells_every_peer_even_beside_an_outstanding_request() -> None:
    net = make_wire()
    net.connect()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    first, second = net.a.established
    net.a.engine.check_liveness(first, net.now)
    net.a.engine.datagrams_to_send(net.now)
    net.a.engine.close(net.now)
    net.settle()
    assert [e.ike_sa for e in net.a.of(events.IkeSaDeleted)] == [first, second]
    assert not net.b.established
    assert net.a.engine.get_timer() is None
    net.a.check_spis()
    net.b.check_spis()


def test_critical_payload_in_a_request_is_refused() -> None:
    """
    HDR, SK {?(critical)}  -->
                                    <--  HDR, SK {N(UNSUPPORTED_CRITICAL_PAYLOAD)}
    """
    net = make_wire()
    net.connect()
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.collect()
    net.deliver_inside("a", lambda _: [wire.UnknownPayload(200, True, b"?")])
    notify = wire.Notify(NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD, b"\xc8")
    assert net.inside(net.flying["b"][0]) == (notify,)
    net.settle()
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.collect()
    net.deliver_inside("a", lambda _: [wire.UnknownPayload(200, False, b"?")])
    assert net.inside(net.flying["b"][0]) == ()
    assert net.b.established


@pytest.mark.parametrize("exchange", [wire.ExchangeType.IKE_AUTH, 43, 200])
def test_exchange_types_that_have_no_place(exchange: int) -> None:
    """
    HDR, SK {}  -->
                                    <--  HDR, SK {N(INVALID_SYNTAX)}
    """
    net = make_wire()
    net.connect()
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.collect()
    flight = net.flying["a"].popleft()
    header = replace(wire.Message.decode(flight.data).header, exchange_type=exchange)
    net.hand(replace(flight, data=net._key(flight).seal(header, [])))
    (answer,) = net.flying["b"]
    assert net.inside(answer) == (wire.Notify(NotifyType.INVALID_SYNTAX),)
    assert not net.b.established


def _undecodable(net: Wire, flight: InFlight, exchange: int) -> InFlight:
    """The same request, authentic, with a payload inside that is longer than the message."""
    header = replace(wire.Message.decode(flight.data).header, exchange_type=exchange)
    key, chain = net._key(flight), b"\0\0\xff\xff"
    front = wire.encode_associated_data(header, wire.PayloadType.NOTIFY, key.sealed_length(len(chain)))
    return replace(flight, data=front + key.seal_octets(front, chain))


@pytest.mark.parametrize("exchange", [wire.ExchangeType.INFORMATIONAL, wire.ExchangeType.CREATE_CHILD_SA])
def test_a_request_that_cannot_be_read_ends_the_ike_sa_at_both_ends(exchange: int) -> None:
    """INVALID_SYNTAX is fatal, and no delete follows (RFC 7296 section 2.21.3).

    HDR, SK {?}  -->
                                    <--  HDR, SK {N(INVALID_SYNTAX)}
    """
    net = make_wire()
    net.connect()
    if exchange == wire.ExchangeType.INFORMATIONAL:
        net.a.engine.check_liveness(net.a.handle, net.now)
    else:
        net.a.engine.rekey_child(net.a.handle, net.a.child.inbound_spi, net.now)
    net.collect()
    request = _undecodable(net, net.flying["a"].popleft(), exchange)
    net.hand(request)
    assert net.b.of(events.IkeSaDeleted)[0].reason.startswith("peer sends what cannot be read: ")
    (answer,) = net.flying["b"]
    # It may get lost: the request brings it again, and nothing else is answered.
    net.hand(request)
    assert [flight.data for flight in net.flying["b"]] == [answer.data] * 2
    net.settle()
    assert net.a.of(events.IkeSaDeleted)[0].reason == "peer could not read what was sent: INVALID_SYNTAX"
    assert {flight.data[18] for flight in net.record[4:]} == {exchange}
    net.sleep(100)
    for end in net.ends:
        assert not end.children
        assert not end.engine._context.ike_sas
        end.check_spis()


def test_a_peer_that_cannot_read_our_answer_may_say_so_in_a_request() -> None:
    """
    HDR, SK {N(INVALID_SYNTAX)}  -->
                                    <--  HDR, SK {}
    """
    net = make_wire()
    net.connect()
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.collect()
    net.deliver_inside("a", lambda _: [wire.Notify(NotifyType.INVALID_SYNTAX)])
    assert net.inside(net.flying["b"][0]) == ()
    assert net.b.of(events.IkeSaDeleted)[0].reason == "the peer could not read our answer: INVALID_SYNTAX"
    assert not net.b.children


def test_a_replaced_ike_sa_that_cannot_be_read_ends_alone() -> None:
    """The one that has taken over goes on."""
    net = make_wire()
    net.connect()
    net.a.engine.rekey_ike(net.a.handle, net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    delete = net.flying["a"].popleft()
    net.hand(_undecodable(net, delete, wire.ExchangeType.INFORMATIONAL))
    net.settle()
    net.sleep(100)
    assert not net.b.of(events.IkeSaDeleted)
    net.check_agreement()
    assert len(net.a.established) == len(net.a.engine._context.ike_sas) == 1


def test_misuse_is_named() -> None:
    net = make_wire()
    net.connect()
    with pytest.raises(MisuseError, match="no established IKE SA has the handle 99"):
        net.a.engine.rekey_ike(99, net.now)
    with pytest.raises(MisuseError, match="has no CHILD_SA with inbound SPI 0x00000007"):
        net.a.engine.rekey_child(net.a.handle, 7, net.now)


def _lifetimes(net: Wire) -> None:
    for end in net.ends:
        for status in end.snapshot(net.now):
            assert status.rekey_in > 0
            assert status.expires_in > status.rekey_in


def test_rekeys_come_by_themselves_before_lifetimes_end() -> None:
    net = make_wire(*both_options(ike_lifetime=100.0, child_lifetime=30.0))
    net.connect()
    _lifetimes(net)
    net.sleep(1000)
    net.check_agreement()
    _lifetimes(net)
    for end in net.ends:
        assert len(end.established) == 1
        assert 9 <= len(end.of(events.IkeSaRekeyed)) <= 13
        assert not end.of(events.IkeSaDeleted)
    assert 33 <= len(net.a.of(events.ChildSaEstablished)) <= 45


def test_a_child_that_cannot_be_rekeyed_ends_with_its_lifetime() -> None:
    net = make_wire(make_profile("a", child_lifetime=20.0, esp=("aes128gcm16-x25519",)), make_profile("b"))
    net.connect()
    net.sleep(30)
    assert len(net.a.of(events.ChildSaDeleted)) == len(net.b.of(events.ChildSaDeleted)) == 1
    assert net.a.established
    net.check_agreement()


def test_an_ike_sa_that_cannot_be_rekeyed_ends_with_its_lifetime() -> None:
    net = make_wire(make_profile("a", ike_lifetime=20.0), make_profile("b"))
    net.connect()
    start = net.now
    while net.now < start + 21:
        net.collect()
        for name in ("a", "b"):
            while net.flying[name]:
                if name == "b" and net.flying["b"][0].data[18] == wire.ExchangeType.CREATE_CHILD_SA:
                    net.deliver_inside("b", lambda _: [wire.Notify(NotifyType.NO_PROPOSAL_CHOSEN)])
                else:
                    net.deliver(name)
        net.now += 0.5
        for end in net.ends:
            end.engine.handle_timer(net.now)
    net.settle()
    assert net.a.of(events.IkeSaDeleted)[0].reason == "the lifetime of the IKE SA is over"
