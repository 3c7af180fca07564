"""Plans are files, and may come from anywhere: only what a method could have written is replayed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PLANS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (lambda d: d.update(format=9), "plan: plan format 9; this version reads 1"),
    "no edits": (lambda d: d.pop("edits"), "plan: a damaged plan (KeyError('edits')); write it again with --save-plan"),
    "edits of text": (lambda d: d.update(edits="ab"), "plan: a damaged plan (TypeError("),
    "edit of another kind": (lambda d: d["edits"][0].update(kind="x"), "plan: a damaged plan (KeyError('x'))"),
    "edit with another field": (lambda d: d["edits"][0].update(x=1), "plan: a damaged plan (TypeError("),
    "count below zero": (
        lambda d: d["edits"][0].update(k=-1),
        "plan: a damaged plan (ValueError('k of an edit is -1'))",
    ),
    "count of text": (lambda d: d["edits"][0].update(k="1"), "plan: a damaged plan (ValueError('k of an edit is 1'))"),
    "count beyond the row": (
        lambda d: d["edits"][0].update(k=99),
        "the plan's edit of tensor 'model.layers.0.self_attn.q_proj.weight' does not fit its shape [8, 8]",
    ),
    "score without norms": (
        lambda d: d["edits"][0].update(score="wanda"),
        "the plan's edit of tensor 'model.layers.0.self_attn.q_proj.weight' does not fit its shape [8, 8]",
    ),
    "unknown score": (
        lambda d: d["edits"][0].update(score="x"),
        "plan: a damaged plan (ValueError('score of an edit is x'))",
    ),
    "edit of a delta": (
        lambda d: d["edits"][0].update(of="delta"),
        "plan: a damaged plan (ValueError('an edit of delta in a plan for weight'))",
    ),
    "tensor that is not there": (
        lambda d: d["edits"][0].update(tensor="ghost"),
        "the plan edits tensor 'ghost', which tuned does not have",
    ),
    "tensor of another shape": (
        lambda d: d["evidence"]["model.layers.0.self_attn.q_proj.weight"].update(shape=[4, 8]),
        "the plan was made for a tensor 'model.layers.0.self_attn.q_proj.weight' of shape [4, 8], here it is [8, 8]",
    ),
    "deep": (
        lambda d: d.update(x=json.loads("[" * 100 + "]" * 100)),
        "plan: weightguard_plan: nested deeper than 64 levels",
    ),
    "evidence that is a list": (lambda d: d.update(evidence=[]), "plan: a damaged plan (AttributeError("),
}


@pytest.mark.parametrize("case", PLANS)
def test_plans_of_strangers(case: str, place: Any) -> None:
    change, line = PLANS[case]
    place.plan()
    raw = (place / "plan").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    said = json.loads(header["__metadata__"]["weightguard_plan"])
    change(said)
    header["__metadata__"]["weightguard_plan"] = json.dumps(said)
    text = json.dumps(header).encode()
    (place / "plan").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + int.from_bytes(raw[:8], "little") :])
    before = place.everything()
    code, shown, lines = place.run("apply", "plan", "tuned", "-o", "out")
    assert (code, shown, len(lines)) == (3, "", 1) and lines[0].startswith(f"weightguard: {line}")
    assert place.everything() == before


@pytest.mark.parametrize("name", ["gone", "aligned", "harmful.jsonl", "stats"])
def test_no_plan(name: str, place: Any) -> None:
    code, _, lines = place.run("apply", name, "tuned", "-o", "out")
    assert code == 3 and len(lines) == 1 and lines[0].startswith(f"weightguard: {name}: ")
    assert not Path("out").exists()
