"""`landscape` as a command: what it writes, what `gate` makes of it, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from weightguard.measurement import Report

SHORT = ("--harmful", "harmful.jsonl", "--threads", "1", "--max-new-tokens", "3", "--points", "3", "--directions", "2")
POLICY = 'format = 1\nname = "deep"\n[limits.visage]\nmin = 0.5\nmin_n = 2\n'


def test_it_writes_every_form_and_touches_nothing(place) -> None:
    before = place.everything()
    code, out, _ = place.run("landscape", "tuned", *SHORT, "-o", "l.json", "-o", "l.svg", "-o", "l.html")
    after = place.everything()
    assert code == 0 and "visage" in out and {n: s for n, s in after.items() if n in before} == before
    assert sorted(set(after) - set(before)) == ["l.html", "l.json", "l.svg"]
    report = Report.from_dict(json.loads((place / "l.json").read_bytes()), "l.json")
    assert report.landscape is not None and len(report.landscape["curves"]) == 2
    assert report.settings["basin"] == "contiguous" and report.settings["judges"][0]["revision"]


def test_a_policy_can_limit_visage_beside_what_evaluate_measured(place) -> None:
    place.run("landscape", "tuned", *SHORT, "-o", "l.json")
    (place / "p.toml").write_text(POLICY)
    evaluated = (
        "evaluate",
        "tuned",
        "--harmful",
        "harmful.jsonl",
        "--threads",
        "1",
        "--max-new-tokens",
        "3",
        "-o",
        "e.json",
    )
    assert place.run(*evaluated)[0] == 0
    code, out, _ = place.run(
        "gate", "tuned", "--policy", "p.toml", "--report", "e.json", "--report", "l.json", "-o", "v.json"
    )
    assert code in (0, 1, 7) and "limits.visage" in out and "not measured" not in out
    assert place.run("verify", "v.json", "--model", "tuned")[0] == code
    assert "not measured" in place.run("gate", "tuned", "--policy", "p.toml", "--report", "e.json")[1]


def test_reports_that_do_not_fit_are_refused(place) -> None:
    place.run("landscape", "tuned", *SHORT, "-o", "l.json")
    place.run("landscape", "aligned", *SHORT, "-o", "other.json")
    place.run("landscape", "tuned", *SHORT, "--seed", "1", "-o", "seed.json")
    for name, said in (("other.json", "about another model"), ("seed.json", "seed 1"), ("l.json", "visage again")):
        code, _, lines = place.run("gate", "tuned", "--report", "l.json", "--report", name)
        assert code == 3 and said in lines[-1]


@pytest.mark.parametrize("plane", [(), ("--plane",)])
def test_towards_another_model(place, plane: tuple[str, ...]) -> None:
    code, out, _ = place.run("landscape", "tuned", *SHORT, "--towards", "aligned", *plane, "-o", "l.json")
    found = Report.from_dict(json.loads((place / "l.json").read_bytes()), "l.json").landscape
    assert code == 0 and "towards aligned" in out and found is not None and found["towards"]["label"] == "aligned"
    assert {0.0, 1.0} <= {point["at"][0] for point in found["curves"][0]["points"]}


def test_a_config_file_names_options_as_flags_do(place) -> None:
    (place / "c.toml").write_text('range = 0.25\nout = ["l.json"]\nbasin = "anywhere"\n')
    assert place.run("landscape", "tuned", *SHORT, "--config", "c.toml")[0] == 0
    settings = json.loads((place / "l.json").read_bytes())["settings"]
    assert settings["range"] == 0.25 and settings["basin"] == "anywhere"


BAD: dict[str, tuple[Callable[[Any], object], tuple[str, ...], int, str]] = {
    "no output": (len, (), 2, "--out"),
    "a form nobody knows": (len, ("-o", "l.png"), 2, ".json, .svg or .html"),
    "an output twice": (len, ("-o", "l.json", "-o", "l.json"), 2, "the same file twice"),
    "an output that exists": (lambda p: (p / "l.json").write_text(""), ("-o", "l.json"), 4, "exists"),
    "an output in the model": (len, ("-o", "tuned/l.json"), 2, "lies in the input"),
    "itself": (len, ("--towards", "tuned", "-o", "l.json"), 3, "has the weights of the model"),
    "another shape": (
        lambda p: p.model("deep", lambda t: [t.update({n.replace("layers.1", "layers.2"): a}) for n, a in list(t.items())],
                          num_hidden_layers=3), ("--towards", "deep", "-o", "l.json"), 3, "another architecture"),
    "another vocabulary": (
        lambda p: p.tokenizer("words", {"<unk>": 0, "other": 1}), ("--towards", "words", "-o", "l.json"), 3, "another vocabulary"),
    "a model that is not there": (len, ("--towards", "./none", "-o", "l.json"), 3, "none"),
    "even points": (len, ("--points", "4", "-o", "l.json"), 2, "odd"),
    "the calibration set": (len, ("--disjoint-from", "harmful.jsonl", "-o", "l.json"), 3, "rows 1 (there 1)"),
    "an empty set": (lambda p: p.rows("e.jsonl"), ("--harmful", "e.jsonl", "-o", "l.json"), 3, "empty data"),
    "a judge nobody knows": (len, ("--judge", "magic:x", "-o", "l.json"), 2, "no judge of that kind"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(place, name: str) -> None:
    spoil, arguments, code, said = BAD[name]
    if spoil is not len:
        spoil(place)
    before = place.everything()
    found, out, lines = place.run("landscape", "tuned", *SHORT, *arguments)
    lines = [line for line in lines if not line.startswith("judge ready")]
    assert (found, out) == (code, "") and said in lines[-1] and len(lines) == 1
    assert place.everything() == before
