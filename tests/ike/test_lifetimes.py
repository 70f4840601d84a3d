"""Lifetimes of CHILD_SAs by what they carry, and the silence of a peer that packets go to."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from dsvpn.errors import MisuseError, PeerError
from dsvpn.ike import events
from dsvpn.ike.volume import LAST_SEQUENCE, Carried, Volume
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import EsnId, ExchangeType, NotifyType, TransformType
from tests.ike.bad_network import BadNetwork
from tests.ike.harness import End, Payloads, Wire, both_options, make_profile, make_wire


def report(net: Wire, end: End, packets_in: int = 0, bytes_in: int = 0, out: tuple[int, int, int] = (0, 0, 0)) -> None:
    """The data plane's counters of the CHILD_SA that seals."""
    end.engine.note_carried(end.child.inbound_spi, Carried(packets_in, bytes_in, *out), net.now)
    net.settle()


def connected(**options: Any) -> Wire:
    net = make_wire(make_profile("a", **options), make_profile("b", **options))
    net.connect()
    return net


@pytest.mark.parametrize(
    ("options", "below", "beyond"),
    [
        ({"child_bytes": 1000}, {"bytes_in": 799}, {"bytes_in": 901}),
        ({"child_bytes": 1000}, {"out": (1, 799, 1)}, {"out": (1, 901, 1)}),
        ({"child_packets": 1000}, {"packets_in": 799}, {"packets_in": 901}),
        ({"child_packets": 1000}, {"out": (799, 0, 799)}, {"out": (901, 0, 901)}),
    ],
)
def test_soft_limit_rekeys_before_the_hard_one(
    options: dict[str, Any], below: dict[str, Any], beyond: dict[str, Any]
) -> None:
    net = connected(**options)
    old = net.a.child
    report(net, net.a, **below)
    assert net.a.child == old
    report(net, net.a, **beyond)
    assert net.a.child.replaces == old.inbound_spi
    net.check_traffic()
    # What is rekeyed is not rekeyed again, and the new one counts from the beginning.
    net.a.engine.note_carried(old.inbound_spi, Carried(1, 1, *beyond.get("out", (0, 0, 0))), net.now)
    net.sleep(30)
    assert len(net.a.of(events.ChildSaEstablished)) == 2
    net.check_agreement()


def test_the_soft_limit_is_spread() -> None:
    """Neither both ends nor all peers rekey at once."""
    chance = Random(1)
    reached = []
    for _ in range(200):
        volume = Volume(0, 1000, True, 1.0 - 0.1 * (1.0 + chance.random()))
        packets = 0
        while not volume.claim_rekey():
            packets += 1
            volume.note(Carried(packets, 0))
        reached.append(packets)
    assert 800 <= min(reached) < 815
    assert 885 < max(reached) <= 900


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("esp", ["aes128gcm16", "aes128gcm16-x25519-ke1_mlkem768"])
def test_hard_limit_stops_sealing_at_once(name: str, esp: str) -> None:
    """A data plane that is faster than the rekey: nothing is sealed with the SA any more, and its successor, which is
    asked for before the SA is deleted, seals as soon as it is there."""
    net = make_wire(*both_options(child_packets=1000, esp=(esp,)))
    net.connect()
    end = net.a if name == "a" else net.b
    old = end.child
    end.engine.note_carried(old.inbound_spi, Carried(0, 0, 1000, 0, 1000), net.now)
    net.collect()
    assert end.of(events.ChildSaOutboundStopped) == [events.ChildSaOutboundStopped(end.handle, old.inbound_spi)]
    assert not end.sealing
    net.settle()
    assert end.child.replaces == old.inbound_spi
    net.check_traffic()
    net.sleep(10)
    assert old.inbound_spi not in end.children
    assert len(net.a.children) == len(net.b.children) == 1
    net.check_agreement()


def test_hard_limit_of_a_peer_that_is_silent() -> None:
    """The peer answers nothing: that nothing is sealed does not wait for it."""
    net = connected(child_packets=1000)
    net.a.engine.note_carried(net.a.child.inbound_spi, Carried(0, 0, 1000, 0, 1000), net.now)
    net.a.drain()
    assert not net.a.sealing
    for _ in range(300):
        net.sleep(0.1, deliver=False)
        net.a.drain()
        assert not net.a.sealing
    assert not net.a.established


def test_hard_limit_while_another_exchange_has_the_window() -> None:
    net = connected(child_packets=1000)
    old = net.a.child.inbound_spi
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.a.engine.note_carried(old, Carried(0, 0, 1000, 0, 1000), net.now)
    net.collect()
    assert not net.a.sealing
    # What still comes in by it makes it seal no more.
    net.a.engine.note_carried(old, Carried(10, 0, 1000, 0, 1000), net.now)
    net.a.drain()
    assert not net.a.sealing
    net.settle()
    assert net.a.child.replaces == old
    net.check_traffic()


def test_hard_limit_of_both_ends_at_once() -> None:
    net = connected(child_packets=1000)
    old = net.a.child.inbound_spi, net.b.child.inbound_spi
    for end in net.ends:
        end.engine.note_carried(end.child.inbound_spi, Carried(1000, 0, 1000, 0, 1000), net.now)
    net.collect()
    assert not net.a.sealing
    assert not net.b.sealing
    net.settle()
    net.check_traffic()
    assert (net.a.child.replaces, net.b.child.replaces) == old
    net.sleep(10)
    assert len(net.a.children) == 1
    net.check_agreement()


@pytest.mark.parametrize("esp", ["aes128gcm16", "aes128gcm16-x25519-ke1_mlkem768"])
def test_a_successor_that_the_peer_makes_is_used_at_once(esp: str) -> None:
    """Our own rekey got lost; the peer's comes first."""
    net = make_wire(*both_options(child_packets=1000, esp=(esp,), fragment_size=4000))
    net.connect()
    old = net.b.child.inbound_spi
    net.b.engine.note_carried(old, Carried(0, 0, 1000, 0, 1000), net.now)
    net.collect()
    net.lose("b")
    net.a.engine.rekey_child(net.a.handle, net.a.child.inbound_spi, net.now)
    net.collect()
    while not net.b.sealing:
        net.deliver("a" if net.flying["a"] else "b")
    # Before the peer has deleted the old one, which is the sign that others wait for.
    assert {flight.data[18] for flight in net.record}.isdisjoint({ExchangeType.INFORMATIONAL})
    assert net.b.child.replaces == old
    net.settle()
    net.check_traffic()
    net.sleep(30)
    net.check_agreement()
    assert len(net.a.children) == 1


@pytest.mark.parametrize("code", [NotifyType.NO_PROPOSAL_CHOSEN, NotifyType.TEMPORARY_FAILURE])
def test_hard_limit_when_the_peer_refuses_a_successor(monkeypatch: pytest.MonkeyPatch, code: NotifyType) -> None:
    """The SA is deleted: at once, or when it has waited long enough. The IKE SA goes on."""

    def refuse(*_: Any) -> list[wire.Payload]:
        raise PeerError("the test says so", code)

    net = connected(child_packets=1000)
    old = net.a.child.inbound_spi
    monkeypatch.setattr("dsvpn.ike.ike_sa.respond_create_child", refuse)
    net.a.engine.note_carried(old, Carried(0, 0, 1000, 0, 1000), net.now)
    net.settle()
    assert not net.a.sealing
    assert (old in net.a.children) == (code == NotifyType.TEMPORARY_FAILURE)
    net.sleep(11)
    assert not net.a.children
    assert not net.b.children
    net.check_agreement()
    monkeypatch.undo()
    net.a.engine.create_child(net.a.handle, net.now)
    net.settle()
    assert net.a.sealing
    net.check_traffic()


def test_hard_limit_by_time_when_no_rekey_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer has no SPI left and refuses each rekey: the SA seals until the end and no longer."""
    net = make_wire(make_profile("a", child_lifetime=60.0), make_profile("b", child_lifetime=600.0))
    net.connect()
    old = net.a.child.inbound_spi
    monkeypatch.setattr(net.b.engine._context, "allocate_spi", lambda _: None)
    net.sleep(59.9)
    assert net.a.sealing[net.a.handle] == old
    net.sleep(0.2, deliver=False)
    net.a.drain()
    assert net.a.established
    assert not net.a.sealing


def test_hard_limit_moves_to_a_successor_that_was_waiting() -> None:
    """The peer has rekeyed, and nothing came by the new SA yet: at the end of the old one it is used nevertheless."""
    net = connected(child_packets=1000)
    old = net.b.child.inbound_spi
    net.a.engine.rekey_child(net.a.handle, net.a.child.inbound_spi, net.now)
    net.collect()
    net.deliver("a")
    net.collect()
    assert net.b.sealing[net.b.handle] == old
    net.b.engine.note_carried(old, Carried(0, 0, 1000, 0, 1000), net.now)
    net.b.drain()
    assert net.b.child.inbound_spi != old
    assert not net.b.of(events.ChildSaOutboundStopped)
    net.settle()
    net.check_traffic()
    net.sleep(10)
    net.check_agreement()


@pytest.mark.parametrize("batch", range(4))
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_hard_limits_under_loss(loss: float, batch: int) -> None:
    """Data that is faster than the rekey, at both ends: they agree, and what is over never seals again."""
    for seed in range(batch * 10, batch * 10 + 10):
        try:
            net = overrun(seed, loss)
            net.check_agreement()
            assert net.a.children or not net.a.established
        except Exception as error:
            raise AssertionError(f"loss {loss}, seed {seed}: {error!r}") from error


def overrun(seed: int, loss: float) -> Wire:
    chance = Random(seed)
    net = make_wire(*both_options(child_packets=1000), seed=seed)
    net.connect()
    bad = BadNetwork(net, chance, loss)
    for _ in range(6):
        for end in net.ends:
            for spi in sorted(end.sealing.values()):
                if chance.random() < 0.6:
                    count = chance.choice((500, 950, 1001))
                    end.engine.note_carried(spi, Carried(count, 0, count, 0, count), net.now)
                    end.drain()
                    assert count < 1000 or spi not in end.sealing.values()
            if end.established and not end.children:
                end.engine.create_child(end.handle, net.now)
        bad.run(chance.choice((0.0, 0.1, 1.0, 5.0)))
    bad.finish(100.0)
    for end in net.ends:
        # As the gateway that called does.
        if end.established and not end.children:
            net.a.engine.create_child(net.a.handle, net.now)
            bad.finish(100.0)
    return net


def test_hard_limit_while_the_rekey_has_no_answer() -> None:
    net = connected(child_packets=1000)
    old = net.a.child.inbound_spi
    net.a.engine.note_carried(old, Carried(0, 0, 950, 0, 950), net.now)
    net.collect()
    net.lose("a")
    net.a.engine.note_carried(old, Carried(0, 0, 1000, 0, 1000), net.now)
    net.sleep(30)
    # The peer made the new SA before it heard of the delete: that one goes on.
    assert old not in net.a.children
    net.check_agreement()


def without_esn(payloads: Payloads) -> list[wire.Payload]:
    """The offer of a peer that has no extended sequence numbers."""
    changed: list[wire.Payload] = []
    for payload in payloads:
        if isinstance(payload, wire.SecurityAssociation):
            proposals = tuple(
                wire.Proposal(
                    p.number,
                    p.protocol,
                    p.spi,
                    tuple(t for t in p.transforms if (t.type, t.id) != (TransformType.ESN, EsnId.ESN)),
                )
                for p in payload.proposals
            )
            changed.append(wire.SecurityAssociation(proposals))
        else:
            changed.append(payload)
    return changed


def test_sequence_numbers_run_out_without_esn() -> None:
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    net.deliver_inside("a", without_esn)
    net.settle()
    old = net.b.child
    assert not old.esn
    net.b.engine.note_carried(old.inbound_spi, Carried(0, 0, 1, 1, LAST_SEQUENCE * 79 // 100), net.now)
    net.settle()
    assert net.b.child == old
    # At ten million packets per second, a tenth of all numbers lasts 43 s: more than a rekey and all its repetitions.
    net.b.engine.note_carried(old.inbound_spi, Carried(0, 0, 1, 1, LAST_SEQUENCE * 91 // 100), net.now)
    net.settle()
    assert net.b.child.replaces == old.inbound_spi
    net.check_traffic()


def test_with_esn_sequence_numbers_do_not_run_out() -> None:
    net = connected()
    old = net.a.child
    assert old.esn
    report(net, net.a, packets_in=2**40, out=(2**40, 2**50, 2**40))
    assert net.a.child == old


def test_status_tells_what_was_carried() -> None:
    net = connected(child_packets=1000)
    report(net, net.a, packets_in=100, bytes_in=5000, out=(200, 9000, 200))
    child = net.a.snapshot(net.now)[0].children[0]
    assert (child.packets_in, child.bytes_in, child.packets_out, child.bytes_out) == (100, 5000, 200, 9000)
    assert child.used == pytest.approx(0.2)


def test_counters_of_an_sa_that_is_gone_are_nothing() -> None:
    net = connected()
    net.a.engine.note_carried(12345, Carried(1, 1), net.now)
    net.collect()
    assert not net.flying["a"]


def test_negative_limits_are_refused() -> None:
    with pytest.raises(MisuseError, match="child_bytes"):
        make_profile("a", child_bytes=-1)
    with pytest.raises(MisuseError, match="child_packets"):
        make_profile("a", child_packets=-1)


# -- silence -------------------------------------------------------------------------------------------------------


def test_packets_without_an_answer_ask_for_life_sooner() -> None:
    net = make_wire(make_profile("a", dpd_interval=20.0))
    net.connect()
    sent = len(net.record)
    net.sleep(2)
    report(net, net.a, out=(10, 1000, 10))
    net.sleep(9.9)
    assert len(net.record) == sent
    net.sleep(0.2)
    assert len(net.record) == sent + 2
    # The answer is life: asked again only after more packets, or the whole interval.
    net.sleep(19)
    assert len(net.record) == sent + 2
    report(net, net.a, out=(20, 2000, 20))
    net.sleep(1.2)
    assert len(net.record) == sent + 4


def test_traffic_in_both_directions_asks_nothing() -> None:
    net = make_wire(make_profile("a", dpd_interval=20.0))
    net.connect()
    sent = len(net.record)
    for count in range(1, 100):
        net.sleep(2)
        report(net, net.a, packets_in=count, out=(count, count, count))
    assert len(net.record) == sent


def test_a_dead_peer_that_packets_go_to_is_found_in_half_the_time() -> None:
    net = make_wire(make_profile("a", dpd_interval=20.0))
    net.connect()
    start = net.now
    count = 0
    while net.a.established:
        count += 1
        net.a.engine.note_carried(net.a.child.inbound_spi, Carried(0, 0, count, count, count), net.now)
        net.sleep(1, deliver=False)
        net.a.drain()
    # 10 s of silence, then 0.5 + 1 + 2 + 4 + 4 s of repetitions.
    assert net.now - start == pytest.approx(10 + 11.5, abs=1.1)
