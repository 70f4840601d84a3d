"""The search for the highest rate without loss, and the sender and receiver behind it."""

from __future__ import annotations

import pytest

from bench.netns.udp import Bench, Trial, search


class Tunnel:
    """Loses everything above `limit`; the sender manages `ability`."""

    def __init__(self, limit: float, ability: float = 1e9) -> None:
        self.limit, self.ability = limit, ability
        self.hiccups = 0

    def __call__(self, rate: float) -> Trial:
        offered = min(rate, self.ability)
        hiccup, self.hiccups = self.hiccups > 0, max(0, self.hiccups - 1)
        received = 1000 if offered <= self.limit and not hiccup else 990
        return Trial(rate, offered, 1000, received, 0, 1.0)


def best_rate(tunnel: Tunnel, allowed: float = 0.0) -> float | None:
    best, _ = search(tunnel, start=20_000, ceiling=8e6, allowed=allowed, steps=6)
    return None if best is None else best.offered


@pytest.mark.parametrize("limit", [1_000.0, 25_000.0, 333_000.0])
def test_finds_the_limit_from_below(limit: float) -> None:
    found = best_rate(Tunnel(limit))
    assert found is not None
    assert limit * 0.9 < found <= limit


def test_one_hiccup_does_not_count() -> None:
    tunnel = Tunnel(100_000.0)
    tunnel.hiccups = 1
    found = best_rate(tunnel)
    assert found is not None
    assert found > 90_000


def test_ends_where_the_sender_does() -> None:
    assert best_rate(Tunnel(1e9, ability=50_000.0)) == 50_000.0


def test_a_tunnel_that_always_loses_has_no_rate() -> None:
    assert best_rate(Tunnel(0.0)) is None


def test_allowed_loss_is_allowed() -> None:
    found = best_rate(Tunnel(0.0, ability=50_000.0), allowed=0.02)
    assert found == 50_000.0


@pytest.mark.netns
@pytest.mark.parametrize(("size", "segments"), [(64, 0), (1200, 32)])
def test_every_datagram_is_counted_over_loopback(size: int, segments: int, namespace: str) -> None:
    bench = Bench(namespace, namespace, "127.0.0.1", size, segments)
    try:
        trial = bench.trial(20_000, 0.2)
    finally:
        bench.close()
    assert trial.sent > 0
    assert trial.received == trial.sent
    assert trial.reordered == 0
