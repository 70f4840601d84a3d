"""Every order in which two ends can hear each other.

A scenario is run again and again from its start. Each run follows a list of choices; where the list ends, the first
choice is taken and the others are noted for later runs. A choice is whose oldest datagram arrives next, or is lost, as
long as losses are left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.ike.harness import Wire


def _choices(net: Wire, losses: int) -> list[str]:
    senders = [name for name in ("a", "b") if net.flying[name]]
    return senders + ([f"lose {name}" for name in senders] if losses else [])


def run(net: Wire, script: list[int], losses: int, check: Callable[[Wire], None]) -> Iterator[list[int]]:
    """Play one run to its end; gives the scripts of the runs that branch off behind `script`."""
    taken: list[int] = []
    net.collect()
    for _ in range(500):
        choices = _choices(net, losses)
        if not choices:
            # Nothing is in flight: time passes until somebody repeats himself, or all is said.
            if all(sa.requests.outstanding is None for end in net.ends for sa in end.engine._context.ike_sas.values()):
                return
            timer = net.next_timer()
            assert timer is not None
            net.now = max(net.now, timer)
            for end in net.ends:
                end.engine.handle_timer(net.now)
            net.collect()
            continue
        at = len(taken)
        choice = script[at] if at < len(script) else 0
        if at >= len(script):
            for other in range(1, len(choices)):
                yield [*taken, other]
        taken.append(choice)
        name = choices[choice]
        if name.startswith("lose"):
            net.lose(name[-1])
            losses -= 1
        else:
            net.deliver(name)
        check(net)
    raise AssertionError(f"the two never stop talking: {taken}")


def every_run(
    scenario: Callable[[], Wire], losses: int, check: Callable[[Wire], None], limit: int = 100_000
) -> Iterator[tuple[list[int], Wire]]:
    """Every run of `scenario`, with its script, after its end. `check` runs after each step."""
    scripts: list[list[int]] = [[]]
    for _ in range(limit):
        if not scripts:
            return
        script = scripts.pop()
        net = scenario()
        try:
            scripts.extend(run(net, script, losses, check))
        except AssertionError as error:
            raise AssertionError(f"script {script}: {error}") from error
        yield script, net
    raise AssertionError(f"more than {limit} runs")
