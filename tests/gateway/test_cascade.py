"""Regional hubs under a head office: hub and spoke at once, with shortcuts across regions."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from tests.gateway.model import Packet, Site, address, site_config
from tests.simulation import Conditions, Simulation, Underlay

#: Tunnel address, NBMA address, the hub above, the number of the LAN.
PLAN: dict[str, tuple[str, str, str | None, int]] = {
    "head": ("10.0.0.1", "192.0.2.1", None, 0),
    "east": ("10.0.0.2", "192.0.2.2", "head", 16),
    "west": ("10.0.0.3", "192.0.2.3", "head", 32),
    "e1": ("10.0.0.21", "192.0.2.21", "east", 17),
    "e2": ("10.0.0.22", "192.0.2.22", "east", 18),
    "w1": ("10.0.0.31", "192.0.2.31", "west", 33),
}
SUMMARY = ip_network("172.16.0.0/12")
REGIONS = {"east": ip_network("172.16.16.0/20"), "west": ip_network("172.16.32.0/20")}


class Cascade:
    def __init__(self, seed: int) -> None:
        self.simulation = Simulation(seed)
        underlay = Underlay(self.simulation, Conditions())
        self.sites: dict[str, Site] = {}
        self.number = 0
        for name, (tunnel, nbma, above, number) in PLAN.items():
            options: dict[str, Any] = {"redirect": True, "shortcut": True, "multicast": "dynamic"}
            hub = None if above is None else (PLAN[above][0], PLAN[above][1])
            if name not in ("head", "east", "west"):
                del options["redirect"], options["multicast"]
            config = site_config(name, tunnel, hub=hub, nhrp=options)
            site = self.sites[name] = Site(self.simulation, name, config, ip_network(f"172.16.{number}.0/24"))
            site.attach(underlay, address(nbma))
            if hub is not None:
                site.static.append(("dsvpn0", SUMMARY, address(hub[0])))
        for name, (tunnel, _, above, _) in PLAN.items():
            if above is not None:
                prefix = REGIONS.get(name, self.sites[name].lan)
                self.sites[above].static.append(("dsvpn0", prefix, address(tunnel)))

    def start(self) -> None:
        for site in self.sites.values():
            site.start()
        spokes = [site for name, site in self.sites.items() if name != "head"]
        self.simulation.run_until(
            lambda: all(site.gateway.tunnels["dsvpn0"].health.any_reliable() for site in spokes), 60, "registration"
        )

    def stream(self, one: str, other: str, seconds: float) -> int:
        """Send both ways; how many packets were lost."""
        sent = set()
        end = self.simulation.now + seconds
        while self.simulation.now < end:
            for source, target in ((one, other), (other, one)):
                sent.add(self.send(source, target))
            self.simulation.run_for(0.05)
        self.simulation.run_for(1.0)
        return len(sent - {packet.number for name in (one, other) for packet in self.sites[name].received})

    def send(self, source: str, target: str) -> int:
        self.number += 1
        self.sites[source].send(Packet(self.sites[source].lan[5], self.sites[target].lan[5], self.number))
        return self.number

    def path(self, source: str, target: str) -> tuple[str, ...] | None:
        number = self.send(source, target)
        self.simulation.run_for(0.5)
        return next((packet.trace for packet in self.sites[target].received if packet.number == number), None)


@pytest.mark.parametrize("seed", range(3))
def test_shortcuts_form_within_a_region_and_across_regions(seed: int) -> None:
    network = Cascade(seed)
    network.start()
    assert network.path("e1", "w1") == ("e1", "east", "head", "west", "w1")
    for one, other in (("e1", "e2"), ("e1", "w1"), ("e2", "west"), ("w1", "head")):
        assert network.stream(one, other, 8.0) == 0
        assert network.path(one, other) == (one, other)
        assert network.path(other, one) == (other, one)


def test_a_region_talks_on_without_the_head_office() -> None:
    network = Cascade(4)
    network.start()
    network.stream("e1", "w1", 8.0)
    network.sites["head"].kill()
    assert network.stream("e1", "w1", 20.0) == 0
    assert network.stream("e1", "e2", 5.0) == 0
    assert network.path("e1", "e2") == ("e1", "e2")
