"""Rekeying CHILD_SAs (RFC 7296 sections 1.3.3, 2.8, 2.8.1, 2.25.1): the cases of dsvpn/ike/create_child.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dsvpn.ike import events
from dsvpn.ike.child_sa import LINGER
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType
from tests.ike.harness import End, Wire, both_options, make_profile, make_wire
from tests.ike.interleaving import every_run

PFS: dict[str, Any] = {"esp": ("aes128gcm16-x25519",)}


def connected(seed: int = 0, **options: Any) -> Wire:
    net = make_wire(*both_options(**options), seed=seed)
    net.connect()
    return net


def rekey(net: Wire, end: End) -> None:
    end.engine.rekey_child(end.handle, end.child.inbound_spi, net.now)


def end_of(net: Wire, name: str) -> End:
    return net.a if name == "a" else net.b


@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize(
    "esp", ["aes128gcm16", "aes256gcm16-ecp256", "chacha20poly1305-ecp384", "aes128gcm16-modp2048"]
)
def test_rekey_from_either_end(who: str, esp: str) -> None:
    """
    HDR, SK {N(REKEY_SA), N(USE_TRANSPORT_MODE), SA, Ni, [KEi], TSi, TSr}  -->
                                    <--  HDR, SK {N(USE_TRANSPORT_MODE), SA, Nr, [KEr], TSi, TSr}
    HDR, SK {D(old)}  -->
                                    <--  HDR, SK {D(old')}
    """
    net = connected(esp=(esp,))
    end = end_of(net, who)
    other = net.other(end)
    old, old_other = end.child, other.child
    rekey(net, end)
    net.collect()
    request = net.inside(net.flying[who][0])
    assert wire.find_notify(request, NotifyType.REKEY_SA) == wire.Notify(
        NotifyType.REKEY_SA, b"", 3, old.inbound_spi.to_bytes(4, "big")
    )
    assert (wire.find(request, wire.KeyExchange) is not None) == ("-" in esp)

    # The responder has the new SA and still seals with the old one.
    net.deliver(who)
    assert other.child == old_other
    new_other = other.of(events.ChildSaEstablished)[-1]
    assert (new_other.outbound_ready, new_other.replaces) == (False, old_other.inbound_spi)
    net.check_traffic()

    # The initiator seals with the new one at once, and deletes the old one.
    net.deliver(other.name)
    assert end.child.replaces == old.inbound_spi
    assert end.child.outbound_spi == new_other.inbound_spi
    assert old.inbound_spi in end.children
    net.check_traffic()

    # The delete tells the responder that the initiator has it.
    net.deliver(who)
    assert other.child == new_other
    assert old_other.inbound_spi in other.children
    net.settle()
    net.check_traffic()

    # The old inbound sides linger for packets that are on their way.
    net.sleep(LINGER - 0.1)
    assert len(net.a.children) == len(net.b.children) == 2
    net.sleep(0.2)
    assert len(net.a.children) == len(net.b.children) == 1
    net.check_agreement()
    assert {old.inbound_keymat, old.outbound_keymat}.isdisjoint({end.child.inbound_keymat, end.child.outbound_keymat})


def test_traffic_tells_the_responder_before_the_delete_does() -> None:
    net = connected()
    rekey(net, net.a)
    net.collect()
    net.deliver("a")
    new = net.b.of(events.ChildSaEstablished)[-1]
    net.b.engine.note_inbound(net.b.child.inbound_spi, net.now)
    net.b.drain()
    assert net.b.child != new
    net.b.engine.note_inbound(new.inbound_spi, net.now)
    net.b.drain()
    assert net.b.child == new
    net.b.engine.note_inbound(new.inbound_spi, net.now)
    net.b.engine.note_inbound(12345, net.now)
    net.settle()
    assert len(net.b.of(events.ChildSaOutboundReady)) == 1


def test_another_group_is_asked_for() -> None:
    net = make_wire(
        make_profile("a", esp=("aes128gcm16-x25519", "aes128gcm16-ecp256")),
        make_profile("b", esp=("aes128gcm16-ecp256",)),
    )
    net.connect()
    rekey(net, net.a)
    net.settle()
    assert net.a.child.replaces is not None
    net.sleep(10)
    net.check_agreement()


def test_peers_that_disagree_about_pfs_keep_the_old_sa() -> None:
    net = make_wire(make_profile("a", **PFS), make_profile("b"))
    net.connect()
    old = net.a.child
    rekey(net, net.a)
    net.settle()
    assert net.a.child == old
    net.check_agreement()
    net.sleep(10)
    assert net.a.child == old
    net.check_agreement()


@pytest.mark.parametrize("code", [NotifyType.TEMPORARY_FAILURE, NotifyType.NO_ADDITIONAL_SAS, 8000])
def test_a_refused_rekey_is_tried_again(code: int) -> None:
    net = connected()
    old = net.a.child.inbound_spi
    rekey(net, net.a)
    net.collect()
    unknown = wire.Proposal(1, 3, old.to_bytes(4, "big"), (wire.Transform(wire.TransformType.ENCR, 99),))
    net.deliver_inside(
        "a",
        lambda payloads: [
            wire.SecurityAssociation((unknown,)) if isinstance(p, wire.SecurityAssociation) else p for p in payloads
        ],
    )
    net.deliver_inside("b", lambda _: [wire.Notify(code)])
    net.settle()
    assert net.a.child.inbound_spi == old
    net.check_agreement()
    net.sleep(5)
    assert net.a.child.replaces == old
    net.sleep(10)
    net.check_agreement()


def test_a_child_that_the_peer_lost_is_made_anew() -> None:
    """
    HDR, SK {N(REKEY_SA), …}  -->
                                    <--  HDR, SK {N(CHILD_SA_NOT_FOUND)}
    HDR, SK {N(USE_TRANSPORT_MODE), SA, Ni, TSi, TSr}  -->
    """
    net = connected()
    rekey(net, net.a)
    net.collect()
    # The peer forgets its half, as after a broken delete.
    association, child = net.b.engine._context.children[net.b.child.inbound_spi]
    association._forget_child(child)
    net.b.drain()
    net.deliver("a")
    assert net.inside(net.flying["b"][0])[0] == wire.Notify(
        NotifyType.CHILD_SA_NOT_FOUND, b"", 3, net.a.child.inbound_spi.to_bytes(4, "big")
    )
    net.settle()
    net.sleep(10)
    net.check_agreement()
    assert len(net.a.children) == 1
    assert net.a.sealing
    assert net.b.sealing


def test_an_answer_that_cannot_be_used_is_taken_back() -> None:
    """The peer made an SA, and this end tells it that it is stillborn."""
    net = connected()
    old = net.a.child.inbound_spi
    rekey(net, net.a)
    net.collect()
    net.deliver("a")
    net.deliver_inside("b", lambda payloads: [p for p in payloads if not isinstance(p, wire.Nonce)])
    net.settle()
    assert net.a.child.inbound_spi == old
    net.sleep(20)
    net.check_agreement()
    assert len(net.a.children) == len(net.b.children) == 1


def test_children_of_one_peer_are_bounded() -> None:
    net = connected()
    for _ in range(40):
        net.a.engine.create_child(net.a.handle, net.now)
        net.settle()
    assert len(net.a.children) == len(net.b.children) == 16
    net.check_agreement()


def simultaneous(seed: int, **options: Any) -> Wire:
    net = connected(seed, **options)
    rekey(net, net.a)
    rekey(net, net.b)
    return net


@pytest.mark.parametrize("seed", range(6))
def test_simultaneous_rekey_in_step(seed: int) -> None:
    """Case 1: both requests cross, then both answers.

    HDR, SK {N(REKEY_SA), …, Ni1}  -->     <--  HDR, SK {N(REKEY_SA), …, Ni2}
    HDR, SK {…, Nr2}  -->                  <--  HDR, SK {…, Nr1}
    HDR, SK {D(…)}  -->                    <--  HDR, SK {D(…)}
    """
    net = simultaneous(seed, **PFS)
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
            net.check_traffic()
    assert len(nonces) == 4
    loser = nonces[min(nonces)]
    net.settle()
    net.sleep(10)
    net.check_agreement()
    assert len(net.a.children) == len(net.b.children) == 1
    # The exchange with the lowest nonce has lost: the other one's initiator was ready at once.
    winner = end_of(net, "b" if loser == "a" else "a")
    assert winner.child.outbound_ready
    assert not net.other(winner).child.outbound_ready
    assert {net.a.child.replaces, net.b.child.replaces} != {None}


@pytest.mark.parametrize("losses", [0, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_simultaneous_rekey_in_every_order(seed: int, losses: int) -> None:
    outcomes = set()
    runs = 0
    for script, net in every_run(lambda: simultaneous(seed), losses, Wire.check_traffic):
        net.sleep(10)
        runs += 1
        try:
            net.check_agreement()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, script {script}: {error}") from error
        assert len(net.a.children) == 1, script
        assert net.a.child.replaces is not None, script
        assert net.a.sealing, script
        assert net.b.sealing, script
        outcomes.add((net.a.child.outbound_ready, net.b.child.outbound_ready))
    # When nothing is lost the nonces alone decide. A lost request can let its sender's rekey come too late.
    assert outcomes <= {(True, False), (False, True)}
    assert len(outcomes) == 1 + losses
    assert runs > (50 if losses else 10)


@pytest.mark.parametrize("seed", [0, 1])
def test_rekey_and_delete_of_the_same_child_in_every_order(seed: int) -> None:
    """Cases 2 to 4: one end rekeys what the other deletes."""

    def scenario() -> Wire:
        net = connected(seed)
        rekey(net, net.a)
        net.b.engine.delete_child(net.b.handle, net.b.child.inbound_spi, net.now)
        return net

    for script, net in every_run(scenario, 1, lambda _: None):
        net.sleep(10)
        net.check_agreement()
        assert len(net.a.children) <= 1, script


@pytest.mark.parametrize("seed", [0, 1])
def test_rekey_of_child_and_ike_sa_in_every_order(seed: int) -> None:
    """RFC 7296 section 2.25.2: each gets TEMPORARY_FAILURE from the other or comes through."""

    def scenario() -> Wire:
        net = connected(seed)
        rekey(net, net.a)
        net.b.engine.rekey_ike(net.b.handle, net.now)
        return net

    for script, net in every_run(scenario, 1, Wire.check_traffic):
        net.sleep(100)
        net.check_agreement()
        assert len(net.a.children) == 1, script
        assert net.a.child.replaces is not None, script
        assert net.a.of(events.IkeSaRekeyed), script


def test_a_second_rekey_of_a_replaced_child_is_put_off() -> None:
    """Case 6: the peer is to delete the old SA, not to rekey it again.

    HDR, SK {N(REKEY_SA: C), …}  -->
                                    <--  HDR, SK {SA, Nr, …}
    HDR, SK {N(REKEY_SA: C), …}  -->
                                    <--  HDR, SK {N(TEMPORARY_FAILURE)}
    """
    net = connected()
    rekey(net, net.a)
    net.collect()
    flight = net.deliver("a")
    net.lose("b")
    header = wire.Message.decode(flight.data).header
    again = net._key(flight).seal(replace(header, message_id=header.message_id + 1), net.inside(flight))
    children = set(net.b.children)
    net.hand(replace(flight, data=again))
    assert net.inside(net.flying["b"][0]) == (wire.Notify(NotifyType.TEMPORARY_FAILURE),)
    assert set(net.b.children) == children


def test_a_new_child_that_is_deleted_before_its_answer_arrives() -> None:
    """Case 7: the answer is lost, the peer's delete comes first.

    HDR, SK {N(REKEY_SA: C), …}  -->
                              (lost)  <--  HDR, SK {SA, Nr, …}
                                    <--  HDR, SK {D(A)}
    HDR, SK {}  -->
    """
    net = connected()
    old = net.a.child
    rekey(net, net.a)
    net.collect()
    net.deliver("a")
    net.lose("b")
    new = net.b.of(events.ChildSaEstablished)[-1]
    net.b.engine.delete_child(net.b.handle, new.inbound_spi, net.now)
    net.settle()
    assert net.a.child == old
    net.check_traffic()
    net.sleep(20)
    # Both ends are rid of it, and the next rekey comes through.
    net.check_agreement()
    assert new.inbound_spi not in net.b.children
    assert net.a.child.replaces == old.inbound_spi


def test_a_new_child_that_is_rekeyed_before_its_answer_arrives() -> None:
    """Case 7, with a rekey: TEMPORARY_FAILURE, and it comes through later."""
    net = connected()
    rekey(net, net.a)
    net.collect()
    net.deliver("a")
    net.lose("b")
    new = net.b.of(events.ChildSaEstablished)[-1]
    net.b.engine.rekey_child(net.b.handle, new.inbound_spi, net.now)
    net.collect()
    net.deliver("b")
    assert net.inside(net.flying["a"][0]) == (wire.Notify(NotifyType.TEMPORARY_FAILURE),)
    net.settle()
    net.sleep(20)
    net.check_agreement()
    assert net.b.child.replaces == new.inbound_spi


def test_tasks_that_wait_are_bounded() -> None:
    net = connected()
    for _ in range(1000):
        net.a.engine.create_child(net.a.handle, net.now)
    (sa,) = net.a.engine._context.ike_sas.values()
    assert len(sa.tasks) <= 64
    net.settle()
    net.check_agreement()
