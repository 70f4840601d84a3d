from __future__ import annotations

import pytest

from dsvpn.observe.tables import duration, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0s"), (41.4, "41s"), (60, "1m"), (3725, "1h 2m"), (90061, "1d 1h"), (-5, "-5s")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("octets", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_400_000_000, "1.4 GB"), (5 * 10**12, "5.0 TB")],
)
def test_sizes(octets: int, text: str) -> None:
    assert size(octets) == text
