"""IPv4 and IPv6 as tunnel and as public addresses."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from tests.gateway.network import Network

COMBINATIONS = [(4, 4), (4, 6), (6, 4), (6, 6)]


@pytest.mark.parametrize(("tunnel", "public"), COMBINATIONS)
@pytest.mark.parametrize("ipsec", [True, False], ids=["IPsec", "plain GRE"])
def test_register_redirect_resolve_and_go_directly(tunnel: int, public: int, ipsec: bool) -> None:
    network = Network(seed=60, nated=(), tunnel=tunnel, public=public, options={"ipsec": ipsec})
    network.start()
    sent = network.stream("s1", "s2", 3.0)
    arrived = network.arrived("s1", "s2")
    assert sorted(arrived) == sent
    assert arrived[sent[0]].trace == ("s1", "hub", "s2")
    assert network.path("s1", "s2") == ("s1", "s2")
    assert network.path("s2", "s1") == ("s2", "s1")
    lan = ip_network("172.16.2.0/24" if tunnel == 4 else "fd16:0:0:2::/64")
    assert ("dsvpn0", lan) in network["s1"].kernel_shortcuts
    for site in network.sites.values():
        status = site.gateway.status(network.simulation.now)["nhrp"]["dsvpn0"]
        assert status["denials"] == []
        assert not [name for name in status["counters"] if name.startswith(("drop.", "error."))]


@pytest.mark.parametrize(("tunnel", "public"), COMBINATIONS)
def test_a_spoke_that_stops_is_purged(tunnel: int, public: int) -> None:
    network = Network(seed=61, nated=(), tunnel=tunnel, public=public)
    network.start()
    network.stream("s1", "s2", 3.0)
    network["s2"].stop()
    network.simulation.run_for(5)
    assert network["s1"].kernel_shortcuts == {}
    own = network["s2"].gateway.tunnels["dsvpn0"].config.addresses[0].ip
    for name in ("hub", "s1"):
        assert own not in network[name].gateway.tunnels["dsvpn0"].mappings


@pytest.mark.parametrize(("tunnel", "public"), COMBINATIONS)
def test_a_tunnel_address_is_reached_directly(tunnel: int, public: int) -> None:
    """Non-shortcut mode: the remote spoke's tunnel address is the next hop."""
    network = Network(seed=62, nated=(), tunnel=tunnel, public=public)
    network.start()
    target = network["s2"].gateway.tunnels["dsvpn0"].config.addresses[0].ip
    network["s1"].static.insert(0, ("dsvpn0", network["s2"].lan, target))
    network["s1"].gateway.route_added("dsvpn0", network["s2"].lan, target, network.simulation.now)
    network["s1"]._flush()
    sent = network.stream("s1", "s2", 3.0)
    assert sorted(network.arrived("s1", "s2")) == sent
    assert network.path("s1", "s2") == ("s1", "s2")
