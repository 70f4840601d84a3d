"""Identities: what a certificate carries, whom a configuration lets in, and whose pre-shared key is whose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509

from dsvpn.errors import MisuseError
from dsvpn.ike import events
from dsvpn.ike.identity import Identity
from tests.ike.authority import certified
from tests.ike.certified import A_NAME, B_NAME, answered, gateway, refused
from tests.ike.harness import Wire, make_profile, make_wire

# -- identities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "sans"),
    [
        ("gw.example.net", ("gw.example.net",)),
        ("GW.example.NET", ("other.example.net", "gw.EXAMPLE.net")),
        ("admin@example.net", ("admin@example.net",)),
        ("192.0.2.1", ("192.0.2.1",)),
        ("2001:db8::7", ("2001:db8::7",)),
        ("CN=gw,O=Test", ()),
        ("O=test, CN=GW", ("gw.example.net",)),
    ],
)
def test_identities_that_a_certificate_carries(identity: str, sans: tuple[str, ...]) -> None:
    net = make_wire(certified(identity, gateway("gw", sans=sans)), certified(B_NAME, gateway(B_NAME), identity), seed=3)
    net.connect()
    assert net.b.of(events.IkeSaEstablished)[0].remote_identity == str(Identity.parse(identity))


def test_a_key_id_is_the_subject_key_identifier() -> None:
    identifier = x509.SubjectKeyIdentifier(b"\xab\xcd\x01")
    holder = gateway("gw", extensions=[(identifier, False)])
    make_wire(certified("keyid:0xabcd01", holder), certified(B_NAME, gateway(B_NAME), "keyid:0xabcd01")).connect()
    with pytest.raises(MisuseError, match="does not carry the identity keyid:0x"):
        certified("keyid:0xabcd02", holder)


@pytest.mark.parametrize(
    ("identity", "sans"),
    [
        ("gw", ()),  # the common name is no FQDN
        ("a.example.net", ("*.example.net",)),
        ("192.0.2.2", ("192.0.2.1",)),
        ("other@example.net", ("gw@example.net", "example.net")),
        ("CN=other,O=Test", ()),
        ("CN=gw", ()),
        ("CN=*,O=Test", ()),
        ("keyid:gw", ()),
    ],
)
@pytest.mark.parametrize("role", ["initiator", "responder"])
def test_identities_that_a_certificate_does_not_carry(identity: str, sans: tuple[str, ...], role: str) -> None:
    holder = gateway("gw", sans=sans or ("unrelated.example.net",))
    claimed = Identity.parse(identity)
    mine = certified("CN=gw,O=Test", holder)
    # What an honest gateway refuses to be configured with.
    object.__setattr__(mine, "local_identity", claimed)
    good = certified(B_NAME, gateway(B_NAME))
    if role == "initiator":
        reason = refused(make_wire(mine, good))
    else:
        reason = answered(make_wire(good, mine))
    assert reason.startswith(f"peer says it is {claimed}, but its certificate is of CN=gw,O=Test")


@pytest.mark.parametrize(
    ("remote", "taken"),
    [
        ("*.example.net", True),
        ("*.EXAMPLE.net", True),
        ("*", True),
        ("a.example.net", True),
        ("*.example.com", False),
        ("*.a.example.net", False),
        ("b.example.net", False),
        ("*@example.net", False),
        ("CN=*,O=Test", False),
    ],
)
def test_the_configured_identity_decides(remote: str, taken: bool) -> None:
    net = make_wire(certified(A_NAME, gateway(A_NAME)), certified(B_NAME, gateway(B_NAME), remote))
    if taken:
        net.connect()
    else:
        assert refused(net) == "no profile is for this identity"
    other = make_wire(certified(B_NAME, gateway(B_NAME), remote), certified(A_NAME, gateway(A_NAME)))
    if taken:
        other.connect()
    else:
        assert remote in answered_identity(other) or "AUTHENTICATION_FAILED" in other.a.of(events.IkeSaFailed)[0].reason


def answered_identity(net: Wire) -> str:
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    (failed,) = net.a.of(events.IkeSaFailed)
    net.sleep(200)
    assert not net.b.established
    return failed.reason


def test_a_distinguished_name_with_wildcards() -> None:
    net = make_wire(certified("CN=gw,O=Test", gateway("gw")), certified(B_NAME, gateway(B_NAME), "CN=*, O=Test"))
    net.connect()
    assert net.b.of(events.IkeSaEstablished)[0].remote_identity == "CN=gw,O=Test"


# -- shared keys by identity -------------------------------------------------------------------------------


def keys(**named: bytes) -> Any:
    from dsvpn.ike.identity import parse_remote_identity

    return tuple((parse_remote_identity(who.replace("_", ".").replace("any", "*")), key) for who, key in named.items())


def test_shared_keys_by_identity() -> None:
    hub = make_profile("hub", psk=b"everybody's", psks=keys(a_net=b"for a", any_net=b"for the net"))
    for who, key, good in (
        ("a.net", b"for a", True),
        ("a.net", b"for the net", False),
        ("a.net", b"everybody's", False),
        ("b.net", b"for the net", True),
        ("b.net", b"everybody's", False),
        ("c.org", b"everybody's", True),
    ):
        net = make_wire(make_profile(who, "hub", psk=key), hub)
        if good:
            net.connect()
        else:
            assert refused(net) == "peer has another pre-shared key"
    # The hub calls one that it knows by name.
    caller = replace(hub, remote_identity=Identity.parse("a.net"))
    make_wire(caller, make_profile("a.net", psk=b"for a")).connect()


def test_without_a_key_for_a_peer() -> None:
    hub = make_profile("hub", psk=b"", psks=keys(a_net=b"for a"))
    assert refused(make_wire(make_profile("b.net"), hub)) == "no pre-shared key is for b.net"
    net = make_wire(hub, make_profile("a.net", psk=b"for a"))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    (failed,) = net.a.of(events.IkeSaFailed)
    assert "no pre-shared key is for a peer that is not known yet" in failed.reason
    net.a.check_spis()
