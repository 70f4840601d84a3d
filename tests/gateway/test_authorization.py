"""Identities that IKE proved, rules of the configuration, and what comes of both."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from dsvpn.config.model import TunnelConfig
from dsvpn.gateway.authorization import Authorizer
from dsvpn.ike.identity import Identity, IdentityType
from dsvpn.nhrp.authorization import Claim
from tests.gateway.model import address
from tests.gateway.network import Network
from tests.ike.authority import certified, root, trust
from tests.ike.harness import make_wire


def nets(*texts: str) -> tuple[Any, ...]:
    return tuple(ip_network(text) for text in texts)


def authorizer(**authorize: Any) -> Authorizer:
    rules = {name.replace("_", "."): grant for name, grant in authorize.items()}
    return Authorizer(TunnelConfig.model_validate({"address": "10.0.0.1/24", "source": "eth0", "authorize": rules}))


S1 = Identity.parse("s1.example.net")


def test_without_rules_an_identity_may_have_any_free_address() -> None:
    assert authorizer().claim(S1, ()) == Claim("s1.example.net")
    assert authorizer().claim(None, ()) is None


def test_without_rules_tunnel_addresses_in_the_certificate_bind() -> None:
    certificate = nets("10.0.0.11/32", "192.0.2.11/32")
    assert authorizer().claim(S1, certificate) == Claim("s1.example.net", nets("10.0.0.11/32"))
    assert authorizer().claim(S1, nets("192.0.2.11/32")) == Claim("s1.example.net")


def test_delegated_prefixes_say_everything_unless_there_are_rules() -> None:
    delegated = nets("10.0.0.11/32", "172.16.1.0/24")
    assert authorizer().claim(S1, nets("192.0.2.11/32"), delegated) == Claim("s1.example.net", delegated, delegated)
    assert authorizer().claim(S1, (), ()) == Claim("s1.example.net", (), ())
    rules = authorizer(s1_example_net="certificate", s2_example_net="10.0.0.12")
    assert rules.claim(S1, (), delegated) == Claim("s1.example.net", delegated, delegated)
    other = nets("10.0.0.12/32")
    assert rules.claim(Identity.parse("s2.example.net"), (), delegated) == Claim("s2.example.net", other, other)


def test_rules_say_everything() -> None:
    rules = authorizer(
        s1_example_net=["10.0.0.11", "172.16.1.0/24"], **{"*.example.net": "certificate", "*": ["10.0.0.99"]}
    )
    own = nets("10.0.0.11/32", "172.16.1.0/24")
    assert rules.claim(S1, nets("10.0.0.50/32")) == Claim("s1.example.net", own, own)
    assert rules.claim(Identity.parse("S1.EXAMPLE.NET"), ()) == Claim("s1.example.net", own, own)
    other = nets("10.0.0.12/32")
    assert rules.claim(Identity.parse("s2.example.net"), other) == Claim("s2.example.net", other, other)
    last = nets("10.0.0.99/32")
    assert rules.claim(Identity.parse("192.0.2.1"), ()) == Claim("192.0.2.1", last, last)


def test_who_is_in_no_rule_may_nothing() -> None:
    assert authorizer(s1_example_net="10.0.0.11").claim(Identity.parse("s2.example.net"), ()) == Claim(
        "s2.example.net", (), ()
    )


def test_distinguished_names() -> None:
    rules = authorizer(**{"CN=s1,O=Example": "10.0.0.11", "CN=*,O=Example": "10.0.0.12"})
    for name, prefix in (("CN=S1, O=example", "10.0.0.11/32"), ("CN=s2,O=Example", "10.0.0.12/32")):
        claim = rules.claim(Identity.parse(name), ())
        assert claim is not None
        assert claim.addresses == nets(prefix)


def test_identities_of_two_types_are_two() -> None:
    names = set()
    for identity in (Identity.parse("192.0.2.1"), Identity(IdentityType.FQDN, b"192.0.2.1")):
        claim = authorizer().claim(identity, ())
        assert claim is not None
        names.add(claim.identity)
    assert len(names) == 2


def test_the_addresses_of_the_certificate_come_with_the_identity() -> None:
    ca = root()
    ours = ca.issue("a", ("a.example.net", "10.0.0.11", "2001:db8::11"))
    theirs = ca.issue("b", ("b.example.net",))
    net = make_wire(
        certified("a.example.net", ours, trust=trust(ca)), certified("b.example.net", theirs, trust=trust(ca))
    )
    net.connect()
    [event] = net.b.established.values()
    assert event.identity == Identity.parse("a.example.net")
    assert event.certified == nets("10.0.0.11/32", "2001:db8::11/128")
    [event] = net.a.established.values()
    assert event.certified == ()


def test_a_spoke_cannot_take_the_address_of_another() -> None:
    network = Network(seed=51, spokes=3, nated=())
    network.start()
    thief = network["s3"]
    thief.stop()
    thief.config["tunnel"]["dsvpn0"]["address"] = ["10.0.0.11/24"]
    thief.start()
    network.simulation.run_for(10)
    hub = network["hub"].gateway
    known = hub.tunnels["dsvpn0"].mappings[address("10.0.0.11")]
    assert known.peer is not None
    assert known.peer.identity == "s1"
    status = hub.status(network.simulation.now)["nhrp"]["dsvpn0"]
    [denial] = status["denials"]
    assert (denial["identity"], denial["action"], denial["protocol"]) == ("s3", "register", "10.0.0.11")
    assert thief.gateway.status(network.simulation.now)["nhrp"]["dsvpn0"]["nhs"][0]["state"] == "refused"
    assert network.path("s2", "s1") is not None


def test_a_spoke_that_restarts_gets_its_address_back() -> None:
    network = Network(seed=52, spokes=2, nated=())
    network.start()
    network["s1"].kill()
    network.simulation.run_for(5)
    network.underlay.renumber(network["s1"].host, address("198.51.100.11"))
    network["s1"].start()
    network.wait_registered()
    assert not network["hub"].gateway.status(network.simulation.now)["nhrp"]["dsvpn0"]["denials"]


@pytest.mark.parametrize("allowed", [True, False])
def test_rules_of_a_hub(allowed: bool) -> None:
    lan = "172.16.2.0/24" if allowed else "172.16.9.0/24"
    rules = {"s1": ["10.0.0.11", "172.16.1.0/24"], "s2": ["10.0.0.12", lan]}
    network = Network(seed=53, nated=(), overrides={"hub": {}})
    network["hub"].config["tunnel"]["dsvpn0"]["authorize"] = rules
    network.start()
    sent = network.stream("s1", "s2", 4.0)
    assert sorted(network.arrived("s1", "s2")) == sent
    # A LAN that a spoke may not claim is reached by the hub alone.
    assert network.path("s1", "s2") == (("s1", "s2") if allowed else ("s1", "hub", "s2"))
    denials = network["hub"].gateway.status(network.simulation.now)["nhrp"]["dsvpn0"]["denials"]
    assert [(d["identity"], d["action"]) for d in denials] == ([] if allowed else [("s2", "answer")])
