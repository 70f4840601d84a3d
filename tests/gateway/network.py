"""The lab in simulated time: a hub, a spoke behind a NAT box, public spokes, a LAN behind each."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

from tests.gateway.model import Packet, Site, address, site_config
from tests.simulation import Conditions, NatBox, Simulation, Underlay

HUB_NBMA = "192.0.2.1"
HUB_TUNNEL = "10.0.0.1"
NAT_PUBLIC = "203.0.113.1"


@dataclass
class Network:
    """Hub "hub" with LAN 172.16.0.0/24, spokes "s1", "s2", … with LAN 172.16.N.0/24; spokes in `nated` sit behind one
    NAT box, each with a private address of its own."""

    seed: int
    spokes: int = 2
    nated: tuple[int, ...] = (1,)
    conditions: Conditions = field(default_factory=Conditions)
    options: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: IP versions of the tunnel and of the underlay. NAT is for version 4.
    tunnel: int = 4
    public: int = 4

    def __post_init__(self) -> None:
        self.simulation = Simulation(self.seed)
        self.underlay = Underlay(self.simulation, self.conditions)
        self.nat = NatBox(self.underlay, address(NAT_PUBLIC))
        self.sites: dict[str, Site] = {}
        self.number = 0
        hub = self._site("hub", 0, None)
        server = (self._tunnel_address(0), HUB_NBMA if self.public == 4 else "2001:db8::1")
        hub.attach(self.underlay, address(server[1]))
        for index in range(1, self.spokes + 1):
            spoke = self._site(f"s{index}", index, server)
            if index in self.nated:
                spoke.attach(self.nat, address(f"192.168.100.{index}"))
            else:
                public = f"192.0.2.{10 + index}" if self.public == 4 else f"2001:db8::{10 + index}"
                spoke.attach(self.underlay, address(public))
            summary = ip_network("172.16.0.0/12" if self.tunnel == 4 else "fd16::/16")
            spoke.static.append(("dsvpn0", summary, address(server[0])))
            hub.static.append(("dsvpn0", self._lan(index), address(self._tunnel_address(index))))

    def _tunnel_address(self, index: int) -> str:
        number = 1 if index == 0 else 10 + index
        return f"10.0.0.{number}" if self.tunnel == 4 else f"fd00::{number}"

    def _lan(self, index: int) -> Any:
        return ip_network(f"172.16.{index}.0/24" if self.tunnel == 4 else f"fd16:0:0:{index}::/64")

    def _site(self, name: str, index: int, hub: tuple[str, str] | None) -> Site:
        tunnel = self._tunnel_address(index)
        config = site_config(name, tunnel, hub=hub, **(self.options | self.overrides.get(name, {})))
        site = Site(self.simulation, name, config, self._lan(index))
        self.sites[name] = site
        return site

    def __getitem__(self, name: str) -> Site:
        return self.sites[name]

    def start(self) -> None:
        """Start every gateway and wait until every spoke is registered."""
        for site in self.sites.values():
            site.start()
        self.wait_registered()

    def wait_registered(self, timeout: float = 60.0) -> None:
        """Let time pass until the hub knows every spoke and every spoke knows that."""
        spokes = [site for name, site in self.sites.items() if name != "hub"]
        self.simulation.run_until(
            lambda: all(self.registered(site) for site in spokes), timeout, "registration of every spoke"
        )

    def registered(self, spoke: Site) -> bool:
        """Whether a spoke is registered, by its own word and the hub's."""
        tunnel = next(iter(spoke.gateway.tunnels.values()))
        own = tunnel.config.addresses[0].ip
        states = [nhs.state for nhs in tunnel.nhrp.snapshot(self.simulation.now).nhs]
        known = self["hub"].gateway.tunnels["dsvpn0"].mappings.get(own)
        return states == ["up"] and known is not None and known.peer is not None and known.peer.up

    def lan(self, name: str) -> Any:
        """An address in the LAN behind a site."""
        return self[name].lan[5]

    def packet(self, source: str, destination: str) -> Packet:
        """A packet from LAN to LAN with a number of its own."""
        self.number += 1
        return Packet(self.lan(source), self.lan(destination), self.number)

    def stream(self, source: str, destination: str, seconds: float, interval: float = 0.02) -> list[int]:
        """Send a packet each `interval`, both ways, and give the numbers sent."""
        sent: list[int] = []
        ends = ((source, destination), (destination, source))
        end = self.simulation.now + seconds
        while self.simulation.now < end:
            for one, other in ends:
                packet = self.packet(one, other)
                sent.append(packet.number)
                self[one].send(packet)
            self.simulation.run_for(interval)
        self.simulation.run_for(1.0)
        return sent

    def arrived(self, *names: str) -> dict[int, Packet]:
        """What arrived in the LANs of these sites, by number."""
        return {packet.number: packet for name in names for packet in self[name].received}

    def path(self, source: str, destination: str) -> tuple[str, ...] | None:
        """The gateways that one packet passes, None if it is lost."""
        packet = self.packet(source, destination)
        self[source].send(packet)
        self.simulation.run_for(1.0)
        found = self.arrived(destination).get(packet.number)
        return None if found is None else found.trace
