"""What gateways make of lifetimes: traffic goes on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.network import Network
from tests.simulation import Conditions


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


def test_traffic_that_outruns_the_rekey_waits_for_the_successor_and_nhrp_sees_nothing_of_it() -> None:
    """Twice as fast as the limit allows: from a reading of the counters to the next the hard limit is passed. The SA
    seals no packet more, the next takes over within a round trip, and the peer is not given up."""
    profile = {"child_lifetime_packets": 1000}
    network = Network(seed=5, spokes=1, nated=(), options={"profile": profile})
    network.start()
    spoke = network["s1"]
    calls: list[str] = []
    for site in (spoke, network["hub"]):
        for call in ("peer_up", "peer_down"):
            record(site.gateway.tunnels["dsvpn0"].nhrp, call, calls)
    sent = network.stream("s1", "hub", 20.0, interval=0.001)
    arrived = network.arrived("s1", "hub")
    lost = [number for number in sent if number not in arrived]
    assert set(spoke.lost) == set(network["hub"].lost) == {"no_sa"}
    assert len(lost) == spoke.lost["no_sa"] + network["hub"].lost["no_sa"]
    assert len(lost) < len(sent) / 20
    assert calls == []
    assert len(spoke.carried_out) > 5
    # What comes between two readings is the most that an SA goes beyond its limit.
    assert max(spoke.carried_out.values()) < 1000 + 2.1 / 0.001


def test_a_hard_limit_holds_while_the_peer_is_silent() -> None:
    """The delete is not answered: that does not let the SA seal on."""
    network = Network(seed=5, spokes=1, nated=(), options={"profile": {"child_lifetime": "30s"}})
    network.start()
    spoke, hub = network["s1"], network["hub"]
    network.underlay.cut(spoke.host.address, hub.host.address)
    network.simulation.run_until(lambda: not spoke.outbound, 31, "the end of the lifetime")
    assert spoke.lost.get("no_sa", 0) == 0
    network.underlay.mend(spoke.host.address, hub.host.address)
    network.simulation.run_until(lambda: bool(spoke.outbound), 60, "another CHILD_SA")


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


@pytest.mark.parametrize("nated", [(), (1,), (1, 2)])
@pytest.mark.parametrize("conditions", [Conditions(), Conditions(jitter=0.02, duplicate=0.1, reorder=0.1)])
@pytest.mark.parametrize("mobike", [True, False])
def test_reauthentication_loses_no_packet_and_nhrp_sees_nothing_of_it(
    nated: tuple[int, ...], conditions: Conditions, mobike: bool
) -> None:
    """Spoke and hub, under traffic in both directions: both move to the new SA, then the old one goes."""
    network = Network(
        seed=7,
        nated=nated,
        conditions=conditions,
        options={"profile": {"reauthentication": "60s", "mobike": mobike}},
        overrides={f"s{index}": {"nhrp": {"shortcut": False}} for index in (1, 2)},
    )
    network.start()
    network.stream("s1", "hub", 5.0, interval=0.1)
    spoke, hub = network["s1"], network["hub"]
    before = spoke.gateway.ike.snapshot(network.simulation.now)[0].ike_sa
    registered = nhrp_counters(network)
    mappings = set(hub.gateway.tunnels["dsvpn0"].mappings)
    ups: list[str] = []
    for name in ("s1", "hub"):
        nhrp = network[name].gateway.tunnels["dsvpn0"].nhrp
        for call in ("peer_up", "peer_down"):
            record(nhrp, call, ups)
    sent = network.stream("s1", "hub", 70.0, interval=0.05)
    arrived = network.arrived("s1", "hub")
    assert [number for number in sent if number not in arrived] == []
    sas = spoke.gateway.ike.snapshot(network.simulation.now)
    assert [sa.state for sa in sas] == ["established"]
    assert sas[0].ike_sa != before
    assert ups == []
    assert set(hub.gateway.tunnels["dsvpn0"].mappings) == mappings
    assert len(spoke.adjacencies) == 1
    assert len(spoke.inbound) == 1
    assert len(hub.gateway.ike.snapshot(network.simulation.now)) == 2
    assert nhrp_counters(network) == registered


def record(target: Any, name: str, log: list[str]) -> None:
    """Note every call of a method, which goes on as it is."""
    method = getattr(target, name)

    def called(*arguments: Any) -> Any:
        log.append(name)
        return method(*arguments)

    setattr(target, name, called)


def nhrp_counters(network: Network) -> dict[str, int]:
    """Registrations that the hub has seen: no more than without reauthentication."""
    counters = network["hub"].gateway.tunnels["dsvpn0"].nhrp.snapshot(network.simulation.now).counters
    return {name: value for name, value in counters.items() if "registration" in name}


def test_childless_start_brings_everything_up() -> None:
    network = Network(seed=8, nated=(1, 2), options={"profile": {"childless": "prefer", "esp": ["aes128gcm16-x25519"]}})
    network.start()
    sent = network.stream("s1", "hub", 3.0)
    assert sorted(network.arrived("s1", "hub")) == sent


def test_reauthentication_fails_while_the_hub_is_away_and_then_succeeds() -> None:
    network = Network(seed=9, spokes=1, nated=(), options={"profile": {"reauthentication": "60s", "dpd": 0}})
    network.start()
    spoke, hub = network["s1"], network["hub"]
    network.simulation.run_for(40)
    network.underlay.cut(spoke.host.address, hub.host.address)
    network.simulation.run_for(60)
    network.underlay.mend(spoke.host.address, hub.host.address)
    network.simulation.run_until(lambda: network.registered(spoke), 120, "the spoke being back")
    network.simulation.run_for(10)
    assert network.path("s1", "hub") == ("s1", "hub")
    for site in (spoke, hub):
        assert len(site.gateway.peers) == 1
        assert len(site.gateway.ike.snapshot(network.simulation.now)) == 1


@pytest.mark.parametrize("nated", [(), (1,)])
def test_reauthentication_of_an_idle_peer(nated: tuple[int, ...]) -> None:
    """Without a packet by the new SA, the end of the old one moves the peer that was called."""
    network = Network(seed=10, spokes=1, nated=nated, options={"profile": {"reauthentication": "60s"}})
    network.start()
    spoke, hub = network["s1"], network["hub"]
    for _ in range(3):
        before = set(spoke.inbound) | set(hub.inbound)
        network.simulation.run_for(60)
        assert before.isdisjoint(set(spoke.inbound) | set(hub.inbound))
        assert len(spoke.inbound) == len(hub.inbound) == 1
        for one, other in ((spoke, hub), (hub, spoke)):
            (sealing,) = {sa.spi for sa in one.outbound.values()}
            assert sealing in other.inbound
        assert network.registered(spoke)
    assert network.path("s1", "hub") == ("s1", "hub")
    assert network.path("hub", "s1") == ("hub", "s1")


def test_a_caller_that_comes_back_under_the_old_sa_is_sent_to_by_the_new() -> None:
    """Killed and started anew without a word: what it sends by its new SA moves the hub, and nothing else does."""
    network = Network(seed=11, spokes=1, nated=())
    network.start()
    spoke, hub = network["s1"], network["hub"]
    spoke.kill()
    network.simulation.run_for(2)
    spoke.start()
    network.simulation.run_until(lambda: network.registered(spoke), 30, "the spoke being back")
    network.simulation.run_for(5)
    (sealing,) = {sa.spi for sa in hub.outbound.values()}
    assert sealing in spoke.inbound
    assert network.path("hub", "s1") == ("hub", "s1")
