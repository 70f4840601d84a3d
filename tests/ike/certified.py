"""Handshakes of two engines with certificates, and how they fail."""

from __future__ import annotations

from typing import Any

import pytest

from dsvpn.errors import PeerError
from dsvpn.ike import events
from dsvpn.wire import ikev2 as wire
from tests.ike.authority import NOW, Holder, root, trust
from tests.ike.harness import Change, Wire

A_NAME, B_NAME = "a.example.net", "b.example.net"


def gateway(common: str, *, by: Holder | None = None, sans: tuple[str, ...] | None = None, **options: Any) -> Holder:
    return (by or root()).issue(common, (common,) if sans is None else sans, **options)


def refused(net: Wire) -> str:
    """Why the responder refused; the initiator learns the wire code alone."""
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    (event,) = net.b.of(events.IkeAuthenticationRefused)
    (failed,) = net.a.of(events.IkeSaFailed)
    assert "AUTHENTICATION_FAILED" in failed.reason
    assert not net.a.established
    assert not net.b.established
    net.sleep(200)
    net.a.check_spis()
    net.b.check_spis()
    return event.reason


def answered(net: Wire, change: Change | None = None) -> str:
    """Why the initiator refused the responder's answer."""
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    for sender in "aba":
        net.deliver(sender)
    if change is not None:
        net.deliver_inside("b", change)
    net.settle()
    (failed,) = net.a.of(events.IkeSaFailed)
    net.sleep(200)
    assert not net.a.established
    assert not net.b.established
    net.a.check_spis()
    net.b.check_spis()
    return failed.reason


def tampered(net: Wire, change: Change) -> str:
    """Why the responder refused an altered IKE_AUTH request."""
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    net.deliver_inside("a", change)
    net.settle()
    (event,) = net.b.of(events.IkeAuthenticationRefused)
    assert not net.b.established
    net.sleep(200)
    assert not net.a.established
    net.a.check_spis()
    net.b.check_spis()
    return event.reason


def chain_refused(*holders: Holder, **options: Any) -> str:
    with pytest.raises(PeerError) as raised:
        trust(**options).validate([holder.certificate.der for holder in holders], NOW)
    return str(raised.value)


def alter_proof(change: Any) -> Change:
    return lambda payloads: [
        wire.Authentication(*change(p.method, p.data)) if isinstance(p, wire.Authentication) else p for p in payloads
    ]
