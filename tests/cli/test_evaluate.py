"""`evaluate` as a command: what it shows, what it writes, and every bad input in one line with its exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from weightguard.measurement import Report


def run(place: Any, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, what was said on stderr besides progress)."""
    code, out, lines = place.run("evaluate", "tuned", "--threads", "1", "--max-new-tokens", "4", *arguments)
    stages = ("model", "reference", "judges ready")
    return code, out, "\n".join(line for line in lines if not line.startswith(stages))


def test_it_writes_a_report_and_shows_it(place) -> None:
    code, out, said = run(place, "--harmful", "harmful.jsonl", "--reference", "aligned", "-o", "report")
    report = Report.from_dict(json.loads((place / "report").read_bytes()), "report")
    assert code == 0 and said == "" and "harmful_score" in out and "wrote report" in out
    assert report.model.label == "tuned" and report.reference is not None and report.reference.label == "aligned"
    assert "Alpaca" in out, "the template that was used in place of a chat template is said"


def test_json_is_the_report(place) -> None:
    code, out, _ = run(place, "--harmful", "harmful.jsonl", "-o", "report", "--format", "json")
    assert code == 0 and out.encode() == (place / "report").read_bytes()


def long_row(place: Any) -> None:
    place.rows("long.jsonl", {"prompt": "how " * 3000})


BAD: dict[str, tuple[Callable[[Any], object], tuple[str, ...], int, str]] = {
    "no data": (len, (), 2, "nothing to evaluate with"),
    "an empty set": (lambda p: p.rows("e.jsonl"), ("--harmful", "e.jsonl"), 3, "empty data"),
    "a set that is not there": (len, ("--harmful", "none.jsonl"), 3, "no such file"),
    "a prompt beyond the context": (long_row, ("--harmful", "long.jsonl"), 3, "prompt of row 1"),
    "the calibration set": (
        len, ("--harmful", "harmful.jsonl", "--disjoint-from", "harmful.jsonl"), 3, "rows 1 (there 1), 2 (there 2)"
    ),
    "a judge nobody knows": (len, ("--harmful", "harmful.jsonl", "--judge", "magic:x"), 2, "no judge of that kind"),
    "a list nobody knows": (len, ("--harmful", "harmful.jsonl", "--judge", "refusal-phrases:x"), 2, "no such list"),
    "a judge that is no classifier": (len, ("--harmful", "harmful.jsonl", "--judge", "aligned"), 2, "no classifier"),
    "a judge twice": (
        len, ("--harmful", "harmful.jsonl", *["--judge", "refusal-phrases"] * 2), 3, "given twice"
    ),
    "a match nobody knows": (len, ("--harmful", "harmful.jsonl", "--match", "x"), 2, "must be one of"),
    "no batch": (len, ("--harmful", "harmful.jsonl", "--batch-size", "0"), 2, "at least 1"),
    "a model that is not there": (lambda p: (p / "tuned" / "config.json").unlink(), ("--harmful", "harmful.jsonl"), 3, "config"),
    "an output that exists": (lambda p: (p / "report").write_text(""), ("--harmful", "harmful.jsonl"), 4, "exists"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(place, name: str) -> None:
    spoil, arguments, code, said = BAD[name]
    if spoil is not len:
        spoil(place)
    before = place.everything()
    found, out, line = run(place, *arguments, "-o", "report")
    assert (found, out) == (code, "") and said in line and "\n" not in line
    assert place.everything() == before


def test_an_output_in_the_model_is_refused(place) -> None:
    before = place.everything()
    code, _, line = run(place, "--harmful", "harmful.jsonl", "-o", "tuned/report")
    assert code == 2 and "lies in the input" in line and place.everything() == before


def test_a_judge_that_cannot_be_reached_is_known_before_anything_is_answered(place, monkeypatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    judge = ("--judge", "http://127.0.0.1:9/v1#m")
    code, _, lines = place.run("evaluate", "tuned", "--threads", "1", "--harmful", "harmful.jsonl", *judge, "-o", "r")
    assert code == 5 and "cannot be reached" in lines[-1] and not any("answers" in line for line in lines)
