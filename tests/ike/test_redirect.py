"""A gateway hands an initiator on (RFC 5685): at the first message, when it is authenticated, or later."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from dsvpn.errors import PeerError
from dsvpn.ike import events
from dsvpn.ike.redirect import decode_gateway, encode_gateway
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType
from tests.ike.harness import A, B, Payloads, Wire, make_profile, make_wire

ELSEWHERE = ip_address("192.0.2.99")
ALLOWED = (ip_network("192.0.2.99/32"),)


def call(*, a: dict[str, Any] | None = None, b: dict[str, Any] | None = None) -> Wire:
    net = make_wire(
        make_profile("a", **({"follow_redirects": ALLOWED} | (a or {}))),
        make_profile("b", **({"redirect_to": ELSEWHERE} | (b or {}))),
    )
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    return net


def test_the_identity_on_the_wire() -> None:
    assert encode_gateway(ELSEWHERE, b"nonce") == b"\x01\x04\xc0\x00\x02\x63nonce"
    assert decode_gateway(b"\x01\x04\xc0\x00\x02\x63nonce") == (ELSEWHERE, b"nonce")
    six = ip_address("2001:db8::63")
    assert encode_gateway(six) == b"\x02\x10" + six.packed
    assert decode_gateway(encode_gateway(six)) == (six, b"")
    for bad in (b"", b"\x01", b"\x01\x04\x01", b"\x01\x03\x01\x02\x03", b"\x03\x01x", b"\x09\x00"):
        with pytest.raises(PeerError):
            decode_gateway(bad)


@pytest.mark.parametrize("early", [False, True], ids=["IKE_AUTH", "IKE_SA_INIT"])
def test_a_caller_is_handed_on(early: bool) -> None:
    net = call(b={"redirect_early": early})
    (redirected,) = net.a.of(events.IkeRedirected)
    assert (redirected.sender, redirected.target, redirected.established) == (B, ELSEWHERE, False)
    assert "192.0.2.99" in net.a.of(events.IkeSaFailed)[0].reason
    assert len([flight for flight in net.record if flight.sender is net.a]) == (1 if early else 3)
    net.sleep(60)
    for end in net.ends:
        assert not end.established
        assert not end.engine._context.ike_sas
        end.check_spis()
    assert net.b.engine.counters()["redirects_sent"] == 1
    assert net.a.engine.counters()["redirects_followed"] == 1


@pytest.mark.parametrize("early", [False, True], ids=["IKE_AUTH", "IKE_SA_INIT"])
def test_one_that_does_not_follow_is_served(early: bool) -> None:
    net = call(a={"follow_redirects": ()}, b={"redirect_early": early})
    net.check_agreement()
    assert not net.a.of(events.IkeRedirected)


@pytest.mark.parametrize("early", [False, True], ids=["IKE_AUTH", "IKE_SA_INIT"])
def test_one_is_not_sent_back_where_it_came_from(early: bool) -> None:
    net = make_wire(
        make_profile("a", follow_redirects=ALLOWED), make_profile("b", redirect_to=ELSEWHERE, redirect_early=early)
    )
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now, ELSEWHERE)
    net.settle()
    net.check_agreement()
    first = wire.Message.decode(net.record[0].data)
    came = wire.find_notify(first.payloads, NotifyType.REDIRECTED_FROM)
    assert came is not None
    assert came.data == encode_gateway(ELSEWHERE)


@pytest.mark.parametrize("early", [False, True], ids=["IKE_AUTH", "IKE_SA_INIT"])
def test_to_an_address_that_is_not_allowed_nobody_goes(early: bool) -> None:
    net = call(a={"follow_redirects": (ip_network("198.51.100.0/24"),)}, b={"redirect_early": early})
    net.sleep(10)
    assert not net.a.of(events.IkeRedirected)
    assert "follow_redirects does not allow" in net.a.of(events.IkeSaFailed)[0].reason
    assert net.a.engine.counters()["redirects_refused"] >= 1


def test_a_forged_redirect_lacks_the_nonce() -> None:
    net = make_wire(make_profile("a", follow_redirects=ALLOWED), make_profile("b"))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    request = wire.Message.decode(net.flying["a"][0].data).header
    header = wire.Header(request.initiator_spi, wire.ZERO_SPI, request.exchange_type, 0x20, 0)
    for nonce in (b"", bytes(32)):
        forged = wire.Message(header, (wire.Notify(NotifyType.REDIRECT, encode_gateway(ELSEWHERE, nonce)),))
        net.a.engine.receive_datagram(forged.encode(), net.a.path_to(net.b), net.now)
    net.settle()
    # The good answer came in time.
    net.check_agreement()
    assert not net.a.of(events.IkeRedirected)


def test_an_established_initiator_is_handed_on() -> None:
    net = call(b={"redirect_to": None})
    assert net.b.engine.redirect(net.b.handle, ELSEWHERE, net.now)
    net.settle()
    (redirected,) = net.a.of(events.IkeRedirected)
    assert (redirected.target, redirected.established) == (ELSEWHERE, True)
    # What there is carries on until the owner has something else.
    net.check_agreement()
    # Who has called cannot hand on the one that was called.
    assert not net.a.engine.redirect(net.a.handle, ELSEWHERE, net.now)


def test_an_established_initiator_stays_where_it_may_not_go() -> None:
    net = call(b={"redirect_to": None})
    assert net.b.engine.redirect(net.b.handle, ip_address("203.0.113.1"), net.now)
    net.settle()
    assert not net.a.of(events.IkeRedirected)
    net.check_agreement()
    without = call(a={"follow_redirects": ()}, b={"redirect_to": None})
    assert not without.b.engine.redirect(without.b.handle, ELSEWHERE, without.now)


def test_a_redirect_does_not_spare_the_proof() -> None:
    """In IKE_AUTH it counts only behind the gateway's proof of identity."""
    net = make_wire(make_profile("a", follow_redirects=ALLOWED), make_profile("b", redirect_to=ELSEWHERE))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    net.deliver("a")

    def without_proof(payloads: Payloads) -> list[wire.Payload]:
        return [payload for payload in payloads if not isinstance(payload, wire.Authentication)]

    net.deliver_inside("b", without_proof)
    assert not net.a.of(events.IkeRedirected)
    assert net.a.of(events.IkeSaFailed)


def test_nowhere_is_no_place_to_go() -> None:
    everywhere = (ip_network("0.0.0.0/0"),)
    for target in (B, ip_address("224.0.0.1"), ip_address("0.0.0.0")):
        net = call(a={"follow_redirects": everywhere}, b={"redirect_to": target})
        assert not net.a.of(events.IkeRedirected)
        assert "leads nowhere" in net.a.of(events.IkeSaFailed)[0].reason
    assert A != B
