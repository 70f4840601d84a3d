"""IKE_AUTH without a CHILD_SA, which CREATE_CHILD_SA makes (RFC 6023)."""

from __future__ import annotations

import pytest

from dsvpn.ike import events
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, NotifyType
from tests.ike.harness import NAT_ADDRESS, Nat, Payloads, Wire, make_profile, make_wire

ESP = ("aes128gcm16-x25519",)


def exchanges(net: Wire) -> list[int]:
    return [flight.data[18] for flight in net.record if flight.sender is net.a]


@pytest.mark.parametrize("esp", [ESP, ("aes128gcm16",), ("aes128gcm16-x25519-ke1_ecp256",)])
@pytest.mark.parametrize("nat", [False, True])
def test_the_child_sa_comes_by_itself(esp: tuple[str, ...], nat: bool) -> None:
    net = make_wire(
        make_profile("a", childless="prefer", esp=esp),
        make_profile("b", esp=esp),
        nats={"a": Nat(NAT_ADDRESS, 7)} if nat else {},
    )
    net.connect()
    kinds = [ExchangeType.IKE_SA_INIT, ExchangeType.IKE_AUTH, ExchangeType.CREATE_CHILD_SA]
    assert exchanges(net)[:3] == kinds
    assert net.a.child.suite == "aes128gcm16"
    assert net.a.child.replaces is None
    assert net.a.child.outbound_ready
    net.check_agreement()
    net.sleep(10)
    assert len(net.a.children) == 1


@pytest.mark.parametrize(("a", "b"), [("allow", "allow"), ("prefer", "never"), ("never", "allow")])
def test_otherwise_it_comes_with_ike_auth(a: str, b: str) -> None:
    net = make_wire(make_profile("a", childless=a), make_profile("b", childless=b))
    net.connect()
    assert exchanges(net) == [ExchangeType.IKE_SA_INIT, ExchangeType.IKE_AUTH]
    net.check_agreement()


def test_only_the_responder_announces_it() -> None:
    net = make_wire(make_profile("a", childless="prefer"))
    net.connect()
    said = [
        wire.find_notify(wire.Message.decode(flight.data).payloads, NotifyType.CHILDLESS_IKEV2_SUPPORTED)
        for flight in net.record[:2]
    ]
    assert said[0] is None
    assert said[1] is not None


def _without_child(payloads: Payloads) -> list[wire.Payload]:
    kinds = (wire.SecurityAssociation, wire.TrafficSelectorsInitiator, wire.TrafficSelectorsResponder)
    return [payload for payload in payloads if not isinstance(payload, kinds)]


def test_a_responder_that_does_not_take_it_says_so() -> None:
    net = make_wire(make_profile("a"), make_profile("b", childless="never"))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    net.deliver_inside("a", _without_child)
    net.settle()
    assert net.b.of(events.IkeAuthenticationRefused)[0].reason == "peer wants no CHILD_SA"
    net.sleep(200)
    assert not net.a.established
    assert not net.b.established
    net.a.check_spis()
    net.b.check_spis()


def test_half_an_offer_is_not_childless() -> None:
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    net.deliver_inside("a", lambda payloads: [p for p in payloads if not isinstance(p, wire.SecurityAssociation)])
    net.settle()
    assert net.b.of(events.IkeAuthenticationRefused)[0].reason == "peer wants no CHILD_SA"


def test_an_ike_sa_for_which_no_child_sa_can_be_made_ends_and_says_why() -> None:
    net = make_wire(
        make_profile("a", childless="prefer", esp=("aes128gcm16",)), make_profile("b", esp=("aes256gcm16",))
    )
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    assert net.a.established
    net.sleep(30)
    assert not net.a.established
    assert not net.b.established
    assert net.a.of(events.IkeSaDeleted)[0].reason == "peer refuses a CHILD_SA: NO_PROPOSAL_CHOSEN"
    net.sleep(100)
    net.check_agreement()


def test_a_refusal_for_the_moment_is_overcome() -> None:
    net = make_wire(make_profile("a", childless="prefer"))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    for name in "abab":
        net.deliver(name)
    # The peer is rekeying the IKE SA when our CREATE_CHILD_SA comes.
    net.b.engine.rekey_ike(net.b.handle, net.now)
    net.collect()
    net.deliver("a")
    assert wire.find_notify(net.inside(net.flying["b"][-1]), NotifyType.TEMPORARY_FAILURE) is not None
    net.settle()
    assert not net.a.children
    net.sleep(5)
    assert net.a.sealing
    net.check_agreement()


def test_initial_contact_and_lifetime_come_without_a_child_too() -> None:
    net = make_wire(make_profile("a", childless="prefer"), make_profile("b", reauthentication=100.0))
    net.connect()
    assert net.b.of(events.IkeSaEstablished)[0].initial_contact
    assert net.a.snapshot(net.now)[0].authenticated_for == 100.0
    net.sleep(110)
    assert len(net.a.of(events.IkeReauthentication)) == 1
    net.check_agreement()
