"""A NAT in front of either end, of both, or pretended (RFC 7296 section 2.23)."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from dsvpn.addresses import Endpoint, Path
from dsvpn.ike import events
from dsvpn.ike.nat import detection_hash
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType
from tests.ike.harness import A, B, Nat, make_profile, make_wire

NAT_A = ip_address("203.0.113.1")
NAT_B = ip_address("203.0.113.2")


@pytest.mark.parametrize("who", [("a",), ("b",), ("a", "b")], ids=["initiator", "responder", "both"])
@pytest.mark.parametrize("shift", [0, 10_000])
def test_nat_in_each_position(who: tuple[str, ...], shift: int) -> None:
    nats = {}
    if "a" in who:
        nats["a"] = Nat(NAT_A, shift)
    if "b" in who:
        # A responder is reached by forwarded ports, which keep their numbers.
        nats["b"] = Nat(NAT_B)
    net = make_wire(nats=nats)
    net.connect()
    net.check_agreement()
    by_a, by_b = (end.of(events.IkeSaEstablished)[0] for end in net.ends)
    assert (by_a.local_nat, by_a.remote_nat) == ("a" in who, "b" in who)
    assert (by_b.local_nat, by_b.remote_nat) == ("b" in who, "a" in who)
    public_a = Endpoint(NAT_A, 4500 + shift) if "a" in who else Endpoint(A, 4500)
    public_b = Endpoint(NAT_B if "b" in who else B, 4500)
    assert by_a.path == Path(Endpoint(net.a.address, 4500), public_b)
    assert by_b.path == Path(Endpoint(net.b.address, 4500), public_a)
    # Each learns what the other thinks its address is.
    assert by_b.remote_claimed == net.a.address
    for end in net.ends:
        assert end.child.udp_encapsulation
        assert end.child.path == (by_a if end is net.a else by_b).path
    # IKE_SA_INIT by port 500, everything behind it by 4500.
    assert [flight.path.local.port % 1000 for flight in net.record] == [500] * 4
    first, second = net.record[0].path, net.record[2].path
    assert (first.local.port, second.local.port) == (500, 4500)


@pytest.mark.parametrize("who", [("a",), ("b",), ("a", "b")], ids=["initiator", "responder", "both"])
def test_rekeys_behind_nat_from_either_end(who: tuple[str, ...]) -> None:
    nats = {"a": Nat(NAT_A, 10_000), "b": Nat(NAT_B)}
    net = make_wire(
        make_profile("a", esp=("aes128gcm16-x25519",)),
        make_profile("b", esp=("aes128gcm16-x25519",)),
        nats={name: nats[name] for name in who},
    )
    net.connect()
    for end in net.ends:
        old = end.child.inbound_spi
        end.engine.rekey_child(end.handle, old, net.now)
        net.settle()
        assert end.child.replaces == old
        end.engine.rekey_ike(end.handle, net.now)
        net.settle()
        net.sleep(10)
        net.check_agreement()


@pytest.mark.parametrize("forcing", ["a", "b"])
def test_forced_encapsulation(forcing: str) -> None:
    net = make_wire(
        make_profile("a", force_udp_encapsulation=forcing == "a"),
        make_profile("b", force_udp_encapsulation=forcing == "b"),
    )
    net.connect()
    net.check_agreement()
    for end in net.ends:
        assert end.child.udp_encapsulation
        assert end.child.path.local.port == end.child.path.remote.port == 4500
    by_a, by_b = (end.of(events.IkeSaEstablished)[0] for end in net.ends)
    assert (by_a.remote_nat, by_b.remote_nat) == (forcing == "b", forcing == "a")
    assert not by_a.local_nat
    assert not by_b.local_nat


def test_unspecified_local_address_is_learnt_and_encapsulated() -> None:
    net = make_wire()
    path = Path(Endpoint(ip_address("0.0.0.0"), 500), Endpoint(B, 500))
    net.a.engine.initiate("default", path, net.now)
    net.settle()
    net.check_agreement()
    assert net.a.child.path == net.a.path_to(net.b, 4500)
    assert net.a.child.udp_encapsulation
    assert net.b.child.udp_encapsulation


def test_start_on_port_4500() -> None:
    net = make_wire(nats={"a": Nat(NAT_A, 10_000)})
    net.connect(port=4500)
    net.check_agreement()
    assert {flight.path.local.port for flight in net.record if flight.sender is net.a} == {4500}


def test_a_new_mapping_is_followed_when_it_is_authenticated() -> None:
    """The NAT box in front of the initiator has restarted; the responder follows the next message."""
    net = make_wire(make_profile("a", dpd_interval=10.0), nats={"a": Nat(NAT_A, 10_000)})
    net.connect()
    old = net.record[-2]
    net.nats["a"] = Nat(NAT_A, 20_000)
    net.sleep(11)
    (changed,) = net.b.of(events.IkePathChanged)
    assert changed.path == Path(Endpoint(B, 4500), Endpoint(NAT_A, 24_500))
    assert not net.a.of(events.IkePathChanged)
    # An old message by the old path moves nothing, and neither does a forged one.
    net.hand(old)
    forged = bytearray(old.data)
    forged[-1] ^= 1
    net.b.engine.receive_datagram(bytes(forged), old.path, net.now)
    net.collect()
    assert len(net.b.of(events.IkePathChanged)) == 1
    # What the responder begins goes to the new mapping.
    net.b.engine.check_liveness(net.b.handle, net.now)
    net.settle()
    net.sleep(20)
    assert net.b.established


def test_a_peer_without_nat_does_not_move() -> None:
    net = make_wire(make_profile("a", dpd_interval=10.0))
    net.connect()
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.collect()
    flight = net.lose("a")
    elsewhere = Path(flight.path.local, Endpoint(NAT_A, 500))
    net.b.engine.receive_datagram(flight.data, elsewhere, net.now)
    net.collect()
    assert not net.b.of(events.IkePathChanged)
    assert net.b.snapshot(net.now)[0].path == net.b.path_to(net.a)


def test_the_owner_can_say_that_the_peer_moved() -> None:
    net = make_wire(nats={"a": Nat(NAT_A, 10_000)})
    net.connect()
    moved = Path(Endpoint(B, 4500), Endpoint(NAT_A, 33_333))
    net.b.engine.update_remote(net.b.handle, moved, net.now)
    net.collect()
    assert [event.path for event in net.b.of(events.IkePathChanged)] == [moved]
    net.b.engine.update_remote(net.b.handle, moved, net.now)
    # The initiator's peer is not behind a NAT: it cannot move so.
    net.a.engine.update_remote(net.a.handle, moved, net.now)
    net.collect()
    assert len(net.b.of(events.IkePathChanged)) == 1
    assert not net.a.of(events.IkePathChanged)


def test_a_peer_without_nat_traversal() -> None:
    """Without its notifications nothing is detected, and nothing moves."""
    net = make_wire(make_profile("a"), make_profile("b"))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    message = wire.Message.decode(net.flying["a"][0].data)
    bare = wire.Message(message.header, tuple(p for p in message.payloads if not isinstance(p, wire.Notify)))
    flight = net.lose("a")
    net.b.engine.receive_datagram(bare.encode(), flight.path, net.now)
    answer = wire.Message.decode(net.b.engine.datagrams_to_send(net.now)[0][0])
    said = {notify.type for notify in wire.find_all(answer.payloads, wire.Notify)}
    assert said.isdisjoint({NotifyType.NAT_DETECTION_SOURCE_IP, NotifyType.NAT_DETECTION_DESTINATION_IP})


def test_detection_hash_covers_spis_address_and_port() -> None:
    """SHA-1 over SPIi | SPIr | address | port, as RFC 7296 section 2.23 orders them."""
    one = detection_hash(b"\x01" * 8, b"\x02" * 8, Endpoint(A, 500))
    # printf of the 22 octets, by sha1sum.
    assert one.hex() == "3ca7080caf618c11fe64bf2eb2d9795ba76b573d"
    others = {
        detection_hash(b"\x03" * 8, b"\x02" * 8, Endpoint(A, 500)),
        detection_hash(b"\x01" * 8, b"\x03" * 8, Endpoint(A, 500)),
        detection_hash(b"\x01" * 8, b"\x02" * 8, Endpoint(B, 500)),
        detection_hash(b"\x01" * 8, b"\x02" * 8, Endpoint(A, 4500)),
    }
    assert one not in others
    assert len(others) == 4
