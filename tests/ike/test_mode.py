"""Transport and tunnel mode (RFC 7296 section 1.3.1), tunnel mode before NAT, and extended sequence numbers."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from dsvpn.errors import MisuseError
from dsvpn.ike import events
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType
from tests.ike.harness import A, B, Nat, Wire, make_profile, make_wire

NAT_A, NAT_B = ip_address("203.0.113.1"), ip_address("203.0.113.2")
PFS = ("aes128gcm16-x25519",)


def tunnel_wire(a: dict[str, Any] | None = None, b: dict[str, Any] | None = None, **options: Any) -> Wire:
    both: dict[str, Any] = {"tunnel_mode": True, "esp": PFS}
    return make_wire(make_profile("a", **(both | (a or {}))), make_profile("b", **(both | (b or {}))), **options)


def call(net: Wire) -> None:
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    # An unauthenticated answer is doubted for a while only.
    net.sleep(30.0)


def test_both_in_tunnel_mode_agree_and_rekey_from_either_end() -> None:
    """
    HDR, SK {IDi, AUTH, SAi2, TSi, TSr}  -->
                                    <--  HDR, SK {IDr, AUTH, SAr2, TSi, TSr}
    HDR, SK {N(REKEY_SA), SA, Ni, KEi, TSi, TSr}  -->
                                    <--  HDR, SK {SA, Nr, KEr, TSi, TSr}
    """
    net = tunnel_wire()
    net.connect()
    net.check_agreement()
    for end in net.ends:
        assert not end.child.udp_encapsulation
        old = end.child.inbound_spi
        end.engine.rekey_child(end.handle, old, net.now)
        net.settle()
        net.sleep(10.0)
        assert end.child.inbound_spi != old
        net.check_agreement()
        (status,) = end.snapshot(net.now)
        assert {child.mode for child in status.children} == {"tunnel"}


@pytest.mark.parametrize("tunnel_mode", [False, True])
def test_use_transport_mode_is_sent_in_transport_mode_alone(tunnel_mode: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    find = wire.find_notify

    def spy(payloads: Any, kind: int) -> Any:
        found = find(payloads, kind)
        if kind == NotifyType.USE_TRANSPORT_MODE:
            seen.append((type(payloads).__name__, found is not None))
        return found

    monkeypatch.setattr(wire, "find_notify", spy)
    net = tunnel_wire({"tunnel_mode": tunnel_mode}, {"tunnel_mode": tunnel_mode})
    net.connect()
    net.a.engine.rekey_child(net.a.handle, net.a.child.inbound_spi, net.now)
    net.settle()
    # Request and answer of IKE_AUTH and of CREATE_CHILD_SA.
    assert [there for _, there in seen] == [not tunnel_mode] * 4


def test_each_end_says_what_to_change_when_the_modes_differ() -> None:
    net = tunnel_wire(b={"tunnel_mode": False})
    call(net)
    (refused,) = net.b.of(events.IkeAuthenticationRefused)
    assert refused.reason == "peer asks for tunnel mode; configure transport mode there"
    assert not net.a.children
    # RFC 7296 section 1.3.1: a responder declines transport mode by tunnel mode, which the initiator need not take.
    net = tunnel_wire(a={"tunnel_mode": False})
    call(net)
    (failed,) = net.a.of(events.IkeSaFailed)
    assert failed.reason == "peer insists on tunnel mode; configure transport mode there"
    assert not net.a.children
    assert not net.b.children


@pytest.mark.parametrize(
    ("who", "where"),
    [(("a",), "us"), (("b",), "the peer"), (("a", "b"), "us and the peer")],
    ids=["initiator", "responder", "both"],
)
def test_tunnel_mode_before_nat_is_refused_with_the_reason(who: tuple[str, ...], where: str) -> None:
    nats = {"a": Nat(NAT_A, 10_000), "b": Nat(NAT_B)}
    net = tunnel_wire(nats={name: nats[name] for name in who})
    path = net.a.path_to(net.b)
    if "b" in who:
        path = path._replace(remote=path.remote._replace(address=NAT_B))
    net.a.engine.initiate("default", path, net.now)
    net.settle()
    net.sleep(30.0)
    (failed,) = net.a.of(events.IkeSaFailed)
    assert (
        f"tunnel mode cannot pass NAT, because NHRP does not learn post-NAT addresses in it, and there is one in front "
        f"of {where} " in failed.reason
    )
    assert 'write mode = "transport" at both ends' in failed.reason
    assert not net.a.children
    assert not net.b.children
    assert not net.b.established


def test_a_responder_refuses_tunnel_mode_before_nat_too() -> None:
    # The caller does not mind.
    net = tunnel_wire(a={"tunnel_mode": False}, nats={"a": Nat(NAT_A, 10_000)})
    call(net)
    (refused,) = net.b.of(events.IkeAuthenticationRefused)
    assert "tunnel mode cannot pass NAT" in refused.reason
    assert "in front of the peer" in refused.reason
    assert not net.b.children
    (failed,) = net.a.of(events.IkeSaFailed)
    assert failed.reason == "peer refuses the CHILD_SA: NO_PROPOSAL_CHOSEN"


@pytest.mark.parametrize("forcing", ["a", "b"])
def test_a_peer_that_forces_encapsulation_is_refused_by_tunnel_mode(forcing: str) -> None:
    options: dict[str, Any] = {"tunnel_mode": False, "force_udp_encapsulation": True}
    net = tunnel_wire(**{forcing: options})
    call(net)
    reasons = [event.reason for event in net.a.of(events.IkeSaFailed)]
    reasons += [event.reason for event in net.b.of(events.IkeAuthenticationRefused)]
    assert any("or UDP encapsulation is forced at the other end" in reason for reason in reasons), reasons
    assert not net.a.children
    assert not net.b.children


def test_a_profile_cannot_have_both() -> None:
    with pytest.raises(MisuseError, match="tunnel mode and forces UDP encapsulation"):
        make_profile(tunnel_mode=True, force_udp_encapsulation=True)


@pytest.mark.parametrize(
    ("a", "b", "expected"), [(True, True, True), (True, False, False), (False, True, False), (False, False, False)]
)
def test_extended_sequence_numbers_need_both_ends(a: bool, b: bool, expected: bool) -> None:
    net = make_wire(make_profile("a", esn=a, esp=PFS), make_profile("b", esn=b, esp=PFS))
    net.connect()
    net.check_agreement()
    assert net.a.child.esn is net.b.child.esn is expected
    for end in net.ends:
        end.engine.rekey_child(end.handle, end.child.inbound_spi, net.now)
        net.settle()
        net.sleep(10.0)
        net.check_agreement()
        assert net.a.child.esn is net.b.child.esn is expected


def test_addresses_of_both_families_stand_in_the_selectors() -> None:
    assert (A.version, B.version) == (4, 4)
    net = tunnel_wire()
    net.a.address, net.b.address = ip_address("2001:db8::1"), ip_address("2001:db8::2")
    net.connect()
    net.check_agreement()
