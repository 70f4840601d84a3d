"""Direct paths between spokes behind NAT boxes: one box, two boxes, boxes that cannot be punched through."""

from __future__ import annotations

from typing import Any

import pytest

from dsvpn.addresses import Endpoint, Path
from tests.gateway.model import address
from tests.gateway.network import Network
from tests.simulation import NatBox


def two_boxes(seed: int, first: dict[str, Any] | None = None, holding_time: str = "300s", **second: Any) -> Network:
    """s1 behind the network's own box, s2 behind another one; s3 is public."""
    network = Network(seed, spokes=3, nated=(1,), options={"nhrp": {"holding_time": holding_time}})
    for option, value in (first or {}).items():
        setattr(network.nat, option, value)
    spoke = network["s2"]
    network.underlay.detach(spoke.host.address)
    box = NatBox(network.underlay, address("203.0.113.2"), **second)
    spoke.attach(box, address("192.168.100.1"))  # the very address that s1 has behind its own
    network.start()
    return network


#: A box that gives an inside port another one, the same towards all, and lets in only who was sent to.
TRANSLATING: dict[str, Any] = {"preserve_port": False, "endpoint_independent": True, "restricted": True}


def direct(network: Network, one: str, other: str) -> bool:
    return network.path(one, other) == (one, other) and network.path(other, one) == (other, one)


def failures(network: Network, name: str, nbma: str) -> int:
    return next(peer.failures for peer in network[name].gateway.peers if str(peer.nbma) == nbma)


def shown(network: Network, name: str, nbma: str) -> dict[str, Any]:
    peers = network[name].gateway.status(network.simulation.now)["peers"]["peers"]
    return next(peer for peer in peers if peer["nbma"] == nbma)


@pytest.mark.parametrize("seed", range(4))
def test_two_spokes_behind_two_port_preserving_boxes_get_a_direct_path(seed: int) -> None:
    network = two_boxes(seed)
    sent = network.stream("s1", "s2", 5.0)
    assert sorted(network.arrived("s1", "s2")) == sent, "the hub carries the traffic until then"
    assert direct(network, "s1", "s2")
    assert shown(network, "s1", "203.0.113.2")["path"] == "direct"
    forwarded = network["hub"].forwarded
    network.stream("s1", "s2", 60.0, 0.5)
    assert network["hub"].forwarded == forwarded


def test_traffic_in_one_direction_is_enough() -> None:
    network = two_boxes(5)
    for _ in range(100):
        network["s1"].send(network.packet("s1", "s2"))
        network.simulation.run_for(0.1)
    assert network.path("s1", "s2") == ("s1", "s2")


def test_the_bindings_are_kept_while_nothing_is_sent() -> None:
    network = two_boxes(6)
    network.stream("s1", "s2", 5.0)
    network.nat.timeout = 30.0
    network.simulation.run_for(100.0)
    assert direct(network, "s1", "s2")


def test_a_box_that_changes_every_port_leaves_the_pair_on_the_hub_and_show_says_why() -> None:
    network = two_boxes(7, preserve_port=False)
    sent = network.stream("s1", "s2", 90.0, 0.5)
    arrived = network.arrived("s1", "s2")
    assert sorted(arrived) == sent
    assert network.path("s1", "s2") == ("s1", "hub", "s2")
    peer = shown(network, "s1", "203.0.113.2")
    assert peer["path"] == "hub"
    assert "both ends are behind NAT" in peer["why"]
    # The public spoke is reached directly all the same.
    network.stream("s2", "s3", 4.0)
    assert direct(network, "s2", "s3")


@pytest.mark.parametrize("seed", range(4))
def test_boxes_that_change_ports_alike_for_all_are_punched_at_the_ports_that_the_hub_sees(seed: int) -> None:
    network = two_boxes(20 + seed, TRANSLATING, **TRANSLATING)
    sent = network.stream("s1", "s2", 5.0)
    assert sorted(network.arrived("s1", "s2")) == sent, "the hub carries the traffic until then"
    assert direct(network, "s1", "s2")
    for one, other, nbma in (("s1", "s2", "203.0.113.2"), ("s2", "s1", "203.0.113.1")):
        port = shown(network, one, nbma)["port"]
        assert port not in (500, 4500)
        assert port == shown(network, "hub", nbma)["port"], f"{one} has {other} where the hub has it"
    forwarded = network["hub"].forwarded
    network.stream("s1", "s2", 60.0, 0.5)
    assert network["hub"].forwarded == forwarded


@pytest.mark.parametrize("seed", range(4))
def test_a_box_that_changes_ports_alike_for_all_is_punched_from_one_that_keeps_them(seed: int) -> None:
    network = two_boxes(30 + seed, **TRANSLATING)
    sent = network.stream("s1", "s2", 5.0)
    assert sorted(network.arrived("s1", "s2")) == sent
    assert direct(network, "s1", "s2")
    assert shown(network, "s2", "203.0.113.1")["port"] == 4500
    assert shown(network, "s1", "203.0.113.2")["port"] == shown(network, "hub", "203.0.113.2")["port"] != 4500


def test_two_spokes_behind_one_translating_box_are_both_punched_to_from_another() -> None:
    network = two_boxes(40, TRANSLATING, **TRANSLATING)
    spoke = network["s3"]
    network.underlay.detach(spoke.host.address)
    box = network["s2"].host.via
    assert isinstance(box, NatBox)
    spoke.attach(box, address("192.168.100.3"))
    network.simulation.run_for(120.0)
    network.wait_registered(120.0)
    network.stream("s1", "s2", 10.0)
    network.stream("s1", "s3", 10.0)
    assert direct(network, "s1", "s2")
    assert direct(network, "s1", "s3")


def test_a_box_that_maps_by_destination_leaves_a_translating_one_on_the_hub_and_show_says_why() -> None:
    network = two_boxes(41, TRANSLATING, preserve_port=False)
    sent = network.stream("s1", "s2", 90.0, 0.5)
    assert sorted(network.arrived("s1", "s2")) == sent
    assert network.path("s1", "s2") == ("s1", "hub", "s2")
    peer = shown(network, "s1", "203.0.113.2")
    assert peer["path"] == "hub"
    assert (
        f"both ends are behind NAT, the peer's box shows the hub port {shown(network, 'hub', '203.0.113.2')['port']}"
        in (peer["why"])
    )


def test_the_next_resolution_tells_the_port_that_a_box_has_come_to_show() -> None:
    network = two_boxes(42, TRANSLATING, **TRANSLATING)
    network.stream("s1", "s2", 5.0)
    assert direct(network, "s1", "s2")
    before = shown(network, "hub", "203.0.113.2")["port"]
    box = network["s2"].host.via
    assert isinstance(box, NatBox)
    box.forget()
    network.stream("s1", "s2", 600.0, 0.5)
    after = shown(network, "hub", "203.0.113.2")["port"]
    assert after != before
    assert direct(network, "s1", "s2")
    assert shown(network, "s1", "203.0.113.2")["port"] == after


def test_port_4500_has_its_turn_however_often_the_port_that_the_hub_sees_was_called_in_vain() -> None:
    network = two_boxes(43, holding_time="7200s", preserve_port=False)
    network.stream("s1", "s2", 1500.0, 2.0)
    assert failures(network, "s1", "203.0.113.2") >= 15
    assert not direct(network, "s1", "s2")
    box = network["s2"].host.via
    assert isinstance(box, NatBox)
    box.forward("udp", 4500, Endpoint(network["s2"].host.address, 4500))
    network.stream("s1", "s2", 300.0, 2.0)
    assert direct(network, "s1", "s2")
    assert shown(network, "s1", "203.0.113.2")["port"] == 4500


def test_it_is_tried_again_and_works_as_soon_as_the_box_relents() -> None:
    network = two_boxes(8, preserve_port=False)
    box = network["s2"].host.via
    assert isinstance(box, NatBox)
    network.stream("s1", "s2", 30.0, 0.5)
    assert not direct(network, "s1", "s2")
    box.forget()  # it is replaced by one that keeps ports
    box.preserve_port = True
    network.stream("s1", "s2", 120.0, 0.5)
    assert direct(network, "s1", "s2")


def count_calls(network: Network, name: str, nbma: str) -> list[float]:
    """When a gateway calls the one at a public address, from here on."""
    calls: list[float] = []
    ike: Any = network[name].gateway.ike
    initiate = ike.initiate

    def counted(profile: str, path: Path, now: float, *more: Any) -> Any:
        if str(path.remote.address) == nbma:
            calls.append(now)
        return initiate(profile, path, now, *more)

    ike.initiate = counted
    return calls


def test_a_pair_that_stays_on_the_hub_is_not_called_as_a_new_one_each_holding_time() -> None:
    network = two_boxes(7, preserve_port=False)
    calls = count_calls(network, "s1", "203.0.113.2")
    counts = []
    for _ in range(4):
        before = len(calls)
        network.stream("s1", "s2", 300.0, 2.0)
        counts.append(len(calls) - before)
    assert counts[0] >= 8
    assert max(counts[1:]) <= 6, "the peer is not gone for good with its mapping"
    assert min(counts[1:]) >= 4, "it is still tried"

    # Long after the last packet, everything may be different.
    network.simulation.run_for(1300.0)
    before = len(calls)
    network.stream("s1", "s2", 300.0, 2.0)
    assert len(calls) - before == counts[0]


def test_a_pair_that_was_on_the_hub_for_long_gets_its_direct_path_when_the_box_relents() -> None:
    network = two_boxes(9, preserve_port=False)
    network.stream("s1", "s2", 650.0, 2.0)
    assert not direct(network, "s1", "s2")
    box = network["s2"].host.via
    assert isinstance(box, NatBox)
    box.forget()
    box.preserve_port = True
    network.stream("s1", "s2", 120.0, 0.5)
    assert direct(network, "s1", "s2")


@pytest.mark.parametrize("seed", range(3))
def test_two_spokes_behind_one_box_go_by_their_private_addresses(seed: int) -> None:
    network = Network(seed, spokes=2, nated=(1, 2))
    network.start()
    sent = network.stream("s1", "s2", 5.0)
    assert sorted(network.arrived("s1", "s2")) == sent
    assert direct(network, "s1", "s2")
    assert shown(network, "s1", "192.168.100.2")["path"] == "direct"


def test_two_spokes_behind_one_address_that_cannot_reach_each_other_stay_on_the_hub() -> None:
    network = Network(9, spokes=2, nated=(1, 2))
    network.start()
    box = network.nat

    send = box.send

    def isolating(datagram: Any) -> None:
        if datagram.destination.address not in box.inside:
            send(datagram)

    for name in ("s1", "s2"):
        network[name].host.via = _Carrier(box, isolating)
    sent = network.stream("s1", "s2", 60.0, 0.5)
    assert sorted(network.arrived("s1", "s2")) == sent
    assert network.path("s1", "s2") == ("s1", "hub", "s2")
    assert shown(network, "s1", "192.168.100.2")["path"] == "hub"


class _Carrier:
    """A box that passes on what `send` lets it."""

    def __init__(self, box: NatBox, send: Any) -> None:
        self.send, self.attach, self.detach = send, box.attach, box.detach
