"""Post-quantum preshared keys (RFC 8784)."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

import pytest

from dsvpn.errors import MisuseError
from dsvpn.ike import events
from dsvpn.ike.keymat import mix_ppk, prf_plus
from dsvpn.ike.ppk import Ppk
from dsvpn.ike.suites import PRFS
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, NotifyType
from tests.ike.authority import certified
from tests.ike.certified import A_NAME, B_NAME, gateway
from tests.ike.harness import Payloads, Wire, make_profile, make_wire

HYBRID = "aes256gcm16-prfsha384-x25519-ke1_mlkem768"
ONE = Ppk(b"one", b"the first secret of 32 octets...")
TWO = Ppk(b"two", b"the second secret of 32 octets..")
OTHER_ONE = Ppk(b"one", b"not the first secret at all.....")


def required(ppk: Ppk) -> Ppk:
    return Ppk(ppk.identity, ppk.key, True)


def attempt(a: tuple[Ppk, ...], b: tuple[Ppk, ...], **options: Any) -> Wire:
    net = make_wire(make_profile("a", ppks=a, **options), make_profile("b", ppks=b, **options))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.sleep(60)
    net.a.drain()
    return net


@pytest.mark.parametrize("ike", ["aes128gcm16-prfsha256-x25519", HYBRID])
@pytest.mark.parametrize(
    ("a", "b", "agreed"),
    [
        ((ONE,), (ONE,), "one"),
        ((ONE,), (TWO, ONE), "one"),
        ((TWO, ONE), (ONE, TWO), "two"),
        ((required(ONE),), (ONE,), "one"),
        ((ONE,), (required(ONE),), "one"),
        ((required(ONE),), (required(ONE),), "one"),
        ((ONE,), (), ""),
        ((), (ONE,), ""),
        ((ONE,), (TWO,), ""),
        ((), (), ""),
    ],
)
def test_who_agrees_on_what(a: tuple[Ppk, ...], b: tuple[Ppk, ...], agreed: str, ike: str) -> None:
    """RFC 8784 section 3, table 1, the rows that go on."""
    net = attempt(a, b, ike=(ike,))
    net.check_agreement()
    assert [end.snapshot(net.now)[0].ppk for end in net.ends] == [agreed, agreed]
    # Everything that comes of it works, under a new IKE SA too.
    for end in net.ends:
        end.engine.rekey_child(end.handle, end.child.inbound_spi, net.now)
        net.settle()
        end.engine.rekey_ike(end.handle, net.now)
        net.settle()
    net.sleep(100)
    net.check_agreement()
    assert [end.snapshot(net.now)[0].ppk for end in net.ends] == [agreed, agreed]


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ((required(ONE),), (), "peer has no PPK, which is required"),
        ((required(ONE),), (TWO,), "AUTHENTICATION_FAILED"),
        ((), (required(ONE),), "AUTHENTICATION_FAILED"),
        ((ONE,), (required(TWO),), "AUTHENTICATION_FAILED"),
        ((ONE,), (OTHER_ONE,), "AUTHENTICATION_FAILED"),
        ((required(ONE),), (required(OTHER_ONE),), "AUTHENTICATION_FAILED"),
    ],
)
def test_who_does_not(a: tuple[Ppk, ...], b: tuple[Ppk, ...], reason: str) -> None:
    """The rows that abort, and a key that is another behind the same identity."""
    net = attempt(a, b)
    assert not net.a.established
    assert not net.b.established
    (failed,) = net.a.of(events.IkeSaFailed)
    assert reason in failed.reason
    for end in net.ends:
        end.check_spis()
        assert not end.engine._context.ike_sas


def test_the_refusal_says_that_a_ppk_is_missing() -> None:
    net = attempt((), (required(ONE),))
    assert [event.reason for event in net.b.of(events.IkeAuthenticationRefused)] == [
        "peer has no PPK, which is required"
    ]


def test_the_ppk_changes_the_keys_of_child_sas() -> None:
    """The same random octets at both ends, with and without: what is derived from SK_d differs."""
    plain, mixed = attempt((), ()), attempt((ONE,), (ONE,))
    assert plain.a.child.inbound_keymat != mixed.a.child.inbound_keymat


@pytest.mark.parametrize("name", PRFS)
def test_mixing_is_prf_plus_under_the_ppk(name: str) -> None:
    """RFC 8784 section 3: SK_d = prf+(PPK, SK_d'), as long as the PRF's key. One block of prf+ fills it."""
    function = PRFS[name]
    key = bytes(range(function.key_length))
    mixed = mix_ppk(function, ONE.key, key)
    assert mixed == prf_plus(function, ONE.key, key, function.key_length)
    assert mixed == hmac.digest(ONE.key, key + b"\x01", function.hash_name)


def _handshake(change: Callable[[Payloads], list[wire.Payload]], a: tuple[Ppk, ...], b: tuple[Ppk, ...]) -> Wire:
    """Both ends, with the initiator's IKE_AUTH changed."""
    net = make_wire(make_profile("a", ppks=a), make_profile("b", ppks=b))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    for name in ("a", "b"):
        net.deliver(name)
    assert net.flying["a"][0].data[18] == ExchangeType.IKE_AUTH
    net.deliver_inside("a", change)
    net.settle()
    net.sleep(60)
    net.a.drain()
    return net


def _identity(data: bytes) -> Callable[[Payloads], list[wire.Payload]]:
    def change(payloads: Payloads) -> list[wire.Payload]:
        return [
            wire.Notify(NotifyType.PPK_IDENTITY, data)
            if isinstance(p, wire.Notify) and p.type == NotifyType.PPK_IDENTITY
            else p
            for p in payloads
        ]

    return change


def _without(kind: NotifyType) -> Callable[[Payloads], list[wire.Payload]]:
    return lambda payloads: [p for p in payloads if not (isinstance(p, wire.Notify) and p.type == kind)]


@pytest.mark.parametrize("data", [b"", b"\x02", b"\x01one", b"\x02none", b"\x02" + bytes(300), b"\xff" * 64])
def test_garbage_as_ppk_identity(data: bytes) -> None:
    """An identity that is not ours: NO_PPK_AUTH is there, and both do without. When we insist, it is refused."""
    net = _handshake(_identity(data), (ONE,), (ONE,))
    net.check_agreement()
    assert [end.snapshot(net.now)[0].ppk for end in net.ends] == ["", ""]
    assert not _handshake(_identity(data), (ONE,), (required(ONE),)).b.established


def test_a_caller_that_leaves_out_no_ppk_auth_is_refused_by_who_lacks_the_ppk() -> None:
    net = _handshake(_without(NotifyType.NO_PPK_AUTH), (ONE,), (TWO,))
    assert not net.b.established
    assert [event.reason for event in net.b.of(events.IkeAuthenticationRefused)] == [
        "peer requires a PPK that is not ours"
    ]


def test_no_ppk_auth_is_checked() -> None:
    def change(payloads: Payloads) -> list[wire.Payload]:
        return [
            wire.Notify(NotifyType.NO_PPK_AUTH, bytes(len(p.data)))
            if isinstance(p, wire.Notify) and p.type == NotifyType.NO_PPK_AUTH
            else p
            for p in payloads
        ]

    assert not _handshake(change, (ONE,), (TWO,)).b.established


def test_an_answer_that_drops_the_ppk_is_not_believed() -> None:
    """The peer answers as if it did not have the PPK, which it used: its proof does not hold without."""
    net = make_wire(make_profile("a", ppks=(ONE,)), make_profile("b", ppks=(ONE,)))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    for name in ("a", "b", "a"):
        net.deliver(name)
    net.deliver_inside("b", _without(NotifyType.PPK_IDENTITY))
    net.settle()
    net.sleep(60)
    assert not net.a.established
    assert not net.b.established
    net.a.check_spis()


def test_a_ppk_needs_an_identity_and_a_key() -> None:
    with pytest.raises(MisuseError, match="name both"):
        Ppk(b"", b"key")
    with pytest.raises(MisuseError, match="name both"):
        Ppk(b"id", b"")


def test_the_key_does_not_print() -> None:
    assert "secret" not in repr(ONE)


@pytest.mark.parametrize(
    ("a", "b", "agreed"),
    [((ONE,), (ONE,), "one"), ((required(ONE),), (required(ONE),), "one"), ((ONE,), (TWO,), "")],
)
def test_with_certificates_and_ml_kem(a: tuple[Ppk, ...], b: tuple[Ppk, ...], agreed: str) -> None:
    """A signature covers what a MIC covers; NO_PPK_AUTH holds a second one."""
    net = make_wire(
        certified(A_NAME, gateway(A_NAME), ike=(HYBRID,), ppks=a),
        certified(B_NAME, gateway(B_NAME), ike=(HYBRID,), ppks=b),
    )
    net.connect()
    net.check_agreement()
    for end in net.ends:
        (status,) = end.snapshot(net.now)
        assert (status.ppk, status.suite) == (agreed, HYBRID)
