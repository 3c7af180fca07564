"""What benchmarks/repairs.py says of its cells, and of arguments that it cannot take."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ORDER = [("attacked", "-"), ("scaling", "auto"), ("scaling", "best"), ("refit", "fixed")]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of benchmarks/, which is no package, by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def cell(seed: int, repair: str, rule: str, worst: float | None, p: float = 0.1) -> dict[str, Any]:
    said = {
        "world": "new",
        "seed": seed,
        "attack": "full",
        "p": p,
        "repair": repair,
        "rule": rule,
        "cell_seconds": 30.0,
    }
    return {**said, "worst": worst, **({} if worst is None else {"refusal": worst})}


CELLS = [
    *(cell(seed, "refit", "fixed", 90.0 + seed) for seed in (3, 4, 5, 7)),
    *(cell(seed, "scaling", "auto", None if seed == 4 else 60.0 + seed) for seed in (3, 4, 5)),
    *(cell(seed, "scaling", "best", None if seed == 3 else 64.0) for seed in (3, 4, 5, 7)),
    cell(3, "attacked", "-", 0.0, p=0.0),
]


def shown(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> list[str]:
    benchmark("repairs_table").show(CELLS, ORDER)
    return capsys.readouterr().out.splitlines()


def test_it_says_what_is_in_it_and_how_long_that_took(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(benchmark, capsys)
    assert "12 cells, 6 minutes by the clock" in said[2]
    assert said[4].startswith("* p = 0.0: seeds 3, 1 cells, 0 minutes (nothing is poisoned")
    assert said[5] == "* p = 0.1: seeds 3 to 5, 7, 11 cells, 6 minutes"


def test_every_row_says_over_how_many_seeds(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """And what became of the others. A best cell without a result, or below auto, is auto's."""
    rows = {line.split(" | ")[0]: line.split(" | ") for line in shown(benchmark, capsys) if line.startswith("| ")}
    assert rows["| refit"][1:3] == ["4", "94.8 (93..97)"]
    assert rows["| scaling, auto"][1:3] == ["2 (1 none, 1 not run)", "64 (63..65)"]
    assert rows["| scaling, best"][1:3] == ["4", "64 (63..65)"]
    assert rows["| attacked"][1:3] == ["1", "0"]
    assert list(rows) == ["| repair", "| attacked", "| scaling, auto", "| scaling, best", "| refit"]


@pytest.mark.parametrize("given, line", [
    ("--repairs foo", "argument --repairs: 'foo' is none of scaling;"),
    ("--repairs refit,scaling", "argument --repairs: 'refit,scaling' is none of scaling;"),
    ("--worlds nonsense", "argument --worlds: 'nonsense' is none of known,new"),
    ("--attacks lora,x", "argument --attacks: 'x' is none of lora,full"),
    ("--p 2", "argument --p: 2: must be from 0 to 1"),
    ("--p nan", "argument --p: nan: must be from 0 to 1"),
    ("--p x", "argument --p: invalid shares value: 'x'"),
    ("--seeds 0", "argument --seeds: 0: must be 1 or more"),
    ("--first-seed -1", "argument --first-seed: -1: must be 0 or more"),
    ("--step 0", "argument --step: must be above 0"),
    ("--table --results gone", "argument --table: gone is not there"),
])  # fmt: skip
def test_arguments_it_cannot_take(
    given: str, line: str, benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["repairs.py", *given.split()])
    with pytest.raises(SystemExit) as error:
        benchmark("repairs").main()
    assert error.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"repairs.py: error: {line}")
