"""Handshakes as responder, on one processor: dsvpn and charon in turn, under the same initiators."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count as numbers
from pathlib import Path
from typing import Any

from bench.control.bed import ADDRESSES, SUITES, ControlBed, Initiators
from bench.control.responders import Charon, Dsvpn, Responder, Secrets
from dsvpn.errors import HostError
from dsvpn.lab.run import Run

#: Handshakes that an initiator has under way.
IN_FLIGHT = 16
#: Peers of one measurement; their SAs are deleted before the next.
COUNT = 400
_WARM_UP = 40


@dataclass(slots=True)
class _Contestant:
    responder: Responder
    case: str
    initiators: Initiators

    @property
    def name(self) -> str:
        return f"{self.responder.name}, {self.case}"


def measure(run: Run, *, rounds: int, say: Callable[[str], None], compiled: Path, count: int = COUNT) -> dict[str, Any]:
    """Samples by figure and contestant, `rounds` of them, the first of which is dropped; each of `count` handshakes.

    A contestant that cannot be had is in "missing" with the reason.
    """
    contestants: list[_Contestant] = []
    missing: dict[str, str] = {}
    versions: dict[str, str] = {}
    samples: dict[str, dict[str, list[float]]] = {}
    secrets = Secrets(run.directory / "secrets")
    with ExitStack() as stack:
        beds = numbers()
        for make in (lambda: Dsvpn(compiled), Charon, lambda: Charon("14")):
            for case in SUITES:
                responder = make()
                try:
                    responder.install()
                    versions[responder.name] = f"{responder.title}, {responder.version()}"
                    if not responder.knows(case):
                        continue
                    bed = ControlBed(run, f"{responder.name}-{next(beds)}")
                    contestants.append(start(stack, bed, secrets, responder, case, compiled))
                except (HostError, TimeoutError) as error:
                    missing[f"{responder.name}, {case}"] = str(error)
                    say(f"{responder.name}, {case}: missing: {error}")
        for one in list(contestants):
            try:
                one.initiators("connect", count=_WARM_UP, in_flight=IN_FLIGHT)
                one.initiators("disconnect", in_flight=IN_FLIGHT)
            except HostError as error:
                contestants.remove(one)
                missing[one.name] = str(error)
                say(f"{one.name}: missing: {error}")
        for number in range(rounds):
            for one in contestants:
                found = turn(one, count)
                say(
                    f"round {number + 1} of {rounds}: {one.name}: "
                    + ", ".join(f"{k} {v:.5g}" for k, v in found.items())
                )
                if number:
                    for figure, value in found.items():
                        samples.setdefault(figure, {}).setdefault(one.name, []).append(value)
    return {"samples": samples, "missing": missing, "versions": versions}


def start(
    stack: ExitStack, bed: ControlBed, secrets: Secrets, responder: Responder, case: str, *first: Path
) -> _Contestant:
    """A responder with its initiators, who run with the modules of `first`; what it starts ends with `stack`."""
    bed.build()
    stack.callback(responder.stop)
    responder.start(bed, secrets, case)
    initiators = Initiators(bed, secrets.gateways(case), ADDRESSES[1], *first)
    stack.callback(initiators.close)
    return _Contestant(responder, case, initiators)


def turn(one: _Contestant, count: int) -> dict[str, float]:
    """One measurement of one contestant."""
    before = one.responder.processor_seconds()
    found = one.initiators("connect", count=count, in_flight=IN_FLIGHT)
    spent = one.responder.processor_seconds() - before
    if found["failures"] or found["up"] != count:
        raise HostError(f"{one.name}: {found['up']} of {count} handshakes succeeded: {found['failures']}")
    one.initiators("disconnect", in_flight=IN_FLIGHT)
    return {
        "per_processor_second": count / spent,
        "per_second": count / found["seconds"],
        "latency_seconds": statistics.median(found["latencies"]),
    }
