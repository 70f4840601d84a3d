"""What gateways make of lifetimes: traffic goes on."""

from __future__ import annotations

from tests.gateway.network import Network


def test_limits_by_packets_rekey_under_traffic_without_loss() -> None:
    network = Network(seed=5, nated=(), options={"profile": {"child_lifetime_packets": 1000}})
    network.start()
    network.stream("s1", "s2", 1.0)
    before = {
        network[name].outbound[number].spi for name in ("s1", "s2") for number in direct_adjacencies(network, name)
    }
    sent = network.stream("s1", "s2", 60.0)
    arrived = network.arrived("s1", "s2")
    assert [number for number in sent if number not in arrived] == []
    for name in ("s1", "s2"):
        # Three thousand packets each way: rekeyed three times and more, each time before the limit.
        for number in direct_adjacencies(network, name):
            assert network[name].outbound[number].spi not in before
        assert max(network[name].carried_out.values()) < 1000
        assert network[name].lost == {}


def direct_adjacencies(network: Network, name: str) -> list[int]:
    """The adjacencies of a spoke that do not lead to the hub."""
    adjacencies = network[name].adjacencies.items()
    return [number for number, one in adjacencies if one.path.remote.address != network["hub"].host.address]


def test_a_child_sa_that_is_deleted_comes_again() -> None:
    """By its hard limit, or because the peer wants it so: the IKE SA makes another, each time a little later."""
    hub = {"nhrp": {"map": [{"protocol": "10.0.0.11", "nbma": "192.0.2.11"}]}}
    network = Network(seed=6, spokes=1, nated=(), overrides={"hub": hub})
    network.start()
    network.simulation.run_for(10.0)
    spoke = network["s1"]
    before = {status.ike_sa for status in spoke.gateway.ike.snapshot(network.simulation.now)}
    for _ in range(3):
        for status in spoke.gateway.ike.snapshot(network.simulation.now):
            for child in status.children:
                spoke.gateway.ike.delete_child(status.ike_sa, child.inbound_spi, network.simulation.now)
        spoke._flush()
        network.simulation.run_for(0.2)
        assert not spoke.outbound
        network.simulation.run_until(lambda: bool(spoke.outbound), 5, "another CHILD_SA")
        network.simulation.run_for(1.0)
        assert network.path("s1", "hub") == ("s1", "hub")
        assert network.path("hub", "s1") == ("hub", "s1")
    assert {status.ike_sa for status in spoke.gateway.ike.snapshot(network.simulation.now)} == before
