"""What strangers and broken peers send: no exception leaves the engine, and nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsvpn.ike import events
from dsvpn.ike.ppk import Ppk
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, NotifyType
from tests.ike.harness import End, InFlight, Payloads, Wire, both_options, make_wire


def state(net: Wire, end: End) -> object:
    """Everything about an end that a datagram may change."""
    context = end.engine._context
    sas = [
        (
            sa.state,
            sa.association.path,
            sa.requests.next_id,
            sa.requests.outstanding is None,
            sa.responses.expected_id,
            sa.association.last_heard,
        )
        for sa in context.ike_sas.values()
    ]
    return sas, dict(end.children), dict(end.established), len(end.events), end.allocated - end.released


def mutations(data: bytes) -> list[bytes]:
    cut = [data[:length] for length in range(len(data))]
    flipped = []
    for at in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            flipped.append(data[:at] + bytes((data[at] ^ mask,)) + data[at + 1 :])
    return [*cut, *flipped, data + b"\0"]


def connect(net: Wire) -> None:
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)


def rekey_child(net: Wire) -> None:
    net.a.engine.rekey_child(net.a.handle, net.a.child.inbound_spi, net.now)


def rekey_ike(net: Wire) -> None:
    net.b.engine.rekey_ike(net.b.handle, net.now)


def delete(net: Wire) -> None:
    net.a.engine.delete(net.a.handle, net.now, "done")


def _bombard(net: Wire, flight: InFlight) -> None:
    """Every mutation of a datagram before it arrives itself."""
    header = wire.Message.decode(flight.data).header
    before = state(net, flight.receiver)
    for data in mutations(flight.data):
        flight.receiver.engine.receive_datagram(data, flight.path, net.now)
        flight.receiver.drain()
        answers = flight.receiver.engine.datagrams_to_send(net.now)
        if header.exchange_type == ExchangeType.IKE_SA_INIT:
            # Nothing protects IKE_SA_INIT: a changed request is another stranger's, and gets an answer.
            assert all(wire.Message.decode(answer).header.is_response for answer, _ in answers)
        else:
            # Other SPIs are those of an IKE SA that is not here, which is said in clear at a limited rate, and so is
            # that a version is not ours.
            later = data[17] >> 4 > 2 if len(data) > 17 else False
            said = wire.Notify(NotifyType.INVALID_MAJOR_VERSION if later else NotifyType.INVALID_IKE_SPI)
            assert all(wire.Message.decode(answer).payloads == (said,) for answer, _ in answers)
            assert not answers or later or data[:16] != flight.data[:16]
            assert state(net, flight.receiver) == before, data.hex()
    assert not flight.receiver.of(events.IkeAuthenticationRefused)


CLASSIC = {"esp": ("aes128gcm16-x25519",)}
HYBRID = {
    "ike": ("aes256gcm16-prfsha384-x25519-ke1_mlkem768",),
    "esp": ("aes128gcm16-x25519-ke1_ecp256",),
    "ppks": (Ppk(b"a ppk", b"that both ends have"),),
}
CBC = {"ike": ("aes128-sha256-prfsha256-ecp256",)}


#: Every datagram of each.
STEPS = [
    pytest.param(options, step, id=f"{name}-{step}")
    for name, options, count in (("classic", CLASSIC, 10), ("hybrid", HYBRID, 20), ("cbc", CBC, 10))
    for step in range(count)
]


@pytest.mark.parametrize(("options", "step"), STEPS)
def test_every_message_cut_and_flipped_at_every_octet(options: dict[str, Any], step: int) -> None:
    """The datagrams of a handshake, both rekeys and a delete: step counts them. Those of ML-KEM come in fragments."""
    net = make_wire(*both_options(**options), seed=step)
    seen = 0
    for action in (connect, rekey_child, rekey_ike, delete):
        action(net)
        net.collect()
        while net.flying["a"] or net.flying["b"]:
            name = "a" if net.flying["a"] else "b"
            flight = net.flying[name][0]
            if seen == step and wire.Message.decode(flight.data).header.exchange_type != ExchangeType.IKE_SA_INIT:
                _bombard(net, flight)
            seen += 1
            net.deliver(name)
        if action is not delete:
            net.check_traffic()
            assert net.a.established
            assert net.b.established
    assert seen > step
    net.sleep(200)
    net.a.check_spis()
    net.b.check_spis()


def test_init_request_cut_and_flipped_makes_nothing_but_half_open_sas() -> None:
    net = make_wire()
    connect(net)
    net.collect()
    flight = net.flying["a"][0]
    _bombard(net, flight)
    assert not net.b.events
    assert not net.b.allocated
    net.settle()
    net.check_agreement()
    net.sleep(100)
    assert len(net.b.engine._context.ike_sas) == 1


def test_init_answer_cut_and_flipped() -> None:
    """Nothing protects it, so a forged one may cost the attempt: it raises nothing and leaks nothing."""
    net = make_wire()
    connect(net)
    net.collect()
    net.deliver("a")
    template = net.lose("b").data
    for data in mutations(template):
        net = make_wire()
        connect(net)
        net.collect()
        request = net.flying["a"][0]
        spi = wire.Message.decode(request.data).header.initiator_spi
        net.a.engine.receive_datagram(spi + data[8:], net.a.path_to(net.b), net.now)
        net.sleep(30, deliver=False)
        net.a.drain()
        assert not net.a.established
        assert len(net.a.of(events.IkeSaFailed)) == 1
        net.a.check_spis()
        assert not net.a.engine._context.ike_sas


def test_old_messages_replayed_change_nothing() -> None:
    net = make_wire()
    for action in (connect, rekey_child, rekey_ike):
        action(net)
        net.settle()
    net.sleep(100)
    recorded = list(net.record)
    for flight in recorded:
        if flight.data[18] == ExchangeType.IKE_SA_INIT:
            continue
        before = state(net, flight.receiver)
        flight.receiver.engine.receive_datagram(flight.data, flight.path, net.now)
        flight.receiver.drain()
        # The last request of a living IKE SA gets its answer again, octet by octet; one of an IKE SA that was rekeyed
        # away gets told that.
        known = {old.data for old in recorded}
        lost = (wire.Notify(NotifyType.INVALID_IKE_SPI),)
        for answer, _ in flight.receiver.engine.datagrams_to_send(net.now):
            assert answer in known or wire.Message.decode(answer).payloads == lost
        assert state(net, flight.receiver) == before


@given(st.binary(max_size=300))
def test_noise(data: bytes) -> None:
    net = make_wire()
    net.a.engine.receive_datagram(data, net.a.path_to(net.b), net.now)
    assert not net.a.engine.datagrams_to_send(net.now)
    assert net.a.engine.get_timer() is None


@given(st.sampled_from([34, 35, 36, 37, 43]), st.integers(0, 255), st.integers(0, 60), st.binary(max_size=200))
def test_noise_behind_a_good_header(exchange: int, flags: int, first: int, body: bytes) -> None:
    net = make_wire()
    header = wire.Header(b"i" * 8, b"r" * 8, exchange, flags, 0)
    data = header.encode(first, 28 + len(body)) + body
    net.a.engine.receive_datagram(data, net.a.path_to(net.b), net.now)
    assert not net.a.engine.datagrams_to_send(net.now)


def test_unencrypted_requests_get_silence() -> None:
    net = make_wire()
    connect(net)
    net.settle()
    status = net.b.snapshot(net.now)[0]
    for spis in (
        (b"x" * 8, b"y" * 8),
        (status.initiator_spi.to_bytes(8, "big"), status.responder_spi.to_bytes(8, "big")),
    ):
        for payloads in ((), (wire.Delete(1),), (wire.Notify(24),)):
            header = wire.Header(*spis, ExchangeType.INFORMATIONAL, wire.Flag.INITIATOR, status.expected_request_id)
            net.b.engine.receive_datagram(wire.Message(header, payloads).encode(), net.b.path_to(net.a), net.now)
            assert not net.b.engine.datagrams_to_send(net.now)
    assert net.b.established


# -- authenticated nonsense: a peer with the right keys that breaks the protocol -----------------------------------

_DROPS: list[Callable[[Payloads], list[wire.Payload]]] = [
    lambda payloads, kind=kind: [p for p in payloads if not isinstance(p, kind)]  # type: ignore[misc]
    for kind in (
        wire.SecurityAssociation,
        wire.Nonce,
        wire.KeyExchange,
        wire.TrafficSelectorsInitiator,
        wire.TrafficSelectorsResponder,
        wire.Authentication,
        wire.IdentificationInitiator,
        wire.IdentificationResponder,
        wire.Notify,
        wire.Delete,
    )
]


def _bad_public(payloads: Payloads) -> list[wire.Payload]:
    return [wire.KeyExchange(p.group, bytes(len(p.data))) if isinstance(p, wire.KeyExchange) else p for p in payloads]


def _other_proposal(payloads: Payloads) -> list[wire.Payload]:
    changed: list[wire.Payload] = []
    for payload in payloads:
        if isinstance(payload, wire.SecurityAssociation):
            first = payload.proposals[0]
            other = wire.Proposal(9, first.protocol, first.spi, first.transforms)
            changed.append(wire.SecurityAssociation((other,)))
        else:
            changed.append(payload)
    return changed


def _nothing(_: Payloads) -> list[wire.Payload]:
    return []


@pytest.mark.parametrize("change", [*_DROPS, _bad_public, _other_proposal, _nothing])
@pytest.mark.parametrize("step", range(2, 12))
def test_authenticated_nonsense_at_every_step(step: int, change: Callable[[Payloads], list[wire.Payload]]) -> None:
    """One message of a handshake, a rekey of each kind and a delete lacks something or says what it may not."""
    net = make_wire(*both_options(esp=("aes128gcm16-x25519",), dpd_interval=20.0), seed=step)
    seen = 0
    for action in (connect, rekey_child, rekey_ike, delete):
        if action is not connect and not (net.a.sealing and net.b.established):
            break
        action(net)
        net.collect()
        while net.flying["a"] or net.flying["b"]:
            name = "a" if net.flying["a"] else "b"
            if seen == step and net.flying[name][0].data[18] != ExchangeType.IKE_SA_INIT:
                try:
                    net.deliver_inside(name, change)
                except KeyError:
                    # Its sender has forgotten the IKE SA already.
                    net.deliver(name)
            else:
                net.deliver(name)
            seen += 1
    net.sleep(400)
    for end in net.ends:
        end.check_spis()
    if step >= 4:
        # A peer may have believed in an SA that the other could not make: both are rid of it by now.
        for end in net.ends:
            assert len(end.engine._context.ike_sas) == len(end.established)


def test_ikev1_gets_no_answer_and_is_named_once_a_minute() -> None:
    net = make_wire()
    header = bytes(range(8)) + bytes(8) + bytes((1, 0x10, 2, 0)) + bytes(4)
    for length in (28, 100, 300):
        data = header + length.to_bytes(4, "big") + bytes(length - 28)
        for _ in range(50):
            net.b.engine.receive_datagram(data, net.b.path_to(net.a), net.now)
    net.b.drain()
    assert not net.b.engine.datagrams_to_send(net.now)
    (refused,) = net.b.of(events.IkeAuthenticationRefused)
    assert refused.reason == "peer speaks IKEv1, which is obsolete; configure IKEv2 there"
    assert net.b.engine.counters()["ikev1"] == 150
    net.now += 61
    net.b.engine.receive_datagram(header + (28).to_bytes(4, "big"), net.b.path_to(net.a), net.now)
    net.b.drain()
    assert len(net.b.of(events.IkeAuthenticationRefused)) == 2
    assert not net.b.engine._context.ike_sas


def test_a_later_version_is_told_ours_at_a_limited_rate() -> None:
    """
    HDR(version 3)  -->
                                    <--  HDR(version 2), N(INVALID_MAJOR_VERSION)
    """
    net = make_wire()
    path = net.b.path_to(net.a)
    request = bytes(range(16)) + bytes((33, 0x30, 34, 0x08)) + bytes((0, 0, 0, 7, 0, 0, 0, 28))
    for octets in (request, request[:27] + b"\x2c" + b"of whatever form"):
        net.now += 1
        for _ in range(50):
            net.b.engine.receive_datagram(octets, path, net.now)
        ((answer, way),) = net.b.engine.datagrams_to_send(net.now)
        assert way == path
        message = wire.Message.decode(answer)
        assert message.header == wire.Header(bytes(range(8)), bytes(range(8, 16)), 34, wire.Flag.RESPONSE, 7)
        assert message.payloads == (wire.Notify(NotifyType.INVALID_MAJOR_VERSION),)
    assert net.b.engine.counters()["later_versions"] == 2
    # An answer is never answered, and neither is what has no version: too short, too long, without an SPI.
    net.now += 10
    for octets in (request[:19] + b"\x28" + request[20:], request[:27], request + b"x", bytes(8) + request[8:]):
        net.b.engine.receive_datagram(octets, path, net.now)
    assert not net.b.engine.datagrams_to_send(net.now)
    assert not net.b.engine._context.ike_sas
