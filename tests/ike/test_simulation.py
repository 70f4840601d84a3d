"""Two engines over a bad network: whatever happens, at the end both have the same SAs, and nobody leaks."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from dsvpn.ike import events
from dsvpn.ike.profile import RetransmissionSchedule
from dsvpn.ike.volume import Carried
from tests.ike.bad_network import BadNetwork, check_end
from tests.ike.harness import End, Wire, both_options, make_wire

QUIET = 400.0


def disturb(net: Wire, end: End, chance: Random, per_resource: bool = False) -> None:
    """One thing that an owner may ask for."""
    if not end.established or chance.random() < 0.1:
        end.engine.initiate("default", end.path_to(net.other(end)), net.now)
        return
    handle = chance.choice(sorted(end.established))
    children = sorted(spi for spi, owned in end.children.items() if owned.event.ike_sa == handle)
    rare = ["delete_child", "create", "liveness", "delete", "reauthenticate"]
    common = ["rekey_child"] * 4 + ["rekey_ike"] * 4
    if per_resource:
        common += ["carry"] * 8
    action = chance.choice(common + rare)
    match action:
        case "rekey_child" if children:
            end.engine.rekey_child(handle, chance.choice(children), net.now)
        case "rekey_ike":
            end.engine.rekey_ike(handle, net.now)
        case "delete_child" if children:
            end.engine.delete_child(handle, chance.choice(children), net.now)
        case "create":
            end.engine.create_child(handle, net.now)
        case "reauthenticate":
            end.engine.reauthenticate(handle, net.now)
        case "liveness":
            end.engine.check_liveness(handle, net.now)
        case "carry" if children:
            count = round(net.now)
            end.engine.note_carried(children[0], Carried(count, 0, count, 0, count), net.now)
        case "delete" if chance.random() < 0.3:
            end.engine.delete(handle, net.now, "the test says so")


def simulate(seed: int, loss: float, steps: int, **options: Any) -> Wire:
    chance = Random(seed)
    net = make_wire(
        *both_options(dpd_interval=15.0, retransmission=RetransmissionSchedule(0.5, 1.7, 4.0, 7), **options),
        seed=seed,
    )
    bad = BadNetwork(net, chance, loss)
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    if chance.random() < 0.3:
        net.b.engine.initiate("default", net.b.path_to(net.a), net.now)
    for _ in range(steps):
        # Often both ends at once, so that exchanges cross.
        for end in net.ends:
            if chance.random() < 0.6:
                disturb(net, end, chance, "per_resource_sas" in options)
        bad.run(chance.choice((0.0, 0.1, 1.0, 5.0)))
    # The network recovers; dead peers are found and the last farewells run out.
    bad.finish(QUIET)
    return net


@pytest.mark.parametrize("batch", range(8))
@pytest.mark.parametrize("loss", [0.0, 0.1, 0.3, 0.5])
def test_both_ends_agree_after_anything(loss: float, batch: int) -> None:
    for seed in range(batch * 10, batch * 10 + 10):
        try:
            check_end(simulate(seed, loss, steps=12))
        except Exception as error:
            raise AssertionError(f"loss {loss}, seed {seed}: {error!r}") from error


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.3])
def test_both_ends_agree_on_their_per_resource_child_sas(loss: float) -> None:
    most = 0
    for seed in range(30):
        try:
            net = simulate(seed, loss, steps=20, per_resource_sas=3)
            check_end(net)
        except Exception as error:
            raise AssertionError(f"loss {loss}, seed {seed}: {error!r}") from error
        most = max(most, len(net.a.children))
    assert most >= 4


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_short_lifetimes_under_loss(loss: float) -> None:
    """Rekeys of both kinds come by themselves from both ends, often at once."""
    rekeyed = 0
    for seed in range(10):
        try:
            net = simulate(seed, loss, steps=0, ike_lifetime=60.0, child_lifetime=25.0, rekey_margin=0.2)
            net.check_traffic()
            for end in net.ends:
                assert set(end.engine._context.children) == set(end.children)
                rekeyed += len(end.of(events.IkeSaRekeyed))
            if not loss:
                assert net.a.established
                assert not net.a.of(events.IkeSaDeleted)
        except Exception as error:
            raise AssertionError(f"loss {loss}, seed {seed}: {error!r}") from error
    assert rekeyed > 50


def test_the_same_seed_gives_the_same_datagrams() -> None:
    one, two = simulate(7, 0.3, steps=5), simulate(7, 0.3, steps=5)
    assert [flight.data for flight in one.record] == [flight.data for flight in two.record]
    assert one.a.events == two.a.events
