"""One end has started anew, and the other learns of it: lost SPIs and crash tokens (RFC 6290)."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from dsvpn.addresses import Endpoint, Path
from dsvpn.ike import events, lost_spi
from dsvpn.ike.quick_crash import make_token
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, NotifyType
from tests.ike.harness import A, B, End, InFlight, Wire, make_profile

SECRETS = {"a": b"secret of a" * 3, "b": b"secret of b" * 3}
STRANGER = Path(Endpoint(B, 500), Endpoint(ip_address("203.0.113.66"), 500))


def make(tokens: tuple[str, ...] = ("a", "b"), ike: tuple[str, ...] | None = None, **options: Any) -> Wire:
    if ike is not None:
        options["ike"] = ike
    a, b = (
        End(name, address, [make_profile(name, **options)], 0, SECRETS[name] if name in tokens else b"")
        for name, address in (("a", A), ("b", B))
    )
    net = Wire(a, b)
    net.connect()
    return net


def restart(net: Wire, name: str, *, token_secret: bytes | None = None) -> None:
    """The process of an end is killed and comes back with its state directory."""
    secret = SECRETS[name] if token_secret is None else token_secret
    old = net.a if name == "a" else net.b
    fresh = End(name, old.address, [make_profile(name)], 1, secret)
    if name == "a":
        net.a = fresh
    else:
        net.b = fresh


def counter(end: End, name: str) -> int:
    return end.engine.counters()[name]


def given_tokens(net: Wire, flights: list[InFlight]) -> list[tuple[str, bytes]]:
    return [
        (flight.sender.name, payload.data)
        for flight in flights
        for payload in net.inside(flight)
        if isinstance(payload, wire.Notify) and payload.type == NotifyType.QUICK_CRASH_DETECTION
    ]


def test_the_token_is_a_mac_of_both_spis() -> None:
    token = make_token(b"key", b"initiatr", b"respondr")
    assert token == hmac.new(b"key", b"initiatrrespondr", hashlib.sha256).digest()
    # As `openssl dgst -sha256 -hmac key` has it.
    assert token.hex() == "410b75451face5b609a4af68bf375f366cfe913585f7fccee457dce8adf7a2c9"


def test_tokens_are_given_with_ike_auth() -> None:
    net = make()
    (status,) = net.a.snapshot(net.now)
    spis = status.initiator_spi.to_bytes(8, "big"), status.responder_spi.to_bytes(8, "big")
    assert given_tokens(net, net.record[2:4]) == [(name, make_token(SECRETS[name], *spis)) for name in ("a", "b")]
    assert all(end.snapshot(net.now)[0].crash_token for end in net.ends)


@pytest.mark.parametrize("ike", [("aes128gcm16-prfsha256-x25519",), ("aes256gcm16-prfsha384-x25519-ke1_mlkem768",)])
@pytest.mark.parametrize("who", ["a", "b"])
def test_a_rekeyed_ike_sa_has_tokens_of_its_own(who: str, ike: tuple[str, ...]) -> None:
    net = make(ike=ike)
    end = net.a if who == "a" else net.b
    before = {sa.local_spi: sa.peer_token for sa in net.a.engine._context.ike_sas.values()}
    end.engine.rekey_ike(end.handle, net.now)
    net.settle()
    net.sleep(20)
    for one in net.ends:
        sa = one.engine._context.associations[one.handle].current
        assert sa is not None
        other = net.other(one)
        assert sa.peer_token == make_token(SECRETS[other.name], sa.initiator_spi, sa.responder_spi)
        assert sa.peer_token not in before.values()
    net.check_agreement()


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_restart_is_noticed_by_the_next_message(who: str) -> None:
    net = make()
    other = net.b if who == "a" else net.a
    restart(net, who)
    other.engine.check_liveness(other.handle, net.now)
    started = net.now
    net.settle()
    assert net.now == started
    assert "proves" in other.of(events.IkeSaDeleted)[0].reason
    assert not other.children
    other.check_spis()
    assert counter(other, "crash_tokens_accepted") == 1


def test_esp_to_an_end_that_has_started_anew_ends_the_ike_sa_as_well() -> None:
    """Its answer to unknown ESP is a hint, the hint makes for a question, and the answer to that has the token."""
    net = make()
    spi = net.a.child.outbound_spi
    restart(net, "b")
    net.b.engine.report_unknown_spi(spi, Path(Endpoint(B, 0), Endpoint(A, 0)), net.now)
    net.collect()
    (hint,) = net.flying["b"]
    message = wire.Message.decode(hint.data)
    assert (message.header.initiator_spi, message.header.exchange_type) == (wire.ZERO_SPI, ExchangeType.INFORMATIONAL)
    assert (message.header.from_initiator, message.header.is_response) == (True, False)
    assert message.payloads == (wire.Notify(NotifyType.INVALID_SPI, spi.to_bytes(4, "big")),)
    net.settle()
    assert net.a.of(events.IkeSaDeleted)
    assert (counter(net.a, "invalid_spi_received"), counter(net.b, "invalid_spi_sent")) == (1, 1)


@pytest.mark.parametrize("secret", [b"", b"another secret"])
def test_without_the_right_token_nothing_ends(secret: bytes) -> None:
    net = make()
    restart(net, "b", token_secret=secret)
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.settle()
    assert net.a.established
    assert not net.a.of(events.IkeSaDeleted)
    assert counter(net.a, "crash_tokens_refused") == (1 if secret else 0)
    assert counter(net.a, "invalid_ike_spi_received") == 1
    # Dead peer detection is what is left.
    net.sleep(60)
    assert "does not answer" in net.a.of(events.IkeSaDeleted)[0].reason


def test_no_token_is_shown_for_an_ike_sa_that_lives() -> None:
    """Whatever an attacker sends with the SPIs of a living IKE SA, in either direction and order."""
    net = make()
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.collect()
    data = net.lose("a").data
    ours, theirs = data[:8], data[8:16]
    sent = []
    for spis in (ours + theirs, theirs + ours, theirs + bytes(7) + b"\1", bytes(7) + b"\1" + theirs, theirs * 2):
        for flags in (0x00, 0x08, 0x20, 0x28):
            net.now += 1.0
            net.b.engine.receive_datagram(spis + data[16:19] + bytes((flags,)) + data[20:-1] + b"x", STRANGER, net.now)
            sent += net.b.engine.datagrams_to_send(net.now)
    assert [wire.Message.decode(message).payloads for message, _ in sent] == []


def test_a_forged_hint_costs_one_question_each_five_seconds() -> None:
    net = make(("a",))
    header = wire.Header(wire.ZERO_SPI, wire.ZERO_SPI, ExchangeType.INFORMATIONAL, 0x08, 0)
    hint = wire.Message(header, (wire.Notify(NotifyType.INVALID_SPI, net.a.child.outbound_spi.to_bytes(4, "big")),))
    guess = wire.Message(header, (wire.Notify(NotifyType.INVALID_SPI, b"\1\2\3\4"),))
    start = len(net.record)
    for _ in range(100):
        for forged in (hint, guess):
            net.a.engine.receive_datagram(forged.encode(), net.a.path_to(net.b), net.now)
        net.settle()
        net.sleep(0.1)
    asked = [flight for flight in net.record[start:] if flight.sender is net.a]
    assert 2 <= len(asked) <= 3
    assert net.a.established
    # From an address with which there is nothing, it is nothing.
    start = len(net.record)
    net.sleep(10)
    net.a.engine.receive_datagram(hint.encode(), STRANGER, net.now)
    net.collect()
    assert len(net.record) == start


def test_a_peer_with_an_ike_sa_is_told_under_its_protection_and_makes_the_child_sa_anew() -> None:
    net = make()
    old = net.a.child
    spi = old.outbound_spi
    # b has lost its half of the CHILD_SA, and nothing else.
    association, child = net.b.engine._context.children.pop(spi)
    association.children.remove(child)
    del net.b.children[spi]
    del net.b.sealing[association.handle]
    net.b.released.add(spi)
    association.sealing.clear()
    start = len(net.record)
    for _ in range(20):
        net.b.engine.report_unknown_spi(spi, Path(Endpoint(B, 0), Endpoint(A, 0)), net.now)
        net.settle()
    told = [
        payload
        for flight in net.record[start:]
        for payload in net.inside(flight)
        if isinstance(payload, wire.Notify) and payload.type == NotifyType.INVALID_SPI
    ]
    assert [payload.data for payload in told] == [spi.to_bytes(4, "big")]
    assert net.a.child.inbound_spi != old.inbound_spi
    assert len(net.a.of(events.IkeSaEstablished)) == 1
    net.sleep(10)
    net.check_agreement()


def test_an_spi_that_is_being_made_is_nothing_to_tell() -> None:
    net = make()
    net.b.engine.rekey_child(net.b.handle, net.b.child.inbound_spi, net.now)
    net.collect()
    start = len(net.record)
    net.b.engine.report_unknown_spi(0x12345678, Path(Endpoint(B, 0), Endpoint(A, 0)), net.now)
    net.b.engine.report_unknown_spi(net.b.child.inbound_spi, Path(Endpoint(B, 0), Endpoint(A, 0)), net.now)
    net.collect()
    assert len(net.record) == start


def test_strangers_get_few_answers() -> None:
    net = make()
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.collect()
    data = bytes(range(1, 17)) + net.lose("a").data[16:]
    spray = [Path(Endpoint(B, 500), Endpoint(ip_address("203.0.113.0") + n, 500)) for n in range(1000)]
    for path in spray:
        net.b.engine.receive_datagram(data, path, net.now)
        net.b.engine.report_unknown_spi(0x12345678, path, net.now)
    sent = net.b.engine.datagrams_to_send(net.now)
    assert len(sent) == lost_spi.TOTAL_RATE
    assert all(len(message) <= len(data) + 60 for message, _ in sent)
    # One address does not use up what is there for all.
    net.now += 10
    for _ in range(1000):
        net.b.engine.receive_datagram(data, STRANGER, net.now)
    assert len(net.b.engine.datagrams_to_send(net.now)) == 1


def test_an_answer_to_a_lost_ike_sa_repeats_its_header() -> None:
    net = make()
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.collect()
    request = net.lose("a")
    restart(net, "b")
    net.hand(replace(request, receiver=net.b))
    answer = wire.Message.decode(net.flying["b"][0].data)
    asked = wire.Message.decode(request.data).header
    assert (answer.header.initiator_spi, answer.header.responder_spi) == (asked.initiator_spi, asked.responder_spi)
    assert (answer.header.message_id, answer.header.exchange_type) == (asked.message_id, asked.exchange_type)
    assert (answer.header.is_response, answer.header.from_initiator) == (True, False)
    assert [payload.name for payload in answer.payloads if isinstance(payload, wire.Notify)] == [
        "INVALID_IKE_SPI",
        "QUICK_CRASH_DETECTION",
    ]
    # An answer is never answered.
    fresh = End("c", A, [make_profile("c")], 0)
    fresh.engine.receive_datagram(net.flying["b"][0].data, net.a.path_to(net.b), net.now)
    assert not fresh.engine.datagrams_to_send(net.now)
