"""An NHS is who was reached by calling its address, or who proves the configured identity: nobody else who has the
address too."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from dsvpn.addresses import Endpoint
from dsvpn.config.model import TunnelConfig
from dsvpn.gateway.peers import Peer
from tests.gateway.model import Packet, Site, address, site_config
from tests.simulation import NatBox, Simulation, Underlay

PUBLIC = "203.0.113.1"


class Household:
    """The hub and "liar" share a public address, to which the NAT box forwards IKE for the hub; "s1" is elsewhere, and
    "liar" has s1 for its hub."""

    def __init__(self, seed: int, identity: str | None = None) -> None:
        self.simulation = Simulation(seed)
        underlay = Underlay(self.simulation)
        # It keeps the forwarded ports free of other flows.
        nat = NatBox(underlay, address(PUBLIC), preserve_port=False)
        for port in (500, 4500):
            nat.forward("udp", port, Endpoint(address("192.168.100.1"), port))
        self.hub = self._site("hub", "10.0.0.1", None, 0)
        self.hub.attach(nat, address("192.168.100.1"))
        self.spoke = self._site("s1", "10.0.0.11", ("10.0.0.1", PUBLIC), 1)
        if identity is not None:
            self.spoke.config["tunnel"]["dsvpn0"]["nhrp"]["nhs"][0]["identity"] = identity
        self.spoke.attach(underlay, address("192.0.2.11"))
        self.liar = self._site("liar", "10.0.0.66", ("10.0.0.11", "192.0.2.11"), 6)
        self.liar.attach(nat, address("192.168.100.66"))

    def _site(self, name: str, tunnel: str, hub: tuple[str, str] | None, number: int) -> Site:
        site = Site(self.simulation, name, site_config(name, tunnel, hub=hub), ip_network(f"172.16.{number}.0/24"))
        site.static.append(("dsvpn0", ip_network("172.16.0.0/12"), address(hub[0] if hub else "10.0.0.11")))
        return site

    def peer(self, identity: str) -> Peer:
        (found,) = [peer for peer in self.spoke.gateway.peers if peer.identity == identity]
        return found

    def trusted(self, identity: str) -> bool:
        return self.spoke.gateway.tunnels["dsvpn0"].nhrp.trusts(self.peer(identity).adjacencies["dsvpn0"])

    def state(self) -> str:
        (nhs,) = self.spoke.gateway.tunnels["dsvpn0"].nhrp.snapshot(self.simulation.now).nhs
        return nhs.state


@pytest.mark.parametrize("order", ["hub first", "liar first"])
@pytest.mark.parametrize("seed", range(2))
def test_a_neighbour_behind_the_hubs_nat_is_not_the_hub(order: str, seed: int) -> None:
    network = Household(seed)
    if order == "hub first":
        network.hub.start()
        network.spoke.start()
        network.simulation.run_for(5)
        network.liar.start()
    else:
        network.spoke.start()
        network.liar.start()
        network.simulation.run_for(5)
        assert network.state() == "waiting"
        assert not network.trusted("liar")
        network.hub.start()
    network.simulation.run_until(lambda: network.state() == "up", 60, "the registration")
    network.simulation.run_for(5)
    assert network.peer("liar").nbma == network.peer("hub").nbma == address(PUBLIC)
    assert (network.trusted("hub"), network.trusted("liar")) == (True, False)
    # It is with the hub that s1 is registered.
    assert address("10.0.0.11") in network.hub.gateway.tunnels["dsvpn0"].mappings
    # What the hub may send, its neighbour may not.
    for number, site in enumerate((network.hub, network.liar)):
        site.send(Packet(address("172.16.9.9"), network.spoke.lan[5], number))
    network.simulation.run_for(1)
    assert [packet.number for packet in network.spoke.received] == [0]
    assert network.spoke.lost["wrong_source"] == 1


def test_a_configured_identity_is_held_against_whoever_answers() -> None:
    network = Household(1, identity="hub.example.net")
    network.hub.start()
    network.spoke.start()
    network.simulation.run_for(20)
    assert network.state() == "waiting"
    assert not [peer for peer in network.spoke.gateway.peers if peer.up]
    network.hub.stop()
    network.hub.config["gateway"]["name"] = "hub.example.net"
    network.hub.start()
    network.simulation.run_until(lambda: network.state() == "up", 60, "the registration")
    assert network.trusted("hub.example.net")


def config(**entry: Any) -> dict[str, Any]:
    return {
        "address": "10.0.0.11/24",
        "source": "eth0",
        "nhrp": {"nhs": [{"protocol": "10.0.0.1", "nbma": "192.0.2.1"} | entry]},
    }


def test_what_is_no_identity_is_refused() -> None:
    assert TunnelConfig.model_validate(config(identity="*.example.net")).nhrp.nhs[0].identity == "*.example.net"
    with pytest.raises(ValueError, match="neither an address nor a name"):
        TunnelConfig.model_validate(config(identity="no name"))
    with pytest.raises(ValueError, match="proves no identity"):
        TunnelConfig.model_validate(config(identity="hub") | {"ipsec": "none"})
