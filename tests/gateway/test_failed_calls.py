"""What is remembered of calls that failed, and for how long."""

from __future__ import annotations

from ipaddress import ip_address

from dsvpn.addresses import Endpoint, Path
from dsvpn.gateway.failed_calls import FailedCalls
from dsvpn.gateway.peers import Peer


def peer(number: int = 1, *, failures: int = 0, port: int | None = None, private: str | None = None) -> Peer:
    nbma = ip_address((192 << 24) + number)
    inside = None if private is None else ip_address(private)
    return Peer("default", nbma, {}, inside, failures=failures, nat_port=port)


def test_failures_and_the_port_come_back_once() -> None:
    failed = FailedCalls()
    failed.keep(peer(failures=6, port=40_001), 100.0)
    back = peer()
    assert failed.recall(back, 40_001, 900.0)
    assert (back.failures, back.nat_port) == (6, 40_001)
    assert not failed.recall(peer(), 40_001, 900.0)


def test_another_place_is_not_the_one_that_failed() -> None:
    failed = FailedCalls()
    failed.keep(peer(failures=6, port=40_001, private="192.168.1.2"), 100.0)
    for other, port in (
        (peer(private="192.168.1.3"), 40_001),
        (peer(2, private="192.168.1.2"), 40_001),
        (peer(private="192.168.1.2"), 40_002),
    ):
        assert not failed.recall(other, port, 101.0)
        assert other.failures == 0


def test_it_is_forgotten_in_time_and_when_this_end_moves() -> None:
    failed = FailedCalls()
    failed.keep(peer(failures=6), 100.0)
    assert not failed.recall(peer(), None, 1000.0)
    failed.keep(peer(failures=6), 100.0)
    failed.clear()
    assert not failed.recall(peer(), None, 101.0)


def test_what_got_through_or_was_not_called_is_not_kept() -> None:
    failed = FailedCalls()
    failed.keep(peer(), 0.0)
    plain = Peer(None, ip_address("192.0.2.1"), {}, failures=3)
    plain.path = Path(Endpoint(plain.nbma, 0), Endpoint(plain.nbma, 0))
    failed.keep(plain, 0.0)
    assert not failed.recall(peer(), None, 1.0)
    assert not failed.recall(Peer(None, ip_address("192.0.2.1"), {}), None, 1.0)


def test_no_more_than_a_thousand_are_kept_and_the_youngest_stay() -> None:
    failed = FailedCalls()
    for number in range(3000):
        failed.keep(peer(number, failures=1), number / 1000)
    assert len(failed._failed) == 1024
    assert failed.recall(peer(2999), None, 3.0)
    assert not failed.recall(peer(0), None, 3.0)
    failed.keep(peer(failures=1), 5000.0)
    assert len(failed._failed) == 1, "what is out of date makes room"
