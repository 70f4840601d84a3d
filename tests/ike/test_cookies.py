"""Cookies and half-open limits (RFC 7296 section 2.6): what strangers can make the engine remember and do."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsvpn.addresses import Endpoint, Path
from dsvpn.errors import MisuseError
from dsvpn.ike import events
from dsvpn.ike.cookies import ROTATION, CookieJar, is_request
from dsvpn.ike.half_open import HalfOpenLimits
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, NotifyType
from tests.ike.harness import START, A, B, Wire, make_profile, make_wire

ALWAYS = HalfOpenLimits(total=20, per_address=5, cookie_threshold=0, cookie_threshold_per_address=0)
SOON = HalfOpenLimits(total=20, per_address=5, cookie_threshold=10, cookie_threshold_per_address=3)
PATH = Path(Endpoint(B, 500), Endpoint(A, 500))


def limited(limits: HalfOpenLimits, seed: int = 0, **options: Any) -> Wire:
    net = make_wire(make_profile("a", **options), make_profile("b", **options), seed=seed)
    net.b.engine._context.half_open.limits = limits
    return net


def request(net: Wire) -> bytes:
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    return net.lose("a").data


def with_spi(data: bytes, number: int) -> bytes:
    return (number + 1).to_bytes(8, "big") + data[8:]


def stranger(number: int) -> Path:
    """A path from one of many addresses."""
    return Path(Endpoint(B, 500), Endpoint(IPv4Address(0x0A000000 + number), 500))


def cookie_in(datagram: bytes) -> bytes:
    message = wire.Message.decode(datagram)
    assert message.header.is_response
    assert message.header.responder_spi == wire.ZERO_SPI
    (payload,) = message.payloads
    assert isinstance(payload, wire.Notify)
    assert payload.type == NotifyType.COOKIE
    assert 1 <= len(payload.data) <= 64
    return payload.data


def with_cookie(data: bytes, cookie: bytes) -> bytes:
    message = wire.Message.decode(data)
    return wire.Message(message.header, (wire.Notify(NotifyType.COOKIE, cookie), *message.payloads)).encode()


@pytest.mark.parametrize("ike", ["aes128gcm16-prfsha256-x25519", "aes256gcm16-prfsha384-x25519-ke1_mlkem768"])
def test_a_handshake_brings_the_cookie_back(ike: str) -> None:
    """
    HDR(A,0), SAi1, KEi, Ni  -->
                                <--  HDR(A,0), N(COOKIE)
    HDR(A,0), N(COOKIE), SAi1, KEi, Ni  -->
    """
    net = limited(ALWAYS, ike=(ike,))
    net.connect()
    net.check_agreement()
    counters = net.b.engine.counters()
    assert (counters["cookies_sent"], counters["cookies_accepted"], counters["cookies_refused"]) == (1, 1, 0)
    assert counters["half_open"] == 0
    first = wire.Message.decode(net.record[2].data).payloads[0]
    assert isinstance(first, wire.Notify)
    assert first.type == NotifyType.COOKIE


def test_cookie_and_then_another_group() -> None:
    """RFC 7296 section 2.6.1: the retry in the other group brings the cookie again."""
    net = make_wire(
        make_profile("a", ike=("aes128gcm16-prfsha256-x25519", "aes128gcm16-prfsha256-ecp384")),
        make_profile("b", ike=("aes128gcm16-prfsha256-ecp384",)),
    )
    net.b.engine._context.half_open.limits = ALWAYS
    net.connect()
    net.check_agreement()
    counters = net.b.engine.counters()
    assert (counters["cookies_sent"], counters["cookies_accepted"]) == (1, 2)


def test_no_state_before_a_cookie() -> None:
    net = limited(ALWAYS)
    data = request(net)
    for number in range(1000):
        net.b.engine.receive_datagram(with_spi(data, number), stranger(number), net.now)
        ((answer, path),) = net.b.engine.datagrams_to_send(net.now)
        assert path == stranger(number)
        assert answer[:8] == with_spi(data, number)[:8]
        cookie_in(answer)
    context = net.b.engine._context
    assert not context.ike_sas
    assert not len(context.half_open)
    assert not context.by_address
    assert net.b.engine.get_timer() is None


def test_a_cookie_is_for_one_sender() -> None:
    """Not for another address, port, SPI or nonce, nor altered."""
    net = limited(ALWAYS)
    data = request(net)
    net.b.engine.receive_datagram(data, PATH, net.now)
    ((answer, _),) = net.b.engine.datagrams_to_send(net.now)
    good = with_cookie(data, cookie_in(answer))
    other_nonce = wire.Message.decode(good)
    changed = tuple(wire.Nonce(bytes(32)) if isinstance(p, wire.Nonce) else p for p in other_nonce.payloads)
    cookie = cookie_in(answer)
    wrong = [
        (good, stranger(1)),
        (good, Path(PATH.local, Endpoint(A, 501))),
        (good, Path(PATH.local, Endpoint(ip_address("2001:db8::1"), 500))),
        (with_spi(good, 5), PATH),
        (wire.Message(other_nonce.header, changed).encode(), PATH),
        (with_cookie(data, cookie[:-1]), PATH),
        (with_cookie(data, cookie + b"\0"), PATH),
        (with_cookie(data, bytes(len(cookie))), PATH),
        (with_cookie(data, b""), PATH),
        *((with_cookie(data, cookie[:i] + bytes((cookie[i] ^ 1,)) + cookie[i + 1 :]), PATH) for i in range(25)),
    ]
    for datagram, path in wrong:
        net.b.engine.receive_datagram(datagram, path, net.now)
        ((answer, _),) = net.b.engine.datagrams_to_send(net.now)
        cookie_in(answer)
    assert net.b.engine.counters()["cookies_refused"] == len(wrong)
    assert not net.b.engine._context.ike_sas
    net.b.engine.receive_datagram(good, PATH, net.now)
    assert net.b.engine.counters()["half_open"] == 1


def test_the_secret_changes_and_the_last_one_is_known_for_as_long_again() -> None:
    net = limited(ALWAYS)
    data = request(net)
    jar = CookieJar(Random(1).randbytes)

    def ask(now: float) -> bytes:
        answer = jar.admit(data, PATH, now)
        assert isinstance(answer, bytes)
        return cookie_in(answer)

    first = ask(START)
    assert ask(START + ROTATION - 1) == first
    second = ask(START + ROTATION)
    assert second != first
    assert jar.admit(with_cookie(data, first), PATH, START + ROTATION) is True
    assert jar.admit(with_cookie(data, second), PATH, START + ROTATION) is True
    third = ask(START + 2 * ROTATION)
    assert jar.admit(with_cookie(data, first), PATH, START + 2 * ROTATION) is not True
    assert jar.admit(with_cookie(data, second), PATH, START + 2 * ROTATION) is True
    # After a long silence no old secret counts.
    assert jar.admit(with_cookie(data, third), PATH, START + 10 * ROTATION) is not True
    for turn in range(300):
        jar.admit(with_cookie(data, ask(START + (20 + turn) * ROTATION)), PATH, START + (20 + turn) * ROTATION)
    assert jar.accepted == 3 + 300


def test_thresholds_per_address_and_in_total() -> None:
    net = limited(SOON)
    data = request(net)
    for number in range(3):
        net.b.engine.receive_datagram(with_spi(data, number), PATH, net.now)
    assert net.b.engine.counters()["half_open"] == 3
    net.b.engine.datagrams_to_send(net.now)
    # The fourth of this address needs a cookie; the first of another does not.
    net.b.engine.receive_datagram(with_spi(data, 3), PATH, net.now)
    ((answer, _),) = net.b.engine.datagrams_to_send(net.now)
    cookie_in(answer)
    for number in range(7):
        net.b.engine.receive_datagram(with_spi(data, number), stranger(number), net.now)
    assert net.b.engine.counters()["half_open"] == 10
    net.b.engine.datagrams_to_send(net.now)
    # Ten in total: nobody does without.
    net.b.engine.receive_datagram(with_spi(data, 99), stranger(99), net.now)
    ((answer, _),) = net.b.engine.datagrams_to_send(net.now)
    cookie_in(answer)
    # A repeated request of one that is known gets its answer again.
    net.b.engine.receive_datagram(with_spi(data, 0), PATH, net.now)
    ((answer, _),) = net.b.engine.datagrams_to_send(net.now)
    assert wire.find(wire.Message.decode(answer).payloads, wire.KeyExchange) is not None


def ask_with_cookie(net: Wire, data: bytes, path: Path) -> None:
    """A stranger that is at its address."""
    net.b.engine.receive_datagram(data, path, net.now)
    ((answer, _),) = net.b.engine.datagrams_to_send(net.now)
    net.b.engine.receive_datagram(with_cookie(data, cookie_in(answer)), path, net.now)
    net.b.engine.datagrams_to_send(net.now)


def test_one_address_gets_no_more_than_its_share() -> None:
    net = limited(ALWAYS)
    data = request(net)
    for number in range(50):
        ask_with_cookie(net, with_spi(data, number), PATH)
    counters = net.b.engine.counters()
    assert (counters["half_open"], counters["half_open_refused"]) == (5, 45)
    # Another address is not touched by it, and after a while this one is free again.
    ask_with_cookie(net, data, stranger(1))
    assert net.b.engine.counters()["half_open"] == 6
    net.sleep(40, deliver=False)
    assert net.b.engine.counters()["half_open"] == 0
    assert not net.b.engine._context.by_address
    ask_with_cookie(net, data, PATH)
    assert net.b.engine.counters()["half_open"] == 1


def test_the_oldest_makes_room() -> None:
    net = limited(ALWAYS)
    data = request(net)
    for number in range(30):
        ask_with_cookie(net, with_spi(data, number), stranger(number))
    counters = net.b.engine.counters()
    assert (counters["half_open"], counters["half_open_evicted"]) == (20, 10)
    assert len(net.b.engine._context.ike_sas) == 20
    assert set(net.b.engine._context.by_address) == {stranger(number).remote.address for number in range(10, 30)}


@pytest.mark.parametrize("seed", range(3))
def test_a_flood_leaves_peers_and_callers_alone(seed: int) -> None:
    """20,000 spoofed requests in 10 s while one peer lives and others call; datagrams of the flood overtake theirs."""
    print(f"seed {seed}")
    chance = Random(seed)
    net = make_wire(make_profile("a"), make_profile("b"), seed=seed)
    net.connect()
    data = net.record[0].data
    end = net.now + 10.0
    calls = 0
    waits: list[float] = []
    called_at = 0.0
    peak = 0
    for _ in range(20_000):
        net.now += 10.0 / 20_000
        spoofed = chance.randbytes(8) + data[8:]
        path = stranger(chance.randrange(1 << 24))
        if chance.random() < 0.2:
            # With a made-up cookie.
            spoofed = with_cookie(spoofed, b"\x01" + chance.randbytes(24))
        net.b.engine.receive_datagram(spoofed, path, net.now)
        if chance.random() < 0.02:
            net.b.engine.receive_datagram(chance.randbytes(8) + data[8:], path, net.now)
        net.collect()
        peak = max(peak, len(net.b.engine._context.ike_sas))
        if len(net.a.established) > calls:
            calls += 1
            waits.append(net.now - called_at)
            called_at = net.now
            net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
        for name in ("a", "b"):
            if net.flying[name] and chance.random() < 0.1:
                net.deliver(name)
        timer = net.next_timer()
        if timer is not None and timer <= net.now:
            for one in net.ends:
                one.engine.handle_timer(net.now)
    assert net.now >= end - 1e-3
    assert not net.b.of(events.IkeSaDeleted)
    assert len(net.b.established) >= calls > 50
    assert max(waits[1:]) < 2.0
    counters = net.b.engine.counters()
    assert counters["half_open_evicted"] == 0
    assert peak < 100 + len(net.b.established) + 10
    assert counters["cookies_sent"] > 15_000
    net.settle()
    net.sleep(60)
    net.check_agreement()
    assert net.b.engine.counters()["half_open"] == 0
    assert len(net.b.engine._context.ike_sas) == len(net.b.established)


@given(st.binary(max_size=300), st.booleans())
def test_any_octets_under_load(data: bytes, shaped: bool) -> None:
    """Nothing raises, nothing is remembered, and no answer is longer than what asked for it."""
    net = limited(ALWAYS)
    if shaped:
        length = (28 + len(data)).to_bytes(4, "big")
        data = b"\x11" * 8 + bytes(8) + bytes((41, 0x20, 34, 8)) + bytes(4) + length + data
        assert is_request(data) == (len(data) > 28)
    net.b.engine.receive_datagram(data, PATH, net.now)
    assert sum(len(answer) for answer, _ in net.b.engine.datagrams_to_send(net.now)) <= max(len(data), 61)
    assert not net.b.engine._context.ike_sas


def test_every_cut_and_flip_of_a_request_under_load() -> None:
    net = limited(ALWAYS)
    data = request(net)
    for at in range(len(data)):
        for mutated in (data[:at], data[:at] + bytes((data[at] ^ 0xFF,)) + data[at + 1 :]):
            net.b.engine.receive_datagram(mutated, PATH, net.now)
            for answer, _ in net.b.engine.datagrams_to_send(net.now):
                assert wire.Message.decode(answer).header.exchange_type == ExchangeType.IKE_SA_INIT
    assert not net.b.engine._context.ike_sas


@pytest.mark.parametrize(
    "limits",
    [
        {"total": 0},
        {"per_address": 0},
        {"total": 10, "per_address": 11, "cookie_threshold": 5},
        {"total": 10, "per_address": 10, "cookie_threshold": 11},
        {"per_address": 5, "cookie_threshold_per_address": 6},
        {"cookie_threshold": -1},
        {"cookie_threshold_per_address": -1},
    ],
)
def test_limits_without_meaning(limits: dict[str, int]) -> None:
    with pytest.raises(MisuseError, match="have no meaning"):
        HalfOpenLimits(**limits)


def test_first_contact_is_found_by_address_and_follows_it() -> None:
    """The index of associations by address: INITIAL_CONTACT stands in the first IKE_AUTH alone."""
    net = make_wire()
    net.connect()
    assert net.b.of(events.IkeSaEstablished)[0].initial_contact
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    assert not net.b.of(events.IkeSaEstablished)[1].initial_contact
    context = net.a.engine._context
    assert {address: len(found) for address, found in context.by_address.items()} == {B: 2}
    (first, second) = context.associations.values()
    first.path = Path(first.path.local, Endpoint(ip_address("198.51.100.7"), 500))
    assert {address: len(found) for address, found in context.by_address.items()} == {
        B: 1,
        ip_address("198.51.100.7"): 1,
    }
    second.path = Path(second.path.local, Endpoint(B, 4500))
    for handle in list(net.a.established):
        net.a.engine.delete(handle, net.now, "done")
    net.settle()
    net.sleep(200)
    assert not context.by_address


def test_the_data_plane_makes_the_same_cookie() -> None:
    """The vector of native/dataplane/src/cookie.rs."""
    header = wire.Header(bytes(range(1, 9)), wire.ZERO_SPI, ExchangeType.IKE_SA_INIT, wire.Flag.INITIATOR, 0)
    data = wire.Message(header, (wire.KeyExchange(31, bytes([9]) * 32), wire.Nonce(bytes([0x55]) * 32))).encode()
    jar = CookieJar(lambda length: bytes([7]) * length)
    jar._version = 2
    answer = jar.admit(data, Path(PATH.local, Endpoint(IPv4Address("192.0.2.1"), 500)), START)
    assert isinstance(answer, bytes)
    assert cookie_in(answer).hex() == "03ae44c50dfa95426211ca7c4a07577b5a0b9eb221db17f7bb"
    secrets = jar.secrets(START)
    assert (secrets.version, secrets.secret, secrets.previous) == (3, bytes([7]) * 32, b"")


def test_the_gate_is_shut_while_every_stranger_needs_a_cookie() -> None:
    net = limited(SOON)
    engine = net.b.engine
    data = request(net)
    assert engine.cookie_gate(net.now) is None
    for number in range(SOON.cookie_threshold):
        engine.receive_datagram(with_spi(data, number), stranger(number), net.now)
    first = engine.cookie_gate(net.now)
    assert first is not None
    assert engine.cookie_gate(net.now) == first
    later = engine.cookie_gate(net.now + ROTATION)
    assert later is not None
    assert later.previous == first.secret
    # It stays shut until half of the threshold has gone.
    table = engine._context.half_open
    for sa in list(table._keys)[: SOON.cookie_threshold // 2 - 1]:
        table.discard(sa)
        assert engine.cookie_gate(net.now) is not None
    table.discard(next(iter(table._keys)))
    assert engine.cookie_gate(net.now) is None
