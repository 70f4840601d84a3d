"""Every pair of simultaneous exchanges, by two engines over a bad network, under traffic.

Each end begins one exchange, at about the same time. Whatever is lost, doubled and overtaken: at the end both have the
same SAs with the same keys, and nothing half made is left at either. As long as nobody deletes anything and the network
lets the ends find each other, no data packet comes by an SA that its receiver has not.

`DSVPN_SEEDS` says how many seeds each test gets; a failure names them.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from random import Random
from typing import Any

import pytest

from dsvpn.ike import events
from dsvpn.ike.profile import RetransmissionSchedule
from dsvpn.ike.volume import Carried
from tests.ike.bad_network import BadNetwork, check_end
from tests.ike.harness import End, Wire, both_options, make_wire

SEEDS = int(os.environ.get("DSVPN_SEEDS", "20"))
EXCHANGES = ("rekey_ike", "rekey_child", "delete_ike", "delete_child", "create_child", "liveness", "reauthenticate")
#: Seconds between data packets, for which data is sent after the exchanges began, and of quiet at the end.
DATA_INTERVAL = 0.05
DATA_FOR = 12.0
QUIET = 200.0
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"esp": ("aes128gcm16-x25519",)},
    {"esp": ("aes128gcm16-x25519",), "childless": "prefer"},
    {
        "ike": ("aes128gcm16-prfsha256-x25519-ke1_ecp256",),
        "esp": ("aes128gcm16-x25519-ke1_ecp256",),
    },
)


@dataclass
class Traffic:
    """Data in both directions by the SAs that a gateway would seal with: counted by SA, and lost where one is unknown
    at the other end."""

    bad: BadNetwork
    chance: Random
    flying: list[tuple[float, int, End, int, bytes]] = field(default_factory=list)
    came: dict[tuple[str, int], int] = field(default_factory=dict)
    #: The handles by which each end has heard its peer.
    heard: set[tuple[str, int]] = field(default_factory=set)
    sent: int = 0
    lost: list[str] = field(default_factory=list)

    def send(self, end: End) -> None:
        """One packet by the youngest IKE SA whose peer is known to have it, as the gateway does it."""
        now = self.bad.net.now
        if not end.sealing:
            return
        ready = [handle for handle in sorted(end.sealing) if self._confirmed(end, handle)]
        handle = ready[-1] if ready else min(end.sealing)
        child = end.children[end.sealing[handle]].event
        self.sent += 1
        if self.chance.random() >= self.bad.loss:
            arrival = now + self.chance.random() * self.bad.delay
            heapq.heappush(
                self.flying, (arrival, self.sent, self.bad.net.other(end), child.outbound_spi, child.outbound_keymat)
            )

    def _confirmed(self, end: End, handle: int) -> bool:
        return end.established[handle].initiator or (end.name, handle) in self.heard

    def arrive(self) -> None:
        """What has come by now."""
        now = self.bad.net.now
        while self.flying and self.flying[0][0] <= now:
            _, _, end, spi, keymat = heapq.heappop(self.flying)
            owned = end.children.get(spi)
            if owned is None:
                self.lost.append(f"{end.name} has no {spi:#010x} at {now:.3f}")
                continue
            assert owned.event.inbound_keymat == keymat, "sealed with a key that the receiver has for something else"
            self.heard.add((end.name, owned.event.ike_sa))
            count = self.came[end.name, spi] = self.came.get((end.name, spi), 0) + 1
            end.engine.note_carried(spi, Carried(count, count * 100), now)
            end.drain()

    def run(self, seconds: float) -> None:
        """Let time pass with data in both directions."""
        end = self.bad.net.now + seconds
        while self.bad.net.now < end:
            for one in self.bad.net.ends:
                self.send(one)
            self.bad.run(DATA_INTERVAL)
            self.arrive()


def begin(net: Wire, end: End, exchange: str) -> None:
    """Begin an exchange on the oldest IKE SA of an end, if it still has one."""
    end.drain()
    if not end.established:
        return
    handle = min(end.established)
    children = sorted(spi for spi, owned in end.children.items() if owned.event.ike_sa == handle)
    match exchange:
        case "rekey_ike":
            end.engine.rekey_ike(handle, net.now)
        case "rekey_child" if children:
            end.engine.rekey_child(handle, children[0], net.now)
        case "delete_ike":
            end.engine.delete(handle, net.now, "the test says so")
        case "delete_child" if children:
            end.engine.delete_child(handle, children[0], net.now)
        case "create_child":
            end.engine.create_child(handle, net.now)
        case "liveness":
            end.engine.check_liveness(handle, net.now)
        case "reauthenticate":
            end.engine.reauthenticate(handle, net.now)


def simulate(label: str, script: Callable[[Wire, Random, Traffic], Sequence[str]]) -> tuple[Wire, Sequence[str]]:
    """Run exchanges that `script` begins, under conditions that `label` determines, to the end; check that end."""
    chance = Random(label)
    loss = chance.choice((0.0, 0.0, 0.1, 0.3, 0.5))
    net = make_wire(
        *both_options(
            dpd_interval=30.0, retransmission=RetransmissionSchedule(0.5, 1.7, 4.0, 7), **chance.choice(OPTIONS)
        ),
        seed=chance.randrange(2**32),
    )
    net.connect()
    bad = BadNetwork(net, chance, loss, duplicate=chance.choice((0.0, 0.1, 0.3)), delay=chance.choice((0.02, 0.2)))
    traffic = Traffic(bad, chance)
    traffic.run(0.2)
    begun = script(net, chance, traffic)
    traffic.run(DATA_FOR)
    for _ in range(5):
        bad.run(0.1)
        traffic.arrive()
    assert not traffic.flying
    bad.finish(QUIET)
    check_end(net)
    deleted = any("delete" in exchange for exchange in begun)
    gone = [e for end in net.ends for e in end.of(events.IkeSaDeleted) if "does not answer" in e.reason]
    if not deleted and not gone:
        assert not traffic.lost, traffic.lost[:5]
        assert net.a.sealing
        assert traffic.sent > 100
    return net, begun


@pytest.mark.parametrize(("first", "second"), list(product(EXCHANGES, repeat=2)))
def test_every_pair_of_exchanges_at_once(first: str, second: str) -> None:
    def script(net: Wire, chance: Random, traffic: Traffic) -> Sequence[str]:
        starts = [(net.a, first), (net.b, second)]
        chance.shuffle(starts)
        begin(net, *starts[0])
        traffic.run(chance.choice((0.0, 0.0, 0.05, 0.1, 0.3, 0.8)))
        begin(net, *starts[1])
        return first, second

    for seed in range(SEEDS):
        try:
            net, begun = simulate(f"{first} {second} {seed}", script)
            if "delete_ike" in begun and "reauthenticate" not in begun:
                assert not net.a.established
        except Exception as error:
            raise AssertionError(f"{first} and {second}, seed {seed}: {error!r}") from error


@pytest.mark.parametrize("batch", range(10))
def test_many_exchanges_one_upon_the_other(batch: int) -> None:
    """Two to eight, by either end, most of the time without deletes: then no packet may be lost."""

    def script(net: Wire, chance: Random, traffic: Traffic) -> Sequence[str]:
        harmless = [exchange for exchange in EXCHANGES if "delete" not in exchange]
        allowed = harmless if chance.random() < 0.6 else EXCHANGES
        begun = [chance.choice(allowed) for _ in range(chance.randrange(2, 9))]
        for exchange in begun:
            begin(net, chance.choice(net.ends), exchange)
            traffic.run(chance.choice((0.0, 0.0, 0.05, 0.1, 0.3, 0.8, 3.0)))
        return begun

    for seed in range(batch * SEEDS, (batch + 1) * SEEDS):
        try:
            simulate(f"many {seed}", script)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
