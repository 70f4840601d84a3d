"""What gateways make of CHILD_SAs that stand side by side for their workers (RFC 9611)."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from dsvpn.gateway.peers import Peer
from dsvpn.observe.tables import render
from tests.gateway.model import Site
from tests.gateway.network import Network
from tests.gateway.test_roaming import NEW, renumber
from tests.simulation import Conditions


def make(workers: dict[str, int], seed: int = 9611, **options: Any) -> Network:
    """A network whose sites have so many workers that seal; those that are not named have one."""
    network = Network(seed=seed, spokes=1, nated=options.pop("nated", ()), **options)
    for name, count in workers.items():
        network[name].encap_workers = count
    network.start()
    return network


def peer_of(site: Site) -> Peer:
    (peer,) = site.gateway.peers
    return peer


def adjacency_of(site: Site) -> int:
    (adjacency,) = peer_of(site).adjacencies.values()
    return adjacency


def sealing(site: Site) -> dict[int, int]:
    """The outbound SPIs of the only peer as the data plane has them, by resource."""
    if not len(site.gateway.peers):
        assert not site.workers
        return {}
    number = adjacency_of(site)
    workers = {resource: sa.spi for (adjacency, resource), sa in site.workers.items() if adjacency == number}
    fallback = {0: site.outbound[number].spi} if number in site.outbound else {}
    return fallback | workers


def check(network: Network) -> None:
    """Each seals with SAs that differ and that the other opens."""
    ends = network["s1"], network["hub"]
    for end, other in (ends, ends[::-1]):
        spis = sealing(end)
        assert len(set(spis.values())) == len(spis)
        assert set(spis.values()) <= set(other.inbound)
        shown = end.gateway.status(network.simulation.now)["peers"]["peers"][0]["sealing"]
        assert shown == {str(resource): f"{spi:08x}" for resource, spi in sorted(spis.items())}


def shown(site: Site, section: str) -> list[str]:
    """The lines of `dsvpn show SECTION` on a wide terminal."""
    status = site.gateway.status(site.simulation.now)
    for peer in status["peers"]["peers"]:
        peer["traffic"] = {}
    console = Console(file=io.StringIO(), width=300)
    for table in render(section, status[section]):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def lossless(network: Network, seconds: float) -> None:
    sent = network.stream("s1", "hub", seconds)
    arrived = network.arrived("s1", "hub")
    assert [number for number in sent if number not in arrived] == []
    assert network["s1"].lost == network["hub"].lost == {}


def living(site: Site, now: float) -> list[tuple[int, int, int]]:
    """IKE SA, inbound SPI and place of each CHILD_SA."""
    return [
        (status.ike_sa, child.inbound_spi, child.resource)
        for status in site.gateway.ike.snapshot(now)
        for child in status.children
        if child.state == "installed"
    ]


@pytest.mark.parametrize("nated", [(), (1,)])
@pytest.mark.parametrize("conditions", [Conditions(), Conditions(jitter=0.02, duplicate=0.1, reorder=0.1)])
def test_every_worker_gets_an_sa_of_its_own(nated: tuple[int, ...], conditions: Conditions) -> None:
    network = make({"s1": 4, "hub": 4}, nated=nated, conditions=conditions)
    assert list(sealing(network["s1"])) == [0], "nothing but NHRP has gone yet"
    lossless(network, 10.0)
    for name in ("s1", "hub"):
        assert sorted(sealing(network[name])) == [0, 1, 2, 3]
        used = network[name].carried_out
        lossless(network, 1.0)
        assert all(used[spi] > 5 for spi in sealing(network[name]).values()), "each worker uses its own"
        columns, peer = (line.split() for line in shown(network[name], "peers")[1:3])
        assert "SAs" in columns
        assert "4" in peer
        children = shown(network[name], "sa")[-4:]
        assert [line.split()[3] for line in children] == ["any", "1", "2", "3"]
    check(network)


@pytest.mark.parametrize(("spoke", "hub"), [(4, 1), (1, 4), (2, 4)])
def test_the_end_with_more_workers_decides(spoke: int, hub: int) -> None:
    network = make({"s1": spoke, "hub": hub})
    lossless(network, 15.0)
    # Who has one worker and calls does not speak of several.
    expected = 1 if spoke == 1 else max(spoke, hub)
    for name in ("s1", "hub"):
        assert len(sealing(network[name])) == expected
    check(network)


def test_an_idle_peer_keeps_one() -> None:
    network = make({"s1": 4, "hub": 4})
    network.simulation.run_for(300.0)
    for name in ("s1", "hub"):
        assert list(sealing(network[name])) == [0]


def test_a_limit_of_one_end_holds_for_both() -> None:
    network = make({"s1": 8, "hub": 8}, overrides={"hub": {"profile": {"per_resource_limit": 3}}})
    lossless(network, 60.0)
    for name in ("s1", "hub"):
        assert sorted(sealing(network[name])) == [0, 1, 2]
    check(network)


@pytest.mark.parametrize("who", ["s1", "hub"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_any_may_be_deleted_and_the_others_go_on(who: str, place: int) -> None:
    network = make({"s1": 3, "hub": 3})
    lossless(network, 10.0)
    site = network[who]
    ((ike_sa, spi),) = [(sa, spi) for sa, spi, resource in living(site, network.simulation.now) if resource == place]
    site.gateway.ike.delete_child(ike_sa, spi, network.simulation.now)
    site.gateway.handle_timer(network.simulation.now)
    site._flush()
    ups = peer_of(site).since
    # What the other end had under way for the deleted one is lost, and nothing after that.
    network.stream("s1", "hub", 1.0)
    for name in ("s1", "hub"):
        network[name].lost.clear()
        assert len(sealing(network[name])) == 2
        assert 0 in sealing(network[name])
    check(network)
    lossless(network, 5.0)
    assert peer_of(site).since == ups, "the peer was up all the time"
    lossless(network, 150.0)
    for name in ("s1", "hub"):
        assert sorted(sealing(network[name])) == [0, 1, 2]
    check(network)


def test_all_of_them_deleted_one_after_the_other() -> None:
    network = make({"s1": 4, "hub": 4})
    lossless(network, 10.0)
    hub = network["hub"]
    for left in (3, 2, 1, 0):
        ike_sa, spi, _ = living(hub, network.simulation.now)[0]
        hub.gateway.ike.delete_child(ike_sa, spi, network.simulation.now)
        hub.gateway.handle_timer(network.simulation.now)
        hub._flush()
        network.simulation.run_for(0.2)
        for name in ("s1", "hub"):
            assert len(sealing(network[name])) == left
            assert not left or 0 in sealing(network[name])
    assert not peer_of(network["s1"]).up
    network.simulation.run_until(lambda: peer_of(network["s1"]).up, 10, "another CHILD_SA")
    network.wait_registered()
    network.stream("s1", "hub", 1.0)
    network["s1"].lost.clear()
    hub.lost.clear()
    lossless(network, 10.0)
    check(network)


def test_each_is_rekeyed_by_what_it_carries() -> None:
    profile = {"child_lifetime_packets": 1000}
    network = make({"s1": 3, "hub": 3}, options={"profile": profile})
    lossless(network, 10.0)
    before = set(sealing(network["s1"]).values())
    lossless(network, 90.0)
    assert not before & set(sealing(network["s1"]).values()), "each has a successor"
    for name in ("s1", "hub"):
        assert sorted(sealing(network[name])) == [0, 1, 2]
        assert max(network[name].carried_out.values()) < 1000
    check(network)


def test_ages_rekey_them_all() -> None:
    network = make({"s1": 4, "hub": 4}, options={"profile": {"child_lifetime": "30s", "ike_lifetime": "50s"}})
    lossless(network, 120.0)
    for name in ("s1", "hub"):
        assert sorted(sealing(network[name])) == [0, 1, 2, 3]
        assert len(living(network[name], network.simulation.now)) == 4
    check(network)


def test_reauthentication_begins_with_one_and_makes_the_others_anew() -> None:
    network = make({"s1": 3, "hub": 3}, options={"profile": {"reauthentication": "60s"}})
    lossless(network, 10.0)
    before = set(sealing(network["s1"]).values())
    lossless(network, 80.0)
    assert not before & set(sealing(network["s1"]).values())
    for name in ("s1", "hub"):
        assert sorted(sealing(network[name])) == [0, 1, 2]
    check(network)


def test_all_of_them_follow_the_peer_to_another_address() -> None:
    network = make({"s1": 4, "hub": 4})
    lossless(network, 10.0)
    before = {one for one, _, _ in living(network["s1"], network.simulation.now)}
    renumber(network, "s1", NEW)
    network.simulation.run_for(1.0)
    network["s1"].lost.clear()
    network["hub"].lost.clear()
    lossless(network, 3.0)
    after = living(network["s1"], network.simulation.now)
    assert {one for one, _, _ in after} == before
    assert sorted(resource for _, _, resource in after) == [0, 1, 2, 3]
    assert sorted(sealing(network["s1"])) == sorted(sealing(network["hub"])) == [0, 1, 2, 3]
    check(network)


def test_a_peer_that_has_started_anew_begins_anew() -> None:
    """INITIAL_CONTACT ends them all, and nothing of the old ones seals."""
    network = make({"s1": 4, "hub": 4})
    lossless(network, 10.0)
    before = set(sealing(network["hub"]).values())
    network["s1"].kill()
    network["s1"].start()
    network.wait_registered()
    assert not before & set(sealing(network["hub"]).values())
    for name in ("s1", "hub"):
        network[name].lost.clear()
    lossless(network, 15.0)
    for name in ("s1", "hub"):
        assert sorted(sealing(network[name])) == [0, 1, 2, 3]
    check(network)


def test_a_peer_that_is_let_go_leaves_nothing() -> None:
    network = make({"s1": 4, "hub": 4})
    lossless(network, 10.0)
    network["s1"].stop()
    network.simulation.run_for(1.0)
    hub = network["hub"]
    assert not hub.workers
    assert not hub.outbound
    assert not hub.inbound
    assert not hub.spis


@pytest.mark.parametrize("seed", range(4))
def test_gateways_of_all_sizes_on_a_bad_network(seed: int) -> None:
    """Rekeys of both kinds, authentication anew, calls that cross and a restart, with losses: when the network is well
    again, nothing is lost. The model sees to it that the fallback comes first and goes last."""
    profile = {"child_lifetime": "40s", "ike_lifetime": "70s", "reauthentication": "90s"}
    network = Network(
        seed=seed,
        nated=((), (1,), (1, 2))[seed % 3],
        conditions=Conditions(jitter=0.03, loss=0.03, duplicate=0.1, reorder=0.1),
        options={"profile": profile},
    )
    chance = network.simulation.random
    for site in network.sites.values():
        site.encap_workers = chance.choice([1, 2, 4, 8])
    network["s1"].encap_workers = 4
    network.start()
    network.stream("s1", "s2", 30.0, interval=0.1)
    network["s2"].kill()
    network["s2"].start()
    network.wait_registered(120)
    network.stream("s1", "s2", 30.0, interval=0.1)
    network.underlay.conditions = Conditions()
    network.stream("s1", "s2", 30.0, interval=0.1)
    sent = network.stream("s1", "s2", 20.0)
    arrived = network.arrived("s1", "s2")
    assert [number for number in sent if number not in arrived] == []
    for site in network.sites.values():
        for peer in site.gateway.peers:
            assert len(peer.children) <= 3 * 8
