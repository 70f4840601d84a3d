from __future__ import annotations

from dsvpn.observe.limit import RateLimit


def test_a_burst_passes_then_the_rate_and_the_rest_is_counted() -> None:
    limit = RateLimit(rate=2.0, burst=3)
    passed = [limit.admit(0.0) for _ in range(10)]
    assert [bool(one) for one in passed] == [True] * 3 + [False] * 7
    assert limit.admit(0.4) is None
    later = limit.admit(0.5)
    assert later is not None
    assert later.fields == {"suppressed": 8}
    again = limit.admit(1000.0)
    assert again is not None
    assert again.fields == {}
    assert sum(limit.admit(1000.0) is not None for _ in range(10)) == 2
