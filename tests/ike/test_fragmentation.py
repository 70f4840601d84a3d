"""IKE fragmentation (RFC 7383): long messages in pieces, in both directions, through loss, disorder and bad input."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace
from typing import Any

import pytest

from dsvpn.addresses import Endpoint, Path
from dsvpn.errors import MisuseError
from dsvpn.ike import events, fragmentation
from dsvpn.ike.fragmentation import (
    MAX_FRAGMENTS,
    MAX_KEPT,
    MAX_MESSAGE,
    REASSEMBLY_LIFETIME,
    FragmentBudget,
    Reassembly,
)
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, Flag, NotifyType
from tests.ike.authority import certified, root
from tests.ike.harness import A, B, Wire, make_profile, make_wire

A_NAME, B_NAME = "a.example.net", "b.example.net"
_OVERHEAD = 20 + 8


def large(seed: int = 0, **options: Any) -> Wire:
    """Two ends whose IKE_AUTH takes many fragments: ML-DSA-65, some 9 kB each way."""
    holders = [root().issue(name, (name,), kind="mldsa65") for name in (A_NAME, B_NAME)]
    return make_wire(certified(A_NAME, holders[0], **options), certified(B_NAME, holders[1], **options), seed=seed)


def fragments(net: Wire, sender: str) -> list[wire.EncryptedFragment]:
    found = []
    for flight in net.record:
        if flight.sender.name == sender:
            payload = wire.Message.decode(flight.data).payloads[-1]
            if isinstance(payload, wire.EncryptedFragment):
                found.append(payload)
    return found


@pytest.mark.parametrize("size", [576, 1280, 1500, 4000])
def test_a_long_message_goes_in_fragments_that_fit(size: int) -> None:
    """
    HDR, SAi1, KEi, Ni, N(IKEV2_FRAGMENTATION_SUPPORTED)  -->
                                    <--  HDR, SAr1, KEr, Nr, N(IKEV2_FRAGMENTATION_SUPPORTED)
    HDR, SKF {1 of n}, …, HDR, SKF {n of n}  -->
    """
    net = large(fragment_size=size)
    net.connect()
    net.check_agreement()
    for sender in ("a", "b"):
        found = fragments(net, sender)
        lengths = [len(flight.data) + _OVERHEAD for flight in net.record if flight.sender.name == sender]
        assert max(lengths) <= size
        assert [fragment.number for fragment in found] == list(range(1, found[0].total + 1))
        assert [bool(fragment.first_payload) for fragment in found] == [True] + [False] * (len(found) - 1)


def test_a_message_that_fits_goes_in_one_piece() -> None:
    net = make_wire()
    net.connect()
    assert not fragments(net, "a")
    assert len(net.record) == 4


def test_a_peer_that_does_not_know_fragments_gets_none() -> None:
    net = large()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    for association in net.a.engine._context.associations.values():
        net.deliver("a")
        assert wire.find_notify(
            wire.Message.decode(net.flying["b"][0].data).payloads, NotifyType.IKEV2_FRAGMENTATION_SUPPORTED
        )
        net.deliver("b")
        assert association.fragmentation
    plain = make_wire()
    plain.a.engine.initiate("default", plain.a.path_to(plain.b), plain.now)
    plain.collect()

    def forget(data: bytes) -> bytes:
        message = wire.Message.decode(data)
        kept = [p for p in message.payloads if getattr(p, "type", 0) != NotifyType.IKEV2_FRAGMENTATION_SUPPORTED]
        return wire.Message(message.header, tuple(kept)).encode()

    plain.deliver("a", forget)
    answer = wire.Message.decode(plain.flying["b"][0].data)
    assert wire.find_notify(answer.payloads, NotifyType.IKEV2_FRAGMENTATION_SUPPORTED) is None


@pytest.mark.parametrize("seed", range(20))
def test_loss_disorder_and_doubles(seed: int) -> None:
    """Each datagram is lost with one in ten, doubled with one in ten, and overtaken at random."""
    print("seed", seed)
    chance = random.Random(seed)
    net = large(seed)
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    for _ in range(400):
        for name in ("a", "b"):
            queue = list(net.flying[name])
            chance.shuffle(queue)
            net.flying[name] = deque(queue)
            while net.flying[name]:
                flight = net.flying[name].popleft()
                dice = chance.random()
                if dice >= 0.1:
                    net.hand(flight)
                if dice >= 0.9:
                    net.hand(flight)
        if net.a.established and net.b.established and not net.flying["a"] and not net.flying["b"]:
            break
        timer = net.next_timer()
        assert timer is not None
        net.now = max(net.now, timer)
        for end in net.ends:
            end.engine.handle_timer(net.now)
        net.collect()
    net.sleep(1)
    assert len(net.a.established) == 1
    net.check_agreement()
    assert [end.engine._context.fragments.kept for end in net.ends] == [0, 0]


def until_auth(net: Wire) -> None:
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")


def test_a_retransmission_is_all_fragments_again_and_the_answer_comes_again_for_the_first_alone() -> None:
    net = large()
    until_auth(net)
    request = list(net.flying["a"])
    while net.flying["a"]:
        net.deliver("a")
    answer = list(net.flying["b"])
    net.flying["b"].clear()
    net.now += 0.6
    net.a.engine.handle_timer(net.now)
    net.collect()
    assert [flight.data for flight in net.flying["a"]] == [flight.data for flight in request]
    for _ in request:
        net.deliver("a")
        assert len(net.flying["b"]) == len(answer)
    assert [flight.data for flight in net.flying["b"]] == [flight.data for flight in answer]
    net.settle()
    net.check_agreement()


def test_forged_and_foreign_fragments_change_nothing() -> None:
    net = large()
    until_auth(net)
    flights = list(net.flying["a"])
    net.flying["a"].clear()
    for flight in flights:
        for at in range(0, len(flight.data), 37):
            data = flight.data[:at] + bytes((flight.data[at] ^ 0x40,)) + flight.data[at + 1 :]
            net.b.engine.receive_datagram(data, flight.path, net.now)
        for length in range(0, len(flight.data), 41):
            net.b.engine.receive_datagram(flight.data[:length], flight.path, net.now)
    assert net.b.engine._context.fragments.kept == 0
    assert not net.b.engine.datagrams_to_send(net.now)
    for flight in flights:
        net.hand(flight)
    net.settle()
    net.check_agreement()


def test_what_never_becomes_whole_is_forgotten() -> None:
    net = large()
    until_auth(net)
    net.deliver("a")
    net.deliver("a")
    net.flying["a"].clear()
    assert net.b.engine._context.fragments.kept > 1000
    timer = net.b.engine.get_timer()
    assert timer is not None
    assert timer <= net.now + REASSEMBLY_LIFETIME
    net.now += REASSEMBLY_LIFETIME + 0.1
    net.b.engine.handle_timer(net.now)
    assert net.b.engine._context.fragments.kept == 0
    assert not net.b.engine._context.ike_sas


HEADER = wire.Header(b"i" * 8, b"r" * 8, ExchangeType.IKE_AUTH, Flag.INITIATOR, 1)


def fragment(number: int, total: int) -> wire.EncryptedFragment:
    return wire.EncryptedFragment(35 if number == 1 else 0, number, total, b"")


def test_bounds_of_what_is_kept() -> None:
    budget = FragmentBudget()
    reassembly = Reassembly(budget)
    assert reassembly.add(HEADER, fragment(1, MAX_FRAGMENTS + 1), b"x", 0.0) is None
    assert budget.kept == 0
    for number in range(1, 10):
        reassembly.add(HEADER, fragment(number, 100), bytes(MAX_MESSAGE // 5), 0.0)
    assert budget.kept <= MAX_MESSAGE
    reassembly.clear()
    assert budget.kept == 0
    many = [Reassembly(budget) for _ in range(MAX_KEPT // 50_000 + 50)]
    for one in many:
        one.add(HEADER, fragment(1, 2), bytes(50_000), 0.0)
    assert budget.kept <= MAX_KEPT
    for one in many:
        one.expire(REASSEMBLY_LIFETIME)
    assert budget.kept == 0


def test_smaller_fragments_replace_larger_ones_and_never_the_other_way() -> None:
    budget = FragmentBudget()
    reassembly = Reassembly(budget)
    assert reassembly.add(HEADER, fragment(1, 2), b"large", 0.0) is None
    assert reassembly.add(HEADER, fragment(1, 3), b"a", 0.0) is None
    assert reassembly.add(HEADER, fragment(2, 2), b"large", 0.0) is None
    assert reassembly.add(HEADER, fragment(3, 3), b"c", 0.0) is None
    assert reassembly.has(HEADER, fragment(3, 3))
    assert reassembly.add(HEADER, fragment(3, 3), b"C", 0.0) is None
    whole = reassembly.add(HEADER, fragment(2, 3), b"b", 0.0)
    assert whole is not None
    assert whole[1] == b"abc"
    assert budget.kept == 0
    # The next message takes the place of one that was never finished.
    reassembly.add(HEADER, fragment(1, 2), b"old", 0.0)
    reassembly.add(replace(HEADER, message_id=2), fragment(1, 2), b"new", 0.0)
    assert budget.kept == 3


def test_additional_key_exchanges_in_fragments() -> None:
    """What IKE_AUTH proves of IKE_INTERMEDIATE does not depend on fragments (RFC 9242 section 3.3.2)."""
    suite = "aes256gcm16-prfsha384-x25519-ke1_mlkem768"
    net = make_wire(*(make_profile(name, ike=(suite,), fragment_size=576) for name in ("a", "b")))
    net.connect()
    net.check_agreement()
    kinds = {wire.Message.decode(flight.data).header.exchange_type for flight in net.record if len(flight.data) > 500}
    assert ExchangeType.IKE_INTERMEDIATE in kinds
    assert fragments(net, "a")[0].total == 3
    assert fragments(net, "b")[0].total == 3


def test_limits_follow_the_path() -> None:
    four = Path(Endpoint(A, 500), Endpoint(B, 500))
    assert fragmentation.message_limit(1280, four) == 1280 - 20 - 8
    behind_nat = Path(Endpoint(A, 4500), Endpoint(B, 4500))
    assert fragmentation.message_limit(1280, behind_nat) == 1280 - 20 - 8 - 4
    with pytest.raises(MisuseError, match="fragment_size 100 is below 576"):
        make_profile("a", fragment_size=100)


def test_every_cipher_fills_its_fragments() -> None:
    for suite in (
        "aes128gcm16-prfsha256-x25519",
        "chacha20poly1305-prfsha256-x25519",
        "aes128-sha256-prfsha256-x25519",
    ):
        net = large(ike=(suite,), fragment_size=1000)
        net.connect()
        sizes = [len(flight.data) + _OVERHEAD for flight in net.record if flight.sender.name == "a"][1:-1]
        assert max(sizes) <= 1000
        assert min(sizes) > 1000 - 17


def test_an_unfinished_request_makes_nobody_answer() -> None:
    net = large()
    until_auth(net)
    for _ in range(len(net.flying["a"]) - 1):
        net.deliver("a")
    assert not net.flying["b"]
    assert not net.b.of(events.IkeAuthenticationRefused)
