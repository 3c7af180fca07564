"""95 % intervals: Wilson for shares, a seeded bootstrap for means, the same over pairs for differences."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy

Z = 1.959964
RESAMPLES = 2000
Interval = tuple[float, float]


def wilson(hits: int, n: int) -> Interval:
    """Wilson's score interval of a share; never empty, never outside of 0 to 1."""
    share = hits / n
    centre, spread = share + Z * Z / (2 * n), Z * sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    low, high = (centre - spread) / (1 + Z * Z / n), (centre + spread) / (1 + Z * Z / n)
    return min(max(low, 0.0), share), max(min(high, 1.0), share)


def bootstrap(values: Sequence[float], seed: int) -> Interval | None:
    """Percentile interval of the mean over rows drawn anew; None below two rows, which say nothing about spread."""
    if len(values) < 2:
        return None
    found = numpy.asarray(values, dtype=numpy.float64)
    source = numpy.random.default_rng(seed)
    # One resample at a time: memory stays that of the rows, however many there are.
    means = [found[source.integers(0, len(found), len(found))].mean() for _ in range(RESAMPLES)]
    low, high = (float(v) for v in numpy.quantile(means, (0.025, 0.975)))
    mean = float(found.mean())
    return min(low, mean), max(high, mean)


def paired(first: Sequence[float], second: Sequence[float], seed: int, *, shares: bool) -> Interval | None:
    """Interval of the mean of first - second, row by row, rows drawn as pairs.

    shares: hits and misses. Where all pairs differ by the same the bootstrap has no width and would claim certainty from
    two rows; the interval is then as wide, to both sides, as Wilson's for none of n.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if shares and len(set(differences)) == 1:
        most = wilson(0, len(differences))[1]
        return max(differences[0] - most, -1.0), min(differences[0] + most, 1.0)
    return bootstrap(differences, seed)
