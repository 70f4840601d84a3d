"""A gateway's underlay address changes while traffic runs (RFC 4555), in simulated time."""

from __future__ import annotations

import pytest

from dsvpn.addresses import Address
from dsvpn.nhrp.authorization import Claim
from tests.gateway.model import UNDERLAY_MTU, Site, address
from tests.gateway.network import Network
from tests.simulation import NatBox

NEW = "198.51.100.7"


def renumber(network: Network, name: str, new: str, pause: float = 0.0) -> None:
    """The site's only underlay address is replaced; for `pause` seconds there is none."""
    site: Site = network[name]
    carrier = site.host.via
    carrier.detach(site.host.address)
    now = network.simulation.now
    if pause:
        for tunnel in site.gateway.tunnels:
            site.gateway.source_changed(tunnel, None, UNDERLAY_MTU, now)
        site._flush()
        network.simulation.run_for(pause)
        now = network.simulation.now
    site.host.address = address(new)
    carrier.attach(site.host.address, site.host)
    for tunnel in site.gateway.tunnels:
        site.gateway.source_changed(tunnel, site.host.address, UNDERLAY_MTU, now)
    site._flush()


def ike_sas(network: Network, name: str) -> list[int]:
    return [status.ike_sa for status in network[name].gateway.ike.snapshot(network.simulation.now)]


@pytest.mark.parametrize("pause", [0.0, 3.0], ids=["at once", "after three seconds without"])
def test_a_spoke_moves_and_hub_and_shortcut_follow(pause: float) -> None:
    network = Network(seed=31, nated=())
    network.start()
    network.stream("s1", "s2", 2.0)
    assert network.path("s1", "s2") == ("s1", "s2")
    before = {name: ike_sas(network, name) for name in ("hub", "s1", "s2")}
    renumber(network, "s1", NEW, pause)
    network.simulation.run_for(0.5)
    # The hub has the new registration, and nothing was made anew.
    mapping = network["hub"].gateway.tunnels["dsvpn0"].mappings[address("10.0.0.11")].event
    assert (mapping.nbma, mapping.private_nbma) == (address(NEW), address(NEW))
    assert network.registered(network["s1"])
    assert {name: ike_sas(network, name) for name in before} == before
    sent = network.stream("s1", "s2", 2.0)
    assert set(sent) <= set(network.arrived("s1", "s2"))
    assert network.path("s1", "s2") == ("s1", "s2")
    assert network.path("s2", "s1") == ("s2", "s1")
    assert network.path("hub", "s1") == ("hub", "s1")
    for name in ("s1", "s2"):
        assert network[name].gateway.status(network.simulation.now)["ike"]["moved"] == (2 if name == "s1" else 0)


def test_traffic_resumes_within_a_tenth_of_a_second() -> None:
    network = Network(seed=32, nated=())
    network.start()
    network.stream("s1", "hub", 1.0)
    sent: list[int] = []
    renumber(network, "s1", NEW)
    moved_at = network.simulation.now
    arrived_after = None
    for _ in range(100):
        packet = network.packet("hub", "s1")
        sent.append(packet.number)
        network["hub"].send(packet)
        network.simulation.run_for(0.01)
        if arrived_after is None and network.arrived("s1").keys() & set(sent):
            arrived_after = network.simulation.now - moved_at
    assert arrived_after is not None
    assert arrived_after < 0.15
    lost = set(sent) - network.arrived("s1").keys()
    assert len(lost) <= 15


def test_without_mobike_the_sas_are_made_anew() -> None:
    network = Network(seed=33, nated=(), overrides={"hub": {"profile": {"mobike": False}}})
    network.start()
    before = ike_sas(network, "s1")
    renumber(network, "s1", NEW)
    network.simulation.run_for(5.0)
    network.wait_registered()
    assert not set(before) & set(ike_sas(network, "s1"))
    # The hub was told: nothing of the old address is left there.
    assert len(ike_sas(network, "hub")) == 2
    assert {str(peer.nbma) for peer in network["hub"].gateway.peers} == {NEW, "192.0.2.12"}
    assert network.path("s1", "hub") == ("s1", "hub")
    assert network.path("hub", "s1") == ("hub", "s1")


def test_from_a_public_address_to_one_behind_nat() -> None:
    network = Network(seed=34, nated=())
    network.start()
    network.stream("s1", "s2", 2.0)
    before = ike_sas(network, "s1")
    site = network["s1"]
    network.underlay.detach(site.host.address)
    box = NatBox(network.underlay, address("203.0.113.44"))
    site.host.via = box
    box.attach(address("192.168.7.7"), site.host)
    site.host.address = address("192.168.7.7")
    site.gateway.source_changed("dsvpn0", site.host.address, UNDERLAY_MTU, network.simulation.now)
    site._flush()
    network.simulation.run_for(3.0)
    assert ike_sas(network, "s1")[0] == before[0]
    mapping = network["hub"].gateway.tunnels["dsvpn0"].mappings[address("10.0.0.11")].event
    assert (mapping.nbma, mapping.private_nbma) == (address("203.0.113.44"), address("192.168.7.7"))
    # The spoke knows how the hub sees it, which it tells whoever resolves it.
    (nhs,) = site.gateway.tunnels["dsvpn0"].nhrp.snapshot(network.simulation.now).nhs
    assert nhs.nat_address == address("203.0.113.44")
    for path in (("s1", "hub"), ("hub", "s1")):
        assert network.path(*path) == path
    sent = network.stream("s1", "s2", 3.0)
    assert set(sent) <= set(network.arrived("s1", "s2"))
    assert network.path("s1", "s2") == ("s1", "s2")


def test_a_peer_that_moved_may_claim_what_it_could_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """NHRP hears of the new address together with the proof, not of a peer that has proved nothing."""
    network = Network(seed=36, nated=())
    network.start()
    nhrp = network["hub"].gateway.tunnels["dsvpn0"].nhrp
    claims: list[Claim | None] = []
    tell = nhrp.peer_up

    def told(nbma: Address, peer: int, now: float, claim: Claim | None = None) -> None:
        claims.append(claim)
        tell(nbma, peer, now, claim)

    monkeypatch.setattr(nhrp, "peer_up", told)
    renumber(network, "s1", NEW)
    network.simulation.run_for(0.5)
    assert {claim.identity if claim else None for claim in claims} == {"s1"}
