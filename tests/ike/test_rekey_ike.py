"""Rekeying the IKE SA (RFC 7296 sections 1.3.2, 2.8.2, 2.18, 2.25.2): the cases of dsvpn/ike/rekey_ike.py."""

from __future__ import annotations

from typing import Any

import pytest

from dsvpn.ike import events
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType
from tests.ike.harness import End, Wire, both_options, make_profile, make_wire
from tests.ike.interleaving import every_run


def connected(seed: int = 0, **options: Any) -> Wire:
    net = make_wire(*both_options(**options), seed=seed)
    net.connect()
    return net


def rekey(net: Wire, end: End) -> None:
    end.engine.rekey_ike(end.handle, net.now)


def end_of(net: Wire, name: str) -> End:
    return net.a if name == "a" else net.b


def check_one_ike_sa(net: Wire) -> None:
    """What is replaced is gone at both ends, timers and all."""
    net.check_agreement()
    for end in net.ends:
        assert len(end.engine._context.ike_sas) == 1
        assert len(end.established) == 1


@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize(
    "suite",
    ["aes128gcm16-prfsha256-x25519", "aes256gcm16-prfsha384-ecp384", "chacha20poly1305-prfsha512-modp2048"],
)
def test_rekey_from_either_end(who: str, suite: str) -> None:
    """
    HDR, SK {SA, Ni, KEi}  -->
                                    <--  HDR, SK {SA, Nr, KEr}
    HDR, SK {D}  -->
                                    <--  HDR, SK {}
    """
    net = connected(ike=(suite,))
    end = end_of(net, who)
    before = end.snapshot(net.now)[0]
    children = {name: set(e.children) for name, e in (("a", net.a), ("b", net.b))}
    rekey(net, end)
    rekey(net, end)
    net.settle()
    after = end.snapshot(net.now)[0]
    assert after.ike_sa == before.ike_sa
    assert {after.initiator_spi, after.responder_spi}.isdisjoint({before.initiator_spi, before.responder_spi})
    assert (after.next_request_id, after.expected_request_id) == (0, 0)
    for one in net.ends:
        assert len(one.of(events.IkeSaRekeyed)) == 1
        assert set(one.children) == children[one.name]
        assert not one.of(events.IkeSaDeleted)
    # The new IKE SA works in both directions, and again.
    for one in net.ends:
        one.engine.check_liveness(one.handle, net.now)
        net.settle()
        one.engine.rekey_child(one.handle, one.child.inbound_spi, net.now)
        net.settle()
        rekey(net, one)
        net.settle()
    net.sleep(100)
    check_one_ike_sa(net)


def test_another_suite_and_group_after_a_rekey() -> None:
    """The responder prefers another suite than the one in use, once it is asked again."""
    old, new = "aes128gcm16-prfsha256-x25519", "aes256gcm16-prfsha512-ecp256"
    net = make_wire(make_profile("a", ike=(old, new)), make_profile("b", ike=(old, new)))
    net.connect()
    # B's configuration has changed its mind.
    context = net.b.engine._context
    for sa in context.ike_sas.values():
        sa.association.profile = make_profile("b", ike=(new,))
    rekey(net, net.a)
    net.settle()
    net.sleep(100)
    assert net.a.snapshot(net.now)[0].suite == new
    check_one_ike_sa(net)
    net.b.engine.rekey_child(net.b.handle, net.b.child.inbound_spi, net.now)
    net.settle()
    net.sleep(10)
    net.check_agreement()


@pytest.mark.parametrize("position", range(4))
def test_any_message_of_a_rekey_may_get_lost(position: int) -> None:
    net = connected()
    rekey(net, net.a)
    net.collect()
    for step in range(position):
        net.deliver("ab"[step % 2])
    net.lose("ab"[position % 2])
    net.sleep(100)
    check_one_ike_sa(net)
    assert len(net.a.of(events.IkeSaRekeyed)) == len(net.b.of(events.IkeSaRekeyed)) == 1


def test_put_off_by_a_child_exchange_and_tried_again() -> None:
    """Case 4: TEMPORARY_FAILURE while the peer makes a CHILD_SA."""
    net = connected()
    net.b.engine.rekey_child(net.b.handle, net.b.child.inbound_spi, net.now)
    rekey(net, net.a)
    net.collect()
    net.deliver("a")
    (flight,) = [f for f in net.flying["b"] if wire.Message.decode(f.data).header.is_response]
    assert net.inside(flight) == (wire.Notify(NotifyType.TEMPORARY_FAILURE),)
    net.settle()
    net.sleep(100)
    check_one_ike_sa(net)
    assert net.a.of(events.IkeSaRekeyed)


def test_a_child_exchange_is_put_off_by_a_rekey() -> None:
    net = connected()
    rekey(net, net.a)
    net.a.engine.datagrams_to_send(net.now)
    net.b.engine.rekey_child(net.b.handle, net.b.child.inbound_spi, net.now)
    net.collect()
    net.deliver("b")
    (flight,) = net.flying["a"]
    assert net.inside(flight) == (wire.Notify(NotifyType.TEMPORARY_FAILURE),)
    net.sleep(100)
    check_one_ike_sa(net)
    assert net.b.child.replaces is not None


def simultaneous(seed: int) -> Wire:
    net = connected(seed)
    rekey(net, net.a)
    rekey(net, net.b)
    return net


@pytest.mark.parametrize("seed", range(6))
def test_simultaneous_rekey_in_step(seed: int) -> None:
    """Case 1: the exchange with the lowest nonce loses.

    HDR, SK {SA, Ni1, KEi}  -->            <--  HDR, SK {SA, Ni2, KEi}
    HDR, SK {SA, Nr2, KEr}  -->            <--  HDR, SK {SA, Nr1, KEr}
    HDR, SK {D}  -->                       <--  HDR, SK {D}
    """
    net = simultaneous(seed)
    nonces = {}
    net.collect()
    for _ in range(2):
        for name in ("a", "b"):
            flight = net.flying[name][0]
            nonce = wire.find(net.inside(flight), wire.Nonce)
            assert nonce is not None
            asked = not wire.Message.decode(flight.data).header.is_response
            nonces[nonce.data] = name if asked else net.other(flight.sender).name
            net.deliver(name)
    loser = nonces[min(nonces)]
    net.settle()
    net.sleep(100)
    check_one_ike_sa(net)
    (sa,) = net.a.engine._context.ike_sas.values()
    assert sa.is_initiator == (loser == "b")
    for end in net.ends:
        assert len(end.of(events.IkeSaRekeyed)) == 1
        assert len(end.children) == 1


@pytest.mark.parametrize("losses", [0, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_simultaneous_rekey_in_every_order(seed: int, losses: int) -> None:
    winners = set()
    for script, net in every_run(lambda: simultaneous(seed), losses, Wire.check_traffic):
        net.sleep(100)
        try:
            check_one_ike_sa(net)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, script {script}: {error}") from error
        (sa,) = net.a.engine._context.ike_sas.values()
        winners.add(sa.is_initiator)
        assert len(net.a.children) == 1, script
        # What is left works.
        net.a.engine.check_liveness(net.a.handle, net.now)
        net.settle()
        assert net.a.established, script
    # When nothing is lost the nonces alone decide. A lost request can let its sender's rekey come too late.
    assert len(winners) == 1 + losses


def test_rekey_and_delete_in_every_order() -> None:
    def scenario() -> Wire:
        net = connected()
        rekey(net, net.a)
        net.b.engine.delete(net.b.handle, net.now, "done")
        return net

    for script, net in every_run(scenario, 1, lambda _: None):
        net.sleep(200)
        for end in net.ends:
            assert not end.established, script
            assert not end.engine._context.ike_sas, script
            end.check_spis()


def test_rekeys_of_one_peer_are_bounded() -> None:
    net = connected()
    for _ in range(100):
        rekey(net, net.a)
        net.collect()
        while net.flying["a"]:
            # The peer never deletes what it replaces.
            if net.flying["a"][0].data[18] == wire.ExchangeType.INFORMATIONAL:
                net.lose("a")
            else:
                net.deliver("a")
            while net.flying["b"]:
                net.deliver("b")
        assert len(net.b.engine._context.ike_sas) <= 8
