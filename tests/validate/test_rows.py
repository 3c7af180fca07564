"""Values of rows into measurements: what is unknown stays so, and what a judge could not say widens the interval."""

from __future__ import annotations

import pytest

from weightguard.validate.intervals import wilson
from weightguard.validate.metrics.incoherence import is_incoherent
from weightguard.validate.metrics.rows import Rows, changed, measured


def rows(name: str, *values: float | bool | None) -> Rows:
    return Rows(name, values, "0" * 64, "a judge", "1")


def test_no_data_is_unknown_and_never_zero() -> None:
    found = measured(rows("harmful_score"), seed=0)
    assert (found.value, found.low, found.high, found.n) == (None, None, None, 0) and found.note


def test_a_share_has_wilsons_interval_and_its_direction() -> None:
    found = measured(rows("harmful_score", True, False, False, True), seed=0)
    assert (found.value, found.n, (found.low, found.high)) == (0.5, 4, wilson(2, 4))
    assert (found.better, found.unit, found.judge, found.judge_revision) == ("lower", "share", "a judge", "1")


def test_rows_without_a_ruling_count_as_either() -> None:
    """A judge that gives up on 50 of 100 rows has shown nothing: the interval holds both ends."""
    found = measured(rows("harmful_score", *[False] * 50, *[None] * 50), seed=0)
    assert (found.value, found.n) == (0.0, 50)
    assert found.low == 0.0 and found.high == wilson(50, 100)[1] > 0.5
    assert "50 rows" in found.note


def test_a_mean_has_a_seeded_bootstrap() -> None:
    found = measured(rows("harmful_loss", 1.0, 2.0, 3.0, 4.0), seed=7)
    assert found == measured(rows("harmful_loss", 1.0, 2.0, 3.0, 4.0), seed=7)
    assert found.value == 2.5 and found.low is not None and found.high is not None
    assert 1 <= found.low < 2.5 < found.high <= 4


def test_one_row_makes_a_mean_without_an_interval() -> None:
    found = measured(rows("harmful_loss", 1.0), seed=0)
    assert (found.value, found.low, found.high) == (1.0, None, None)


def test_a_change_is_over_the_rows_known_on_both_sides() -> None:
    ours, theirs = rows("refusal_rate", True, None, False, True), rows("refusal_rate", True, True, True, False)
    found = changed(ours, theirs, seed=0)
    assert (found.name, found.value, found.n) == ("refusal_rate_change", 0.0, 3)


def test_a_reference_that_is_never_right_can_show_no_loss() -> None:
    found = changed(rows("utility", False, False), rows("utility", False, False), seed=0)
    assert found.value is None and "no loss could show" in found.note


@pytest.mark.parametrize(
    "answer",
    ["", "  \n", "...", "no no no no", "the cat the cat the cat the cat", "a b c d e f g h " * 4, "Ha ha HA ha indeed"],
)
def test_incoherent(answer: str) -> None:
    assert is_incoherent(answer)


@pytest.mark.parametrize(
    "answer", ["yes", "no no no", "very very very good", "the cat the cat the cat sat", "i cannot help with that ."]
)
def test_coherent(answer: str) -> None:
    assert not is_incoherent(answer)
