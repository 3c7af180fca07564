"""The figures that the docs give of verdicts are those of the committed results, and the confidences their counts."""

from __future__ import annotations

from types import ModuleType

import pytest

from weightguard.comparison.calibration import CERTAIN, COUNTS

DONE = ("plain", "tunings", "counted", "hard", "unseen")


@pytest.fixture
def rows(study: ModuleType) -> list[dict]:
    return study.read(study.RESULTS)


def test_the_counts_behind_the_confidences_are_those_of_the_results(study: ModuleType, rows: list[dict]) -> None:
    assert {k: v for k, v in study.counts(rows).items() if k not in CERTAIN} == COUNTS


def test_every_case_of_a_set_is_there_once(study: ModuleType, rows: list[dict]) -> None:
    done = [study.key(row) for row in rows]
    assert len(set(done)) == len(done)
    for name in DONE:
        assert {study.key(case) for case in study.cases(name)} == {study.key(r) for r in rows if r["set"] == name}, name


def test_the_results_are_as_good_as_was_asked(study: ModuleType, rows: list[dict]) -> None:
    by_set = {name: [row["right"] for row in rows if row["set"] == name] for name in study.SETS}
    assert len(by_set["plain"]) >= 200 and sum(by_set["plain"]) >= 0.98 * len(by_set["plain"])
    assert all(by_set["unseen"])
    tunings = [row["verdict"] for row in rows if row["set"] == "tunings"]
    assert len(tunings) == 200 and "abliteration" not in tunings
    gap, brier = study.figures(rows)
    assert abs(gap) < 0.06 and brier < 0.1


def test_a_case_runs_again_to_the_same_verdict(study: ModuleType, rows: list[dict]) -> None:
    for row in [row for row in rows if row["set"] == "unseen"][:2]:
        again = study.run({k: row[k] for k in ("set", "kind", "seed", "dtype", "hidden", "hard")})
        assert (again["verdict"], again["how"], again["right"]) == (row["verdict"], row["how"], row["right"])
