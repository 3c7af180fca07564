"""Intervals against scipy, closed forms and a naive resampling of pairs."""

from __future__ import annotations

import math
import random

import pytest
from scipy.stats import binomtest

from weightguard.validate.intervals import bootstrap, paired, wilson


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 160), (1, 1), (8, 160), (160, 160), (53, 590), (1, 100_000)])
def test_wilson_is_scipys(hits: int, n: int) -> None:
    wanted = binomtest(hits, n).proportion_ci(method="wilson")
    low, high = wilson(hits, n)
    assert math.isclose(low, wanted.low, abs_tol=1e-7) and math.isclose(high, wanted.high, abs_tol=1e-7)


@pytest.mark.parametrize("n", [1, 7, 33, 590])
def test_wilson_holds_its_share_to_the_last_bit(n: int) -> None:
    for hits in range(n + 1):
        low, high = wilson(hits, n)
        assert 0 <= low <= hits / n <= high <= 1 and low < high


def test_the_bootstrap_is_about_the_normal_interval() -> None:
    source = random.Random(5)
    values = [source.gauss(3, 2) for _ in range(400)]
    mean = math.fsum(values) / len(values)
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)) / math.sqrt(len(values))
    low, high = bootstrap(values, seed=0) or (0.0, 0.0)
    assert abs(low - (mean - 1.96 * error)) < 0.15 * error
    assert abs(high - (mean + 1.96 * error)) < 0.15 * error


def test_the_bootstrap_depends_on_its_seed_alone() -> None:
    values = [math.sin(i) for i in range(50)]
    assert bootstrap(values, seed=3) == bootstrap(list(values), seed=3) != bootstrap(values, seed=4)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_fewer_than_two_rows_make_no_interval(values: list[float]) -> None:
    assert bootstrap(values, seed=0) is None
    assert paired(values, values, seed=0, shares=False) is None


def test_pairs_are_drawn_together() -> None:
    """Rows that vary a lot and differ by little: drawn as pairs the interval is narrow, drawn apart it is not."""
    first = [float(i) for i in range(100)]
    second = [value - 1 - (i % 2) * 0.1 for i, value in enumerate(first)]
    low, high = paired(first, second, seed=0, shares=False) or (0.0, 9.0)
    assert 1.0 < low < 1.05 < high < 1.1


@pytest.mark.parametrize("difference", [0, 1, -1])
def test_pairs_that_all_differ_alike_are_no_certainty(difference: int) -> None:
    first, second = ([1.0] * 2 if difference >= 0 else [0.0] * 2), ([1.0] * 2 if difference <= 0 else [0.0] * 2)
    low, high = paired(first, second, seed=0, shares=True) or (0.0, 0.0)
    assert high - low >= 0.6 and low <= difference <= high


def test_differences_of_shares_keep_to_their_range() -> None:
    source = random.Random(1)
    first, second = ([float(source.random() < p) for _ in range(200)] for p in (0.9, 0.6))
    low, high = paired(first, second, seed=0, shares=True) or (0.0, 0.0)
    mean = (sum(first) - sum(second)) / 200
    assert -1 <= low < mean < high <= 1 and 0.1 < high - low < 0.3
