"""One gateway in two DSVPN networks, spoke of one and hub of the other."""

from __future__ import annotations

import io
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import pytest
from rich.console import Console

from dsvpn.addresses import Address, Prefix
from dsvpn.commands import SetAdjacency
from dsvpn.nhrp.config import Route
from dsvpn.observe.tables import render
from tests.gateway.model import Inner, Packet, Sealed, Site, address, site_config
from tests.simulation import Conditions, Datagram, Simulation, Underlay

KEYS = {"dsvpn0": 42, "dsvpn1": 43}


@dataclass(slots=True)
class VrfSite(Site):
    """Each tunnel in a VRF of its own, with the same LAN prefix in each: packets stay in the VRF that they came by."""

    vrf: str = "dsvpn0"

    def send_in(self, vrf: str, packet: Packet) -> None:
        self.vrf = vrf
        self.send(packet)

    def _accept(self, adjacency: SetAdjacency, number: int, datagram: Datagram, inner: Inner) -> None:
        self.vrf = adjacency.tunnel
        Site._accept(self, adjacency, number, datagram, inner)

    def _kernel_routes(self) -> list[tuple[str, Prefix, Address | None]]:
        return [route for route in Site._kernel_routes(self) if route[0] == self.vrf]

    def _route_lookup(self, tunnel: str, destination: Address) -> Route | None:
        self.vrf = tunnel
        return Site._route_lookup(self, tunnel, destination)


class TwoNetworks:
    """Network 0, key 42: hub "h", spokes "m" and "a". Network 1, key 43: hub "m", spokes "b" and "c".

    `same`: both networks have the tunnel prefix 10.0.0.0/24 and spokes of the same addresses and LANs; "m" keeps them
    apart by VRFs. Else they are 10.0.0.0/24 with 172.16.0.0/16 and 10.1.0.0/24 with 172.17.0.0/16, and "m" routes
    between them.
    """

    def __init__(self, seed: int, *, same: bool) -> None:
        self.simulation = Simulation(seed)
        self.underlay = Underlay(self.simulation, Conditions())
        self.number = 0
        self.same = same
        net = (0, 0) if same else (0, 1)
        lan = [f"172.{16 + one}" for one in net]
        tunnel = [f"10.{one}.0" for one in net]
        self.sites: dict[str, Site] = {}
        self._add("h", "192.0.2.1", site_config("h", f"{tunnel[0]}.1", hub=None), f"{lan[0]}.1.0/24")
        middle = site_config(
            "m", f"{tunnel[0]}.2", hub=(f"{tunnel[0]}.1", "192.0.2.1"), nhrp={"redirect": True, "multicast": "dynamic"}
        )
        own = 3 if same else 1
        psk = "another secret"
        inner = site_config("m", f"{tunnel[1]}.{own}", hub=None, key=43, psk=psk)
        middle["tunnel"]["dsvpn1"] = inner["tunnel"]["dsvpn0"] | {"ipsec": "second"}
        middle["ipsec"]["second"] = inner["ipsec"]["default"]
        self._add("m", "192.0.2.2", middle, f"{lan[0]}.2.0/24", VrfSite if same else Site)
        hub = (f"{tunnel[1]}.{own}", "192.0.2.2")
        self._add(
            "a",
            "192.0.2.11",
            site_config("a", f"{tunnel[0]}.11", hub=(f"{tunnel[0]}.1", "192.0.2.1")),
            f"{lan[0]}.11.0/24",
        )
        self._add("b", "192.0.2.12", site_config("b", f"{tunnel[1]}.11", hub=hub, key=43, psk=psk), f"{lan[1]}.11.0/24")
        self._add("c", "192.0.2.13", site_config("c", f"{tunnel[1]}.13", hub=hub, key=43, psk=psk), f"{lan[1]}.13.0/24")
        everything = ip_network("172.16.0.0/12")
        for name, server in (("m", f"{tunnel[0]}.1"), ("a", f"{tunnel[0]}.1"), ("b", hub[0]), ("c", hub[0])):
            self[name].static.append(("dsvpn0", everything, address(server)))
        for name, spoke in (("m", 2), ("a", 11)):
            self["h"].static.append(("dsvpn0", self[name].lan, address(f"{tunnel[0]}.{spoke}")))
        for name, spoke in (("b", 11), ("c", 13)):
            self["m"].static.append(("dsvpn1", self[name].lan, address(f"{tunnel[1]}.{spoke}")))
        if not same:
            self["h"].static.append(("dsvpn0", ip_network("172.17.0.0/16"), address(f"{tunnel[0]}.2")))

    def _add(self, name: str, nbma: str, config: dict[str, Any], lan: str, kind: type[Site] = Site) -> None:
        self.sites[name] = kind(self.simulation, name, config, ip_network(lan))
        self.sites[name].attach(self.underlay, address(nbma))

    def __getitem__(self, name: str) -> Site:
        return self.sites[name]

    def start(self) -> None:
        for site in self.sites.values():
            site.start()
        self.simulation.run_until(
            lambda: all(self[name].gateway.tunnels["dsvpn0"].health.any_reliable() for name in "mabc"),
            60,
            "registration in both networks",
        )

    def path(self, source: str, target: str, vrf: str | None = None) -> tuple[str, ...] | None:
        """The gateways that a packet from LAN to LAN passes, None if it is lost. `vrf`: of "m", where it sends."""
        self.number += 1
        packet = Packet(self[source].lan[5], self[target].lan[5], self.number)
        sender = self[source]
        if vrf is not None:
            assert isinstance(sender, VrfSite)
            sender.send_in(vrf, packet)
        else:
            sender.send(packet)
        self.simulation.run_for(1.0)
        got = [
            (name, one.trace) for name, site in self.sites.items() for one in site.received if one.number == self.number
        ]
        assert [name for name, _ in got] in ([], [target]), got
        return got[0][1] if got else None

    def shown(self, name: str, section: str) -> str:
        value = self[name].gateway.status(self.simulation.now)[section]
        console = Console(file=io.StringIO(), width=300)
        for table in render(section, value):
            console.print(table)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()


@pytest.mark.parametrize("seed", range(4))
def test_spoke_of_one_and_hub_of_the_other_with_traffic_from_end_to_end(seed: int) -> None:
    network = TwoNetworks(seed, same=False)
    network.start()
    assert network.path("a", "b") == ("a", "h", "m", "b"), "along both networks"
    assert network.path("b", "a") is not None
    # Within a network the shortcut leads to the peer; between them, to the gateway that is in both.
    for one, other in (("b", "c"), ("a", "b")):
        for _ in range(3):
            assert network.path(one, other) is not None
            assert network.path(other, one) is not None
    assert network.path("b", "c") == ("b", "c")
    assert network.path("a", "b") == ("a", "m", "b")
    assert network.path("b", "a") == ("b", "m", "a")
    assert network.path("m", "a") == ("m", "a")
    assert network.path("m", "c") == ("m", "c")

    tunnels = network["m"].gateway.status(network.simulation.now)["summary"]["tunnels"]
    assert [nhs["standing"] for nhs in tunnels["dsvpn0"]["nhs"]] == ["reliable"]
    assert tunnels["dsvpn1"]["nhs"] == []
    nhrp = network.shown("m", "nhrp")
    assert all(shown in nhrp for shown in ("10.0.0.1", "10.1.0.11", "10.1.0.13"))
    peers = network.shown("m", "peers")
    assert all(shown in peers for shown in ("192.0.2.1 ", "192.0.2.12", "192.0.2.13"))


@pytest.mark.parametrize("seed", range(4))
def test_the_same_addresses_in_both_are_kept_apart(seed: int) -> None:
    network = TwoNetworks(seed, same=True)
    network.start()
    assert network["a"].lan == network["b"].lan
    for _ in range(3):
        assert network.path("m", "a", "dsvpn0") is not None
        assert network.path("m", "b", "dsvpn1") == ("m", "b")
        assert network.path("c", "b") is not None
    assert network.path("m", "a", "dsvpn0") == ("m", "a")
    assert network.path("c", "b") == ("c", "b")
    assert network.path("a", "c") is None, "there is no way from one network into the other"
    twice = address("10.0.0.11")
    held = {name: tunnel.mappings[twice].peer for name, tunnel in network["m"].gateway.tunnels.items()}
    assert {name: str(peer.path.remote.address) for name, peer in held.items() if peer and peer.path} == {
        "dsvpn0": "192.0.2.11",
        "dsvpn1": "192.0.2.12",
    }


def test_a_network_that_ends_leaves_the_other_alone() -> None:
    network = TwoNetworks(3, same=False)
    network.start()
    assert network.path("m", "b") == ("m", "b")
    network["h"].kill()
    network.simulation.run_for(120)
    for _ in range(3):
        assert network.path("c", "b") is not None
    assert network.path("c", "b") == ("c", "b")
    assert network.path("m", "b") == ("m", "b")
    network["h"].start()
    network.simulation.run_until(
        network["m"].gateway.tunnels["dsvpn0"].health.any_reliable, 120, "the hub of network 0"
    )
    assert network.path("a", "b") is not None


def test_networks_of_two_profiles_share_no_sa() -> None:
    network = TwoNetworks(1, same=False)
    network.start()
    for one, other in (("a", "m"), ("b", "m"), ("a", "b")):
        assert network.path(one, other) is not None
    middle = network["m"]
    assert {one.tunnel for one in middle.adjacencies.values()} == {"dsvpn0", "dsvpn1"}
    for sa in middle.inbound.values():
        assert len({middle.adjacencies[number].tunnel for number in sa.adjacencies}) == 1
    # A spoke of network 1 that writes the key of network 0 into its own SA does not get in.
    number, adjacency = next((n, one) for n, one in middle.adjacencies.items() if one.tunnel == "dsvpn1")
    spi, sa = next((spi, sa) for spi, sa in middle.inbound.items() if number in sa.adjacencies)
    packet = Packet(network["a"].lan[5], middle.lan[5], 9999)
    stray = Sealed(spi, sa.keymat, Inner(KEYS["dsvpn0"], packet))
    path = adjacency.path
    network["b"].host.send(Datagram(path.remote, path.local, adjacency.encapsulation, stray))
    network.simulation.run_for(1.0)
    assert middle.lost["wrong_key"] == 1
    assert 9999 not in [one.number for one in middle.received]
