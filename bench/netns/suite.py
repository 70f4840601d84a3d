"""The run: every contestant up at once in its own bed, measured in turn, round after round."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bench.environment import BUSY_LIMIT, busy_share
from bench.netns.bed import LEFT_HOST, RIGHT_HOST, Bed
from bench.netns.traffic import Ends, Figures, idle, loaded, tcp, udp
from bench.peers.base import Peer
from bench.peers.registry import REFERENCE
from dsvpn.errors import DsvpnError
from dsvpn.lab.measure import iperf_server
from dsvpn.lab.run import Run

#: How long the machine is watched before each round, with all contestants idle.
_QUIET_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. The first round is run like the others and dropped."""

    name: str
    rounds: int
    tcp_seconds: int
    pings: int
    udp_seconds: float
    #: Rounds from one to the next that measure also the other direction, both at once, routed traffic without GSO and
    #: QUIC-like UDP, beginning with the third: the slower contestants have warmed up. 0: none does.
    more_every: int

    def measures_more(self, number: int) -> bool:
        """Whether the round `number`, counted from 0, measures everything."""
        since = number - min(2, self.rounds - 1)
        return self.more_every > 0 and since >= 0 and since % self.more_every == 0


QUICK = Plan("quick", rounds=3, tcp_seconds=2, pings=150, udp_seconds=0.1, more_every=0)
FULL = Plan("full", rounds=6, tcp_seconds=3, pings=500, udp_seconds=0.2, more_every=2)
#: Shows that everything comes up and can be measured; its figures mean little.
SMOKE = Plan("smoke", rounds=2, tcp_seconds=1, pings=20, udp_seconds=0.1, more_every=1)


@dataclass
class Outcome:
    """What a run has found. `samples`: figure -> contestant -> one value for each round that counts, None where a
    round gave none (no rate without loss, for example)."""

    contestants: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, peer: str, number: int, figures: Figures) -> None:
        """Keep the figures of one turn of the round `number`, counted from 0 without the dropped one."""
        for name, value in figures.items():
            values = self.samples.setdefault(name, {}).setdefault(peer, [])
            values.extend([None] * (number - len(values)))
            values.append(value)


def play(run: Run, peers: list[Peer], plan: Plan, say: Callable[[str], None]) -> Outcome:
    """Bring all contestants up and measure them. One that cannot run is named with its reason, and left out.

    The caller owns `run` and takes it down.
    """
    outcome = Outcome()
    with ExitStack() as stack:
        ready = [peer for peer in peers if _bring_up(run, peer, outcome, stack, say)]
        busiest = 0.0
        for number in range(plan.rounds):
            counts = number > 0
            busiest = max(busiest, busy_share(_QUIET_SECONDS))
            for peer in list(ready):
                begun = time.monotonic()
                figures = _try_turn(peer, plan, number, outcome, say)
                if figures is None:
                    # Its earlier rounds are not enough for a median that may stand beside the others.
                    ready.remove(peer)
                    continue
                if counts:
                    outcome.add(peer.name, number - 1, figures)
                mark = "" if counts else " (dropped)"
                say(f"round {number}{mark} {peer.name}: {_brief(figures)}, {time.monotonic() - begun:.0f} s")
    if busiest > BUSY_LIMIT:
        outcome.warnings.append(f"the machine was busy between the rounds: up to {busiest:.0%} of its cores in use")
    return outcome


def _bring_up(run: Run, peer: Peer, outcome: Outcome, stack: ExitStack, say: Callable[[str], None]) -> bool:
    try:
        peer.install()
        bed = Bed(run, peer.name)
        bed.build()
        stack.callback(peer.stop_if_started)
        peer.start(bed)
        bed.wait_for_answers(peer.left_address, peer.right_address)
        for end in (bed.right, bed.right_lan):
            stack.enter_context(iperf_server(run, end))
    except (DsvpnError, TimeoutError, OSError) as error:
        _leave_out(outcome, peer, str(error), say)
        return False
    outcome.contestants[peer.name] = {
        "title": peer.title,
        "version": peer.version(),
        "cipher": peer.cipher,
        "mtu": peer.mtu(),
        "notes": peer.notes,
    }
    say(f"{peer.name} is up: {peer.version()}")
    return True


def _leave_out(outcome: Outcome, peer: Peer, reason: str, say: Callable[[str], None]) -> None:
    outcome.contestants[peer.name] = {"title": peer.title, "missing": reason}
    outcome.warnings.append(f"{peer.name} is missing: {reason}")
    for by_peer in outcome.samples.values():
        by_peer.pop(peer.name, None)
    say(f"{peer.name} is MISSING: {reason}")


def _try_turn(peer: Peer, plan: Plan, number: int, outcome: Outcome, say: Callable[[str], None]) -> Figures | None:
    """A turn, from its beginning once more if something failed: iperf3 loses its control connection now and then."""
    for last in (False, True):
        try:
            return _turn(peer, plan, more=plan.measures_more(number))
        except (DsvpnError, TimeoutError, OSError) as error:
            if last:
                _leave_out(outcome, peer, f"failed twice in round {number}: {error}", say)
            else:
                outcome.warnings.append(f"{peer.name} was measured anew in round {number}: {error}")
                say(outcome.warnings[-1])
    return None


def _turn(peer: Peer, plan: Plan, *, more: bool) -> Figures:
    bed = peer.bed
    ends = Ends(bed.left, peer.left_address, bed.right, peer.right_address)
    figures = idle(ends, plan.pings)
    figures |= tcp(peer, ends, plan.tcp_seconds, "tcp_1")
    figures |= loaded(peer, ends, plan.tcp_seconds)
    figures |= udp(ends, "udp_64", size=64, seconds=plan.udp_seconds)
    if more:
        lans = Ends(bed.left_lan, LEFT_HOST, bed.right_lan, RIGHT_HOST)
        figures |= tcp(peer, ends, plan.tcp_seconds, "tcp_1_reverse", reverse=True)
        figures |= tcp(peer, ends, plan.tcp_seconds, "tcp_4_reverse", streams=4, reverse=True)
        figures |= tcp(peer, ends, plan.tcp_seconds, "tcp_1_both", both=True)
        figures |= tcp(peer, lans, plan.tcp_seconds, "tcp_1_routed")
        figures |= udp(ends, "quic", size=1200, segments=32, allowed=0.01, seconds=plan.udp_seconds)
    return figures


def _brief(figures: Figures) -> str:
    parts = [f"{figures[f'tcp_{n}_bits_per_second'] / 1e9:.2f}" for n in (1, 4)]
    small = figures.get("udp_64_packets_per_second")
    return f"TCP {' and '.join(parts)} Gb/s, UDP {'none' if small is None else f'{small / 1e3:.0f} kpps'}"


def reference(outcome: Outcome) -> str | None:
    """What the ratios are against in this run."""
    running = [name for name, found in outcome.contestants.items() if "missing" not in found]
    return REFERENCE if REFERENCE in running else None
