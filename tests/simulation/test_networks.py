"""Networks of one to ten thousand spokes: churn, loss, NAT, sleep; and what must hold all the time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from tests.simulation import Conditions
from tests.simulation.networks import HOLDING_TIME, Internet, Member, tunnel_address


def quiet(network: Internet, seconds: float, interval: float = 1.0) -> None:
    """Let time pass and look at the invariants."""
    end = network.simulation.now + seconds
    while network.simulation.now < end:
        network.simulation.run_for(interval)
        network.check()


def converge(network: Internet, timeout: float = 200.0) -> None:
    """Every pair of living spokes reaches each other."""
    alive = [n for n, spoke in enumerate(network.spokes) if spoke.host.up]
    pairs = list(itertools.permutations(alive, 2))
    if len(pairs) > 200:
        pairs = network.simulation.random.sample(pairs, 200)
    since = network.simulation.now

    def all_reached() -> bool:
        missing = [pair for pair in pairs if not network.reached(*pair, since)]
        for pair in missing:
            network.ping(*pair)
        network.simulation.run_for(1.0)
        network.check()
        return not missing

    network.simulation.run_until(all_reached, timeout, "every pair to reach each other")


def churn(network: Internet, steps: int) -> None:
    """Things happen to gateways while others talk."""
    chance = network.simulation.random

    def die() -> None:
        spoke = chance.choice(network.spokes)
        if spoke.host.up:
            spoke.kill()
        else:
            revive(spoke)

    def leave() -> None:
        spoke = chance.choice(network.spokes)
        if spoke.host.up:
            spoke.engine.shutdown(network.simulation.now)
            spoke.settle()
            spoke.kill()

    def rebind() -> None:
        if network.boxes:
            network.rebind(chance.choice(sorted(network.boxes)))

    def sleep() -> None:
        member = chance.choice(network.spokes)
        if member.host.up:
            network.clock_jumps(member, chance.uniform(1, 2 * HOLDING_TIME))

    def restart_hub() -> None:
        if len(network.hubs) > 1:
            hub = chance.choice(network.hubs)
            hub.kill()
            hub.start()

    happenings: tuple[Callable[[], None], ...] = (die, die, leave, rebind, sleep, restart_hub)
    for _ in range(steps):
        chance.choice(happenings)()
        for _ in range(5):
            network.ping(*chance.sample(range(len(network.spokes)), 2))
            network.simulation.run_for(chance.uniform(0.1, 1.0))
        network.check()


def revive(member: Member) -> None:
    """Start a gateway that is dead, or asleep, with nothing remembered."""
    member.kill()
    member.start()


def start(network: Internet) -> None:
    for member in network.members:
        member.start()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("spokes", "hubs", "natted"), [(2, 1, 0), (6, 1, 2), (12, 2, 3)])
def test_churn(seed: int, spokes: int, hubs: int, natted: int) -> None:
    network = Internet(seed, spokes, hubs, natted, Conditions(delay=0.02, jitter=0.02, loss=0.05, reorder=0.05))
    start(network)
    quiet(network, 5)
    churn(network, 25)
    # Whoever sleeps wakes up, and those that are gone come back.
    quiet(network, 2 * HOLDING_TIME + 5, 5.0)
    for member in network.members:
        if not member.host.up:
            revive(member)
    converge(network)


def test_one_spoke() -> None:
    network = Internet(1, 1)
    start(network)
    quiet(network, 3 * HOLDING_TIME, 5.0)
    assert network.spokes[0].registered()
    assert len(network.hubs[0].mappings) == 1


@pytest.mark.parametrize("seed", range(5))
def test_nothing_goes_to_a_purged_address(seed: int) -> None:
    network = Internet(seed, 6, 1, 0, Conditions(loss=0.02))
    start(network)
    quiet(network, 5)
    for _ in range(3):
        for pair in itertools.permutations(range(6), 2):
            network.ping(*pair)
        network.simulation.run_for(1.0)
    assert network.knows(3), "somebody has to have a shortcut that can be purged"
    leaving = network.spokes[3]
    leaving.engine.shutdown(network.simulation.now)
    leaving.settle()
    leaving.kill()
    # A purge that is lost is sent again; the farewell itself is not, and then the holding time ends it.
    network.simulation.run_until(lambda: not network.knows(3), HOLDING_TIME + 1, "everybody to forget who has left")
    before = len(leaving.deliveries)
    for number in range(5):
        if number != 3:
            network.ping(number, 3)
    quiet(network, 10)
    assert len(leaving.deliveries) == before
    assert all(tunnel_address(3) not in member.mappings for member in network.living())


@pytest.mark.slow
def test_a_thousand_spokes_talk_at_random() -> None:
    network = Internet(7, 1000)
    start(network)
    network.simulation.run_until(lambda: len(network.hubs[0].mappings) == 1000, 30, "a thousand registrations")
    network.check()
    converge(network)
    quiet(network, 2 * HOLDING_TIME, 30.0)
    hub = network.hubs[0].engine
    assert len(hub._transit._relays) <= 400, "an answer is remembered as long as it is believed"
    assert len(network.hubs[0].mappings) == 1000


@pytest.mark.slow
def test_ten_thousand_spokes_return_within_a_minute() -> None:
    """The hub restarts: everybody finds out by its silence, calls and registers again, with 5 % loss."""
    network = Internet(9, 10_000, conditions=Conditions(delay=0.02, jitter=0.05, loss=0.05))
    start(network)
    hub = network.hubs[0]
    network.simulation.run_until(lambda: len(hub.mappings) == 10_000, 60, "ten thousand registrations")
    hub.kill()
    network.simulation.run_for(1)
    hub.start()
    began = network.simulation.now
    for spoke in network.spokes:
        # Dead peer detection: the path is gone, and is called for again.
        for endpoint in list(spoke.peers):
            spoke.disconnect(endpoint, tell=False)
        spoke.settle()
    network.simulation.run_until(lambda: len(hub.mappings) == 10_000, 60, "all ten thousand to be back")
    assert network.simulation.now - began < 60
    assert hub.engine.snapshot(network.simulation.now).counters.get("drop.rate", 0) == 0
    network.check()
