"""Make before break: a new IKE SA takes over, then the old one goes; and what was proved ends with its certificate."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from dsvpn.errors import MisuseError
from dsvpn.ike import events
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, NotifyType
from tests.ike.authority import NOW, certified, root, trust
from tests.ike.certified import A_NAME, B_NAME, gateway
from tests.ike.harness import NAT_ADDRESS, START, Nat, Wire, make_profile, make_wire


def reauthenticating(a: float = 0.0, b: float = 0.0, **options: Any) -> Wire:
    net = make_wire(
        make_profile("a", reauthentication=a, **options), make_profile("b", reauthentication=b, **options), seed=3
    )
    net.connect()
    return net


@pytest.mark.parametrize(
    ("a", "b"),
    [(1000.0, 0.0), (0.0, 1000.0), (1000.0, 5000.0), (5000.0, 1000.0)],
    ids=["ours", "peer's", "both, ours is shorter", "both, the peer's is shorter"],
)
def test_initiator_makes_the_new_before_the_old_goes(a: float, b: float) -> None:
    """By its own profile, or because the responder said so in AUTH_LIFETIME: whichever is shorter."""
    net = reauthenticating(a, b)
    old_a, old_b, old_child = net.a.handle, net.b.handle, net.a.child
    net.sleep(799.9 - (net.now - START))
    assert not net.a.of(events.IkeReauthentication)
    while not net.a.of(events.IkeReauthentication):
        net.sleep(1)
        assert net.now < START + 901
    (started,) = net.a.of(events.IkeReauthentication)
    assert started.ike_sa == old_a
    # Both exist, both carry: what either end seals with whichever SA, the other opens.
    assert set(net.a.established) == {old_a, started.successor}
    assert len(net.b.established) == 2
    net.check_traffic()
    assert {status.state for status in net.a.snapshot(net.now)} == {"superseded", "established"}
    assert not net.b.of(events.IkeSaEstablished)[-1].initial_contact
    assert net.b.children.keys() == {child.event.outbound_spi for child in net.a.children.values()}
    net.sleep(5.1)
    assert net.a.handle == started.successor
    assert net.b.handle != old_b
    assert net.a.of(events.IkeSaDeleted)[0].reason == "it was authenticated anew"
    assert {net.a.child.inbound_keymat, net.a.child.outbound_keymat}.isdisjoint(
        {old_child.inbound_keymat, old_child.outbound_keymat}
    )
    net.check_agreement()
    # And again.
    net.sleep(1000)
    assert len(net.a.of(events.IkeReauthentication)) == 2
    net.check_agreement()


def test_with_nat_the_new_one_takes_the_path_that_is_open() -> None:
    net = make_wire(make_profile("a", reauthentication=100.0), nats={"a": Nat(NAT_ADDRESS, shift=1000)})
    net.connect()
    before = net.b.established[net.b.handle].path
    net.sleep(100)
    assert net.b.established[net.b.handle].path == before
    assert len(net.a.of(events.IkeReauthentication)) == 1
    net.check_agreement()


def test_responder_asks_the_initiator() -> None:
    net = reauthenticating()
    old = net.b.handle
    net.b.engine.reauthenticate(old, net.now)
    net.settle()
    assert net.b.handle == old
    net.sleep(20)
    assert net.b.handle != old
    assert net.a.of(events.IkeReauthentication)
    assert not net.b.of(events.IkeReauthentication)
    net.check_agreement()


def test_both_ends_wanting_it_at_once_make_one() -> None:
    net = reauthenticating()
    net.b.engine.reauthenticate(net.b.handle, net.now)
    net.a.engine.reauthenticate(net.a.handle, net.now)
    net.a.engine.reauthenticate(net.a.handle, net.now)
    net.settle()
    net.sleep(60)
    assert len(net.a.of(events.IkeReauthentication)) == 1
    net.check_agreement()


def test_an_initiator_that_does_not_loses_the_ike_sa() -> None:
    """The responder's time is hard."""
    net = make_wire(make_profile("a"), make_profile("b", reauthentication=100.0))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    for name in "aba":
        net.deliver(name)
    net.deliver_inside(
        "b", lambda payloads: [p for p in payloads if getattr(p, "type", None) != NotifyType.AUTH_LIFETIME]
    )
    net.settle()
    net.sleep(99)
    assert net.b.established
    net.sleep(2)
    assert not net.b.established
    assert not net.a.established
    assert net.b.of(events.IkeSaDeleted)[0].reason == "its proof of identity is too old"
    net.sleep(100)
    net.check_agreement()


@pytest.mark.parametrize("data", [b"", b"\0\0\1", b"\0\0\0\0\0"])
def test_auth_lifetime_that_is_none(data: bytes) -> None:
    net = make_wire(make_profile("a"), make_profile("b", reauthentication=1000.0))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    for name in "aba":
        net.deliver(name)
    net.deliver_inside(
        "b",
        lambda payloads: [
            wire.Notify(NotifyType.AUTH_LIFETIME, data) if getattr(p, "type", None) == NotifyType.AUTH_LIFETIME else p
            for p in payloads
        ],
    )
    net.settle()
    assert net.a.snapshot(net.now)[0].authenticated_for is None


def test_only_the_responder_limits_the_initiator() -> None:
    """RFC 4478 section 3: nothing that an initiator sends shortens the responder's life."""
    net = reauthenticating()
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.collect()
    net.deliver_inside("a", lambda payloads: [wire.Notify(NotifyType.AUTH_LIFETIME, bytes(4))])
    net.settle()
    assert net.b.snapshot(net.now)[0].authenticated_for is None


def test_a_peer_that_is_away_is_tried_again_until_the_end() -> None:
    net = reauthenticating(a=1000.0)
    old = net.a.handle
    net.sleep(799)
    # IKE_SA_INIT alone is lost: what exists goes on.
    silence = net.now + 150
    while net.now < silence:
        net.sleep(0.5, deliver=False)
        net.a.drain()
    assert net.a.of(events.IkeSaFailed)
    assert list(net.a.established) == [old]
    net.check_traffic()
    net.sleep(100)
    assert old not in net.a.established
    assert net.a.of(events.IkeSaDeleted)[0].reason == "it was authenticated anew"
    net.check_agreement()


def test_a_peer_that_does_not_come_back_ends_the_ike_sa() -> None:
    net = reauthenticating(a=100.0)
    net.sleep(101, deliver=False)
    net.a.drain()
    assert [event.reason for event in net.a.of(events.IkeSaDeleted)] == ["its proof of identity is too old"]


def test_another_peer_does_not_take_over() -> None:
    """What answers at the address is somebody else, with the same key."""
    net = reauthenticating(a=1000.0)
    old = net.a.handle
    net.b.engine.replace_credentials([make_profile("c")], net.now)
    net.sleep(905)
    assert {event.reason for event in net.a.of(events.IkeSaFailed)} == {"peer is c, and was b before"}
    assert list(net.a.established) == [old]
    net.sleep(100)
    assert not net.a.established
    net.sleep(100)
    net.check_agreement()


def test_deleting_the_old_one_meanwhile_takes_the_new_with_it() -> None:
    net = reauthenticating()
    net.a.engine.reauthenticate(net.a.handle, net.now)
    net.collect()
    net.deliver("a")
    net.a.engine.delete(net.a.handle, net.now, "not wanted")
    net.settle()
    net.sleep(100)
    assert not net.a.established
    net.check_agreement()
    assert not net.a.engine._context.ike_sas
    assert not net.b.engine._context.ike_sas


def test_the_old_one_dies_meanwhile_and_the_new_comes_up() -> None:
    net = reauthenticating()
    net.a.engine.reauthenticate(net.a.handle, net.now)
    net.collect()
    net.b.engine.delete(net.b.handle, net.now, "done")
    net.settle()
    net.sleep(100)
    assert len(net.a.established) == 1
    net.check_agreement()


def test_the_new_one_dies_before_the_old_goes() -> None:
    net = reauthenticating(a=1000.0)
    old = net.a.handle
    net.a.engine.reauthenticate(old, net.now)
    net.settle()
    (started,) = net.a.of(events.IkeReauthentication)
    net.a.engine.delete(started.successor, net.now, "no")
    net.settle()
    net.sleep(8)
    assert net.a.handle == old
    net.sleep(100)
    assert len(net.a.of(events.IkeReauthentication)) == 2
    net.check_agreement()


def test_rekeys_of_the_ike_sa_prove_nothing() -> None:
    net = reauthenticating(a=1000.0)
    for _ in range(3):
        net.sleep(200)
        net.a.engine.rekey_ike(net.a.handle, net.now)
        net.settle()
    net.sleep(310)
    assert len(net.a.of(events.IkeReauthentication)) == 1
    net.check_agreement()


# -- certificates --------------------------------------------------------------------------------------------------


def certified_net(days_a: float, days_b: float) -> Wire:
    """Both prove themselves by certificates that end so many days from now, and the time of day passes."""
    holders = [gateway(name, end=NOW + timedelta(days=days)) for name, days in ((A_NAME, days_a), (B_NAME, days_b))]
    net = make_wire(
        certified(A_NAME, holders[0], ike_lifetime=1e6, child_lifetime=1e6),
        certified(B_NAME, holders[1], ike_lifetime=1e6, child_lifetime=1e6),
    )
    for end in net.ends:
        end.elapsed = lambda: net.now - START
    net.connect()
    return net


DAY = 86400.0


@pytest.mark.parametrize(("days_a", "days_b"), [(1.0, 50.0), (50.0, 1.0)], ids=["initiator's", "responder's"])
def test_an_expired_certificate_ends_the_ike_sa(days_a: float, days_b: float) -> None:
    net = certified_net(days_a, days_b)
    name = A_NAME if days_a < days_b else B_NAME
    assert net.a.snapshot(net.now)[0].authenticated_for == pytest.approx(DAY, abs=1)
    net.sleep(DAY - 60)
    # An hour or two before, and again ever closer: perhaps it has been renewed.
    assert 1 <= len(net.a.of(events.IkeReauthentication)) <= 12
    assert net.a.established
    net.check_traffic()
    net.sleep(70)
    assert not net.a.established
    assert not net.b.established
    reasons = {event.reason for end in net.ends for event in end.of(events.IkeSaDeleted)[-1:]}
    # The end that believed it says which; the other was told only how long it has.
    own = "our proof of identity is too old for the peer"
    assert reasons & {f"certificate CN={name},O=Test has expired", own}
    assert f"certificate CN={name},O=Test has expired" in reasons or days_a < days_b
    net.sleep(200)
    net.check_agreement()


@pytest.mark.parametrize("role", ["initiator's", "responder's"])
def test_a_renewed_certificate_is_used_before_the_old_one_expires(role: str) -> None:
    net = certified_net(*((1.0, 50.0) if role == "initiator's" else (50.0, 1.0)))
    end, name = (net.a, A_NAME) if role == "initiator's" else (net.b, B_NAME)
    net.sleep(DAY / 2)
    renewed = certified(name, gateway(name, end=NOW + timedelta(days=30)))
    end.engine.replace_credentials([renewed], net.now)
    net.sleep(DAY)
    assert len(net.a.of(events.IkeReauthentication)) == 1
    assert len(net.a.established) == 1
    assert net.a.snapshot(net.now)[0].authenticated_for == pytest.approx(28.5 * DAY, abs=DAY)
    net.check_agreement()


def test_the_authoritys_certificate_counts_as_well() -> None:
    middle = root().authority("Middle", end=NOW + timedelta(hours=3))
    holder = gateway(B_NAME, by=middle, end=NOW + timedelta(days=50))
    net = make_wire(
        certified(A_NAME, gateway(A_NAME, end=NOW + timedelta(days=50))), certified(B_NAME, holder, chain=[middle])
    )
    net.connect()
    assert net.a.snapshot(net.now)[0].authenticated_for == pytest.approx(3 * 3600, abs=1)


def test_revocation_at_a_reload_ends_what_reauthentication_has_begun() -> None:
    bad = gateway(B_NAME)
    net = make_wire(certified(A_NAME, gateway(A_NAME)), certified(B_NAME, bad))
    net.connect()
    net.a.engine.reauthenticate(net.a.handle, net.now)
    net.settle()
    assert len(net.a.established) == 2
    watchful = certified(A_NAME, gateway(A_NAME), trust=trust(crls=[root().crl(bad)]))
    net.a.engine.replace_credentials([watchful], net.now)
    net.settle()
    net.sleep(100)
    assert not net.a.established
    assert len(net.a.of(events.IkeSaDeleted)) == 2
    assert all("is revoked" in event.reason for event in net.a.of(events.IkeSaDeleted))
    net.check_agreement()


# -- configuration -------------------------------------------------------------------------------------------------


def test_too_short_a_time_is_refused() -> None:
    with pytest.raises(MisuseError, match="reauthentication"):
        make_profile("a", reauthentication=5.0)


def test_by_default_nothing_is_authenticated_anew() -> None:
    net = reauthenticating(ike_lifetime=1e6, child_lifetime=1e6)
    net.sleep(500_000)
    assert not net.a.of(events.IkeReauthentication)
    assert [flight for flight in net.record if flight.data[18] == ExchangeType.INFORMATIONAL] == []
