"""Several hubs: fail-over when one falls silent, fail-back when it is well, both at once."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from dsvpn.addresses import Address
from dsvpn.gateway.nhs import NhsHealth, Standing
from tests.gateway.model import Packet, Site, address, site_config
from tests.simulation import Conditions, Simulation, Underlay

HUBS = {"hub1": ("10.0.0.1", "192.0.2.1"), "hub2": ("10.0.0.2", "192.0.2.2")}
SUMMARY = ip_network("172.16.0.0/12")
#: What the issue of a dead hub may cost the traffic that goes by it, seconds.
RECOVERY = 3.0


class TwoHubs:
    """hub1 and hub2, spokes s1 and s2 that register with both; the summary leads to hub1."""

    def __init__(self, seed: int, *, priorities: tuple[int, int] = (0, 1), **nhrp: Any) -> None:
        self.simulation = Simulation(seed)
        self.underlay = Underlay(self.simulation, Conditions())
        self.sites: dict[str, Site] = {}
        self.number = 0
        for name, (tunnel, nbma) in HUBS.items():
            self._site(name, tunnel, nbma, 0, site_config(name, tunnel, hub=None))
        servers = [
            {"protocol": tunnel, "nbma": nbma, "priority": priority}
            for (tunnel, nbma), priority in zip(HUBS.values(), priorities, strict=True)
        ]
        for index in (1, 2):
            tunnel = f"10.0.0.{10 + index}"
            options = {"nhs": servers} | nhrp
            config = site_config(f"s{index}", tunnel, hub=("10.0.0.1", "192.0.2.1"), nhrp=options)
            spoke = self._site(f"s{index}", tunnel, f"192.0.2.{10 + index}", index, config)
            spoke.static.append(("dsvpn0", SUMMARY, address("10.0.0.1")))
            for name in HUBS:
                self.sites[name].static.append(("dsvpn0", spoke.lan, address(tunnel)))

    def _site(self, name: str, tunnel: str, nbma: str, index: int, config: dict[str, Any]) -> Site:
        site = Site(self.simulation, name, config, ip_network(f"172.16.{index}.0/24"))
        site.attach(self.underlay, address(nbma))
        self.sites[name] = site
        return site

    def start(self) -> None:
        for site in self.sites.values():
            site.start()
        self.simulation.run_until(
            lambda: all(self.standing(spoke, hub) == "reliable" for spoke in ("s1", "s2") for hub in HUBS),
            60,
            "both spokes at both hubs",
        )
        self.simulation.run_for(2.0)  # the first probes are answered

    def standing(self, spoke: str, hub: str) -> str:
        health = self.sites[spoke].gateway.tunnels["dsvpn0"].health
        return health.standing(address(HUBS[hub][0])).name.lower()

    def cut(self, hub: str) -> None:
        """Nothing gets to a hub or from it; its process lives on."""
        self.sites[hub].host.up = False

    def mend(self, hub: str) -> None:
        self.sites[hub].host.up = True

    def path(self, source: str, destination: str) -> tuple[str, ...] | None:
        packet = self.send(source, destination)
        self.simulation.run_for(0.2)
        return next((p.trace for p in self.sites[destination].received if p.number == packet.number), None)

    def send(self, source: str, destination: str) -> Packet:
        self.number += 1
        packet = Packet(self.sites[source].lan[5], self.sites[destination].lan[5], self.number)
        self.sites[source].send(packet)
        return packet

    def run(self, seconds: float) -> list[tuple[float, bool]]:
        """Send both ways each 50 ms and tell when what was sent and whether it arrived."""
        sent: dict[int, float] = {}
        end = self.simulation.now + seconds
        while self.simulation.now < end:
            for pair in (("s1", "s2"), ("s2", "s1")):
                sent[self.send(*pair).number] = self.simulation.now
            self.simulation.run_for(0.05)
        self.simulation.run_for(0.5)
        arrived = {packet.number for name in ("s1", "s2") for packet in self.sites[name].received}
        return [(when, number in arrived) for number, when in sent.items()]


def lost_span(sent: list[tuple[float, bool]]) -> float:
    """Seconds from the first lost packet to the last one."""
    lost = [when for when, arrived in sent if not arrived]
    return lost[-1] - lost[0] if lost else 0.0


@pytest.mark.parametrize("how", ["killed", "cut"])
@pytest.mark.parametrize("seed", range(3))
def test_traffic_by_a_hub_that_falls_silent_recovers_within_three_seconds(how: str, seed: int) -> None:
    network = TwoHubs(seed, shortcut=False)
    network.start()
    assert network.path("s1", "s2") == ("s1", "hub1", "s2")
    network.run(1.0)
    if how == "killed":
        network.sites["hub1"].kill()
    else:
        network.cut("hub1")
    sent = network.run(8.0)
    assert 0 < lost_span(sent) < RECOVERY
    assert network.path("s1", "s2") == ("s1", "hub2", "s2")
    assert network.standing("s1", "hub1") != "reliable"


def test_an_idle_spoke_has_moved_before_its_first_packet() -> None:
    network = TwoHubs(1, shortcut=False)
    network.start()
    network.simulation.run_for(10.0)
    network.sites["hub1"].kill()
    network.simulation.run_for(RECOVERY)
    assert network.path("s1", "s2") == ("s1", "hub2", "s2")


def test_shortcuts_lose_nothing_when_both_their_hubs_die() -> None:
    network = TwoHubs(2)
    network.start()
    network.run(3.0)
    assert network.path("s1", "s2") == ("s1", "s2")
    network.sites["hub1"].kill()
    sent = network.run(5.0)
    network.sites["hub2"].kill()
    sent += network.run(40.0)
    assert all(arrived for _, arrived in sent)
    assert network.path("s1", "s2") == ("s1", "s2")


def test_a_hub_that_comes_back_gets_its_traffic_only_after_it_was_well_for_a_while() -> None:
    network = TwoHubs(3, shortcut=False, nhs_fallback="20s")
    network.start()
    network.cut("hub1")
    network.run(4.0)
    network.mend("hub1")
    network.simulation.run_until(lambda: network.standing("s1", "hub1") == "recovering", 60, "hub1 back")
    back = network.simulation.now
    # It hiccups before the time is over: the time begins anew.
    network.simulation.run_for(15.0)
    network.cut("hub1")
    network.simulation.run_until(lambda: network.standing("s1", "hub1") == "lost", 10, "hub1 lost again")
    network.mend("hub1")
    network.simulation.run_until(lambda: network.standing("s1", "hub1") == "recovering", 60, "hub1 back")
    again = network.simulation.now
    assert again > back
    assert network.path("s1", "s2") == ("s1", "hub2", "s2")
    sent = network.run(30.0)
    assert all(arrived for _, arrived in sent), "the way back loses nothing"
    assert network.path("s1", "s2") == ("s1", "hub1", "s2")
    assert network.path("s2", "s1") == ("s2", "hub1", "s1")


def test_the_last_hub_is_used_at_once_when_it_comes_back() -> None:
    network = TwoHubs(4, shortcut=False, nhs_fallback="1h")
    network.start()
    network.sites["hub2"].kill()
    network.simulation.run_for(5.0)
    network.cut("hub1")
    network.simulation.run_for(5.0)
    assert network.path("s1", "s2") is None
    network.mend("hub1")
    network.simulation.run_until(lambda: network.standing("s1", "hub1") == "reliable", 90, "hub1 back")
    network.simulation.run_until(lambda: network.standing("s2", "hub1") == "reliable", 90, "hub1 back")
    assert network.path("s1", "s2") == ("s1", "hub1", "s2")


def test_new_shortcuts_form_by_the_second_hub() -> None:
    network = TwoHubs(5)
    network.start()
    network.sites["hub1"].kill()
    network.simulation.run_for(5.0)
    network.run(3.0)
    assert network.path("s1", "s2") == ("s1", "s2")


def test_hubs_of_one_priority_share_the_tunnel_addresses() -> None:
    network = TwoHubs(6, priorities=(0, 0), shortcut=False)
    network.start()
    tunnel = network.sites["s1"].gateway.tunnels["dsvpn0"]
    hubs = {tunnel.health.order(address(f"10.0.0.{host}"))[0] for host in range(20, 40)}
    assert hubs == {address("10.0.0.1"), address("10.0.0.2")}
    network.sites["hub2"].kill()
    network.simulation.run_for(RECOVERY)
    hubs = {tunnel.health.order(address(f"10.0.0.{host}"))[0] for host in range(20, 40)}
    assert hubs == {address("10.0.0.1")}


ONE, TWO = address("10.0.0.1"), address("10.0.0.2")


def health(tries: int = 3) -> NhsHealth:
    found = NhsHealth([(ONE, 0), (TWO, 1)], tries=tries, fallback=10.0)
    found.registered(ONE, 0.0)
    found.registered(TWO, 0.0)
    return found


def look(table: NhsHealth, nhs: Address, counts: list[int]) -> list[tuple[bool, bool]]:
    return [table.look(nhs, count) for count in counts]


def test_one_that_never_answered_a_probe_is_not_held_to_be_lost_for_that() -> None:
    table = health()
    looks = look(table, ONE, [0] * 200)
    assert not any(lost for _, lost in looks)
    # It is still asked now and then, in case its firewall relents.
    assert 3 < sum(probe for probe, _ in looks) < 30
    assert table.standing(ONE) is Standing.RELIABLE


def test_traffic_is_an_answer() -> None:
    table = health()
    assert look(table, ONE, [5, 6, 6, 6, 7, 7, 7, 7]) == [
        (True, False),
        (False, False),
        (True, False),
        (True, False),
        (False, False),
        (True, False),
        (True, False),
        (True, False),
    ]
    assert look(table, ONE, [7]) == [(False, True)]
    assert table.order() == [TWO, ONE]


def test_nothing_is_asked_of_one_that_is_not_registered_with() -> None:
    table = NhsHealth([(ONE, 0)], tries=3, fallback=10.0)
    assert look(table, ONE, [1, 1, 1, 1, 1]) == [(False, False)] * 5
