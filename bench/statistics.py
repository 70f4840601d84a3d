"""Medians, spreads and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

Samples = Mapping[str, Mapping[str, Sequence[float | None]]]
Summary = dict[str, dict[str, dict[str, float]]]


def summarize(samples: Samples, reference: str | None) -> Summary:
    """figure -> contestant -> "median", "mad" (median absolute deviation), "count", and "ratio" to the reference.

    The ratio is the median of the ratios within each round, so that a slow moment of the machine, which hits
    neighbours in a round alike, does not count for or against anybody. It is absent where no round has both values.
    """
    summary: Summary = {}
    for figure, by_name in samples.items():
        base = by_name.get(reference, ()) if reference else ()
        for name, values in by_name.items():
            present = [value for value in values if value is not None]
            if not present:
                continue
            middle = statistics.median(present)
            found = {
                "median": middle,
                "mad": statistics.median(abs(value - middle) for value in present),
                "count": float(len(present)),
            }
            ratios = [value / other for value, other in zip(values, base, strict=False) if value is not None and other]
            if ratios:
                found["ratio"] = statistics.median(ratios)
            summary.setdefault(figure, {})[name] = found
    return summary
