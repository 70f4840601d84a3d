"""What FRR routers said to each other, said to an engine in the place of one of them."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

import pytest

from dsvpn.nhrp import NhrpConfig, NhsConfig, Route
from dsvpn.nhrp.events import MappingAdded, NhsUp, ShortcutAdded
from dsvpn.wire.nhrp import NhrpMessage, PacketType, TrafficIndication, decode, encode
from tests.nhrp.bench import Bench, a, cie_extension
from tests.wire.nhrp_samples import captured

PEERS = {"192.0.2.11": 1, "192.0.2.12": 2}


def frr_hub() -> Bench:
    config = NhrpConfig((ip_interface("10.255.0.1/32"),), a("192.0.2.1"), holding_time=30, redirect=True)
    routes = [Route(ip_network(f"10.{n}.0.0/24"), True, a(f"10.255.0.1{n}")) for n in (1, 2)]
    bench = Bench(config, [*routes, Route(ip_network("10.255.0.1/32"), False, None, True)])
    for nbma, peer in PEERS.items():
        bench.engine.peer_up(a(nbma), peer, bench.now)
    return bench


def frr_spoke(number: int, nbma: str) -> Bench:
    config = NhrpConfig(
        (ip_interface(f"10.255.0.1{number}/32"),),
        a(nbma),
        holding_time=30,
        shortcut=True,
        nhs=(NhsConfig(a("10.255.0.1"), a("192.0.2.1")),),
        registration_interval=10_000.0,
    )
    routes = [
        Route(ip_network(f"10.{number}.0.0/24"), False),
        Route(ip_network(f"10.255.0.1{number}/32"), False, None, True),
        Route(ip_network("10.0.0.0/8"), True, a("10.255.0.1")),
    ]
    bench = Bench(config, routes)
    bench.engine.peer_up(a("192.0.2.1"), 7, bench.now)
    return bench


def same_fields(ours: NhrpMessage, theirs: NhrpMessage, flags_mask: int = 0xFFFF) -> None:
    """The two say the same, but for reserved flags."""
    assert ours.flags & flags_mask == theirs.flags & flags_mask
    ours.flags = theirs.flags
    assert ours == theirs


@pytest.mark.parametrize("name", ["frr8.4.4_plain_registration", "frr8.4.4_nat_registration"])
def test_hub_answers_registrations_as_frr_does(name: str) -> None:
    bench = frr_hub()
    packets = captured(name)
    answered = 0
    for source, destination, data in packets:
        if destination == "192.0.2.1":
            bench.receive(data, PEERS[source], source)
        else:
            [(ours, peer)] = bench.engine.packets_to_send(bench.now)
            assert peer == PEERS[destination]
            assert ours == data, "octet for octet"
            answered += 1
    assert answered == len(packets) // 2
    natted = a("198.51.100.12") if "nat" in name else a("192.0.2.12")
    assert bench.events() == [
        MappingAdded(a("10.255.0.11"), a("192.0.2.11"), a("192.0.2.11"), "registered", 1),
        MappingAdded(a("10.255.0.12"), a("192.0.2.12"), natted, "registered", 2),
    ]


@pytest.mark.parametrize("name", ["frr8.4.4_plain", "frr8.4.4_nat"])
def test_hub_forwards_resolutions_as_frr_does(name: str) -> None:
    bench = frr_hub()
    for source, destination, data in captured(f"{name}_registration"):
        if destination == "192.0.2.1":
            bench.receive(data, PEERS[source], source)
    bench.sent()
    expected = [(data, PEERS[to]) for _, to, data in captured(f"{name}_resolution") if to != "192.0.2.1"]
    for source, destination, data in captured(f"{name}_resolution"):
        if destination == "192.0.2.1":
            bench.receive(data, PEERS[source], source)
    got = bench.engine.packets_to_send(bench.now)
    assert len(got) == len(expected) == 4
    # The order of packets to different peers is chance; their octets are not.
    for data, peer in got:
        ours = decode(data)
        [theirs] = [
            other
            for octets, to in expected
            if to == peer
            and isinstance(other := decode(octets), NhrpMessage)
            and isinstance(ours, NhrpMessage)
            and other.type == ours.type
        ]
        assert isinstance(ours, NhrpMessage)
        same_fields(ours, theirs)


@pytest.mark.parametrize("name", ["frr8.4.4_plain", "frr8.4.4_nat"])
def test_hub_redirects_as_frr_does(name: str) -> None:
    for _, destination, data in captured(f"{name}_redirect"):
        bench = frr_hub()
        theirs = decode(data)
        assert isinstance(theirs, TrafficIndication)
        bench.engine.handle_redirect(theirs.packet, PEERS[destination], bench.now)
        assert bench.engine.packets_to_send(bench.now) == [(data, PEERS[destination])]


@pytest.mark.parametrize(("name", "nbma"), [("frr8.4.4_plain", "192.0.2.12"), ("frr8.4.4_nat", "198.51.100.12")])
def test_spoke_registers_with_an_frr_hub(name: str, nbma: str) -> None:
    bench = frr_spoke(2, nbma)
    ours = bench.message(PacketType.REGISTRATION_REQUEST)
    [request, *_] = [data for source, _, data in captured(f"{name}_registration") if source == "192.0.2.12"]
    theirs = decode(request)
    assert isinstance(theirs, NhrpMessage)
    # This gateway knows its hub's address; that FRR had `nhs dynamic`.
    theirs.destination_protocol = ours.destination_protocol
    cie_extension(theirs, 9)[0].protocol = a("10.255.0.1")
    theirs.request_id = ours.request_id
    same_fields(ours, theirs)
    [answer, *_] = [data for _, to, data in captured(f"{name}_registration") if to == "192.0.2.12"]
    reply = decode(answer)
    assert isinstance(reply, NhrpMessage)
    reply.request_id = ours.request_id
    bench.receive(encode(reply), 7, "192.0.2.1")
    assert bench.events()[-1] == NhsUp(a("10.255.0.1"), a("192.0.2.12") if "nat" in name else None)


@pytest.mark.parametrize(("name", "nbma"), [("frr8.4.4_plain", "192.0.2.12"), ("frr8.4.4_nat", "198.51.100.12")])
def test_spoke_resolves_by_an_frr_hub(name: str, nbma: str) -> None:
    bench = frr_spoke(2, nbma)
    ours = bench.message(PacketType.REGISTRATION_REQUEST)
    [answer, *_] = [data for _, to, data in captured(f"{name}_registration") if to == "192.0.2.12"]
    reply = decode(answer)
    assert isinstance(reply, NhrpMessage)
    reply.request_id = ours.request_id
    bench.receive(encode(reply), 7, "192.0.2.1")
    bench.events()

    # FRR hub                                spoke 2 (dsvpn)
    #   Traffic Indication  --------------->
    #   <---------------  Resolution Request 10.1.0.1
    #   Resolution Request 10.2.0.1  ------>
    #   <-----------------  Resolution Reply
    #   Resolution Reply 10.1.0.0/24  ----->
    [indication] = [data for _, to, data in captured(f"{name}_redirect") if to == "192.0.2.12"]
    bench.receive(indication, 7, "192.0.2.1")
    request = bench.message(PacketType.RESOLUTION_REQUEST)
    exchange = captured(f"{name}_resolution")
    messages = [
        (source, to, packet) for source, to, data in exchange if isinstance(packet := decode(data), NhrpMessage)
    ]
    [theirs] = [p for source, _, p in messages if source == "192.0.2.12" and p.type == PacketType.RESOLUTION_REQUEST]
    theirs.request_id = request.request_id
    same_fields(request, theirs)

    [asked] = [p for _, to, p in messages if to == "192.0.2.12" and p.type == PacketType.RESOLUTION_REQUEST]
    bench.receive(asked, 7, "192.0.2.1")
    answer_of_ours = bench.message(PacketType.RESOLUTION_REPLY)
    [theirs] = [p for source, _, p in messages if source == "192.0.2.12" and p.type == PacketType.RESOLUTION_REPLY]
    # FRR drops the flag that says it understands the NAT extension.
    same_fields(answer_of_ours, theirs, 0xFFFD)

    [told] = [p for _, to, p in messages if to == "192.0.2.12" and p.type == PacketType.RESOLUTION_REPLY]
    told.request_id = request.request_id
    bench.receive(told, 7, "192.0.2.1")
    events = bench.events()
    assert events[-1] == ShortcutAdded(ip_network("10.1.0.0/24"), a("10.255.0.11"))
    assert MappingAdded(a("10.255.0.11"), a("192.0.2.11"), a("192.0.2.11"), "resolved", None) in events


def test_spoke_1_reaches_the_natted_one_at_its_public_address() -> None:
    bench = frr_spoke(1, "192.0.2.11")
    bench.sent()
    [indication] = [data for _, to, data in captured("frr8.4.4_nat_redirect") if to == "192.0.2.11"]
    bench.receive(indication, 7, "192.0.2.1")
    request = bench.message(PacketType.RESOLUTION_REQUEST)
    [told] = [
        packet
        for _, to, data in captured("frr8.4.4_nat_resolution")
        if to == "192.0.2.11" and isinstance(packet := decode(data), NhrpMessage) and packet.type == 2
    ]
    told.request_id = request.request_id
    bench.receive(told, 7, "192.0.2.1")
    assert MappingAdded(a("10.255.0.12"), a("192.0.2.12"), a("198.51.100.12"), "resolved", None) in bench.events()
