"""A gateway is killed and comes back: its peers notice long before dead peer detection (RFC 6290)."""

from __future__ import annotations

import pytest

from dsvpn.addresses import Address
from dsvpn.wire.ikev2 import ExchangeType
from tests.gateway.network import Network
from tests.simulation.underlay import Carrier, Datagram, Node

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


@pytest.mark.parametrize("age", [0.5, 30.0])
def test_a_peer_that_comes_back_has_one_ike_sa_however_young_the_old_one_was(age: float) -> None:
    """INITIAL_CONTACT (RFC 7296 section 2.4)."""
    network = Network(seed=44, spokes=1, nated=(), options={"profile": {"dpd": "0s"}})
    network.start()
    network.simulation.run_for(age)
    network["s1"].kill()
    network["s1"].start()
    network.simulation.run_for(10.0)
    assert network.registered(network["s1"])
    assert len(ike_sas(network, "s1")) == len(ike_sas(network, "hub")) == 1


def test_a_call_that_does_not_get_through_is_given_up_for_the_peers() -> None:
    """A firewall lets the calls of one end through alone, and later those of the other: there is no second IKE SA."""
    mapping = {"protocol": "10.0.0.11", "nbma": "192.0.2.11"}
    network = Network(seed=45, spokes=1, nated=(), overrides={"hub": {"nhrp": {"map": [mapping]}}})
    host = network["hub"].host
    host.via = firewall = Firewall(host.via)
    network["hub"].start()
    network.simulation.run_for(3.0)
    assert firewall.dropped > 1
    network["s1"].start()
    network.wait_registered()
    firewall.closed = False
    network.simulation.run_for(60.0)
    assert len(ike_sas(network, "s1")) == len(ike_sas(network, "hub")) == 1
    assert network.path("hub", "s1") == ("hub", "s1")


class Firewall:
    """Lets no IKE_SA_INIT request out while it is closed."""

    def __init__(self, outside: Carrier) -> None:
        self._outside = outside
        self.closed = True
        self.dropped = 0

    def send(self, datagram: Datagram) -> None:
        message = datagram.payload
        is_call = isinstance(message, bytes) and message[18:20] == bytes((ExchangeType.IKE_SA_INIT, 0x08))
        if self.closed and is_call:
            self.dropped += 1
        else:
            self._outside.send(datagram)

    def attach(self, address: Address, node: Node) -> None:
        self._outside.attach(address, node)

    def detach(self, address: Address) -> None:
        self._outside.detach(address)


def ike_sas(network: Network, name: str) -> list[int]:
    """The initiator's SPIs of the IKE SAs that a gateway has."""
    status = network[name].gateway.status(network.simulation.now)["sa"]
    return [sa["initiator_spi"] for sa in status if sa["state"] == "established"]
