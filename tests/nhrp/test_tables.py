"""The tables below the exchanges: timers, limits, peers, shortcuts."""

from __future__ import annotations

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from dsvpn.nhrp.events import ShortcutAdded, ShortcutRemoved
from dsvpn.nhrp.limits import RateLimiter
from dsvpn.nhrp.peers import PeerTable
from dsvpn.nhrp.shortcut import ShortcutTable, host_prefix, network
from dsvpn.nhrp.timers import TimerTable
from tests.nhrp.bench import a


class TestTimers:
    def test_in_order_and_once(self) -> None:
        timers, log = TimerTable(), list[tuple[str, float]]()
        for name, deadline in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
            timers.set(name, deadline, lambda now, name=name: log.append((name, now)))  # type: ignore[misc]
        assert timers.next_deadline() == 1.0
        timers.run_due(2.5)
        assert log == [("a", 2.5), ("b", 2.5)]
        timers.run_due(2.5)
        assert len(log) == 2
        assert timers.next_deadline() == 3.0

    def test_moved_and_cancelled(self) -> None:
        timers, log = TimerTable(), list[float]()
        timers.set("a", 1.0, log.append)
        timers.set("a", 5.0, log.append)
        timers.set("b", 2.0, log.append)
        timers.cancel("b")
        timers.cancel("never set")
        assert timers.next_deadline() == 5.0
        timers.run_due(4.0)
        assert log == []

    def test_cancelled_by_an_earlier_one_of_the_same_round(self) -> None:
        timers, log = TimerTable(), list[float]()
        timers.set("a", 1.0, lambda now: timers.cancel("b"))
        timers.set("b", 1.0, log.append)
        timers.run_due(1.0)
        assert log == []
        assert timers.next_deadline() is None

    def test_overdue_one_set_by_a_callback_waits_for_the_next_round(self) -> None:
        timers, log = TimerTable(), list[float]()

        def again(now: float) -> None:
            log.append(now)
            timers.set("a", now, again)

        timers.set("a", 1.0, again)
        timers.run_due(1.0)
        assert log == [1.0]

    def test_heap_stays_small_when_one_timer_moves_often(self) -> None:
        timers = TimerTable()
        for number in range(10_000):
            timers.set("a", float(number), lambda now: None)
        assert len(timers._heap) < 200
        assert timers.next_deadline() == 9999.0

    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50) | st.none()), max_size=60))
    def test_like_a_dictionary(self, steps: list[tuple[int, int | None]]) -> None:
        timers, model = TimerTable(), dict[int, int]()
        for key, deadline in steps:
            if deadline is None:
                timers.cancel(key)
                model.pop(key, None)
            else:
                timers.set(key, float(deadline), lambda now: None)
                model[key] = deadline
            assert timers.next_deadline() == (min(model.values()) if model else None)
            assert len(timers) == len(model)


class TestRateLimiter:
    def test_burst_then_rate(self) -> None:
        limiter = RateLimiter(2.0, 3.0, 10)
        assert [limiter.allow("a", 0.0) for _ in range(4)] == [True, True, True, False]
        assert limiter.allow("b", 0.0)
        assert limiter.allow("a", 0.5)
        assert not limiter.allow("a", 0.5)
        assert [limiter.allow("a", 100.0) for _ in range(4)] == [True, True, True, False]

    def test_bounded(self) -> None:
        limiter = RateLimiter(1.0, 1.0, 10)
        for key in range(100):
            limiter.allow(key, 0.0)
        assert len(limiter) == 10
        limiter.forget(99)
        assert len(limiter) == 9

    def test_clock_that_stands_still_gives_nothing(self) -> None:
        limiter = RateLimiter(1000.0, 1.0, 10)
        assert limiter.allow("a", 5.0)
        assert not limiter.allow("a", 4.0)


def test_peers_may_share_an_address() -> None:
    peers = PeerTable()
    assert peers.add(a("203.0.113.9"), 1) is None
    peers.add(a("203.0.113.9"), 2)
    assert peers.at(a("203.0.113.9")) == 2
    assert peers.add(a("203.0.113.10"), 2) == a("203.0.113.9")
    assert peers.at(a("203.0.113.9")) == 1
    assert peers.remove(1) == a("203.0.113.9")
    assert peers.remove(1) is None
    assert peers.at(a("203.0.113.9")) is None
    assert 2 in peers
    assert 1 not in peers


@given(st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_network_of_an_address(value: int, length: int) -> None:
    address = a("0.0.0.0") + value
    assert network(address, length) == ip_network((address, length), strict=False)
    assert host_prefix(address) == ip_network(f"{address}/32")


def test_longest_shortcut_covers() -> None:
    events: list[object] = []
    table = ShortcutTable(TimerTable(), events.append)
    wide, narrow = ip_network("10.2.0.0/16"), ip_network("10.2.3.0/24")
    table.add(wide, a("10.0.0.12"), a("10.2.0.1"), 60.0, 0.0)
    table.add(narrow, a("10.0.0.13"), a("10.2.3.1"), 60.0, 0.0)
    for address, prefix in (("10.2.3.9", narrow), ("10.2.4.9", wide), ("10.3.0.1", None)):
        found = table.covering(a(address))
        assert (found.prefix if found else None) == prefix
    assert table.covering(a("fd00::1")) is None
    table.remove_via(a("10.0.0.13"), "test")
    found = table.covering(a("10.2.3.9"))
    assert found is not None
    assert found.prefix == wide
    assert events == [
        ShortcutAdded(wide, a("10.0.0.12")),
        ShortcutAdded(narrow, a("10.0.0.13")),
        ShortcutRemoved(narrow, "test"),
    ]
