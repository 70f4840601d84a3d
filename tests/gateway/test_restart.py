"""A gateway is killed and comes back: its peers notice long before dead peer detection (RFC 6290)."""

from __future__ import annotations

import pytest

from tests.gateway.network import Network

#: Dead peer detection would take 60 s and a whole retransmission schedule.
SLOW = {"dpd": "60s"}


def network_with_tokens(seed: int, nated: tuple[int, ...], tokens: bool) -> Network:
    network = Network(seed=seed, nated=nated, options={"profile": SLOW})
    for name, site in network.sites.items():
        site.token_secret = f"the state directory of {name}".encode() if tokens else b""
    network.start()
    return network


@pytest.mark.parametrize("nated", [(), (1,)], ids=["public", "s1 behind NAT"])
def test_spokes_come_back_within_seconds_of_the_hub(nated: tuple[int, ...]) -> None:
    network = network_with_tokens(41, nated, True)
    network["hub"].kill()
    network.simulation.run_for(2.0)
    network["hub"].start()
    restarted = network.simulation.now
    # One packet of each spoke is enough.
    for name in ("s1", "s2"):
        network[name].send(network.packet(name, "hub"))
    network.wait_registered(10.0)
    assert network.simulation.now - restarted < 3.0
    for name in ("s1", "s2"):
        assert network[name].gateway.ike.counters()["crash_tokens_accepted"] == 1
        assert network.path(name, "hub") == (name, "hub")
        assert network.path("hub", name) == ("hub", name)


def test_without_tokens_it_takes_dead_peer_detection() -> None:
    """The comparison: what the other test saves."""
    network = network_with_tokens(42, (), False)
    network["hub"].kill()
    network.simulation.run_for(2.0)
    network["hub"].start()
    restarted = network.simulation.now
    for name in ("s1", "s2"):
        network[name].send(network.packet(name, "hub"))
    network.wait_registered(120.0)
    assert network.simulation.now - restarted > 10.0


def test_a_shortcut_peer_that_was_killed_is_noticed_too() -> None:
    network = network_with_tokens(43, (), True)
    network.stream("s1", "s2", 2.0)
    assert network.path("s1", "s2") == ("s1", "s2")
    network["s2"].kill()
    network.simulation.run_for(1.0)
    network["s2"].start()
    network.wait_registered(10.0)
    network.stream("s1", "s2", 3.0, 0.1)
    assert network.path("s1", "s2") == ("s1", "s2")
    assert network.path("s2", "s1") == ("s2", "s1")
