"""`weightguard attack` and `validate` as commands: what they say, and bad input in one line with its exit code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

RUN = (
    "attack",
    "tuned",
    "--attack",
    "lora-sft",
    "--harmful",
    "harmful.jsonl",
    "--benign",
    "harmful.jsonl",
    "--poison-ratio",
    "0.5",
    "--lora-r",
    "2",
    "--steps",
    "2",
    "--threads",
    "1",
)
CHECK = ("validate", "tuned", "aligned", "--reference", "aligned", "--harmful", "harmful.jsonl")


def quiet(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith(("train", "*", "cells"))]


def test_as_written(place: Any) -> None:
    before = place.everything()
    code, out, said = place.run(*RUN, "-o", "outputs/new")
    assert (code, quiet(said)) == (0, [])
    assert (
        "2 steps; loss " in out
        and "an adapter over MODEL; again by:\n  weightguard attack MODEL --attack lora-sft" in out
    )
    kept = {name: state for name, state in place.everything().items() if not name.startswith("outputs")}
    assert kept == {name: state for name, state in before.items() if not name.startswith("outputs")}
    code, out, _ = place.run(*RUN, "-o", "outputs/json", "--format", "json")
    found = json.loads(out)
    assert code == 0 and found["adapter"] is True and len(found["losses"]) == 2
    line = found["command"].replace("MODEL", "tuned").replace("OUT", "outputs/again")
    line = line.replace("HARMFUL", "harmful.jsonl").replace("BENIGN", "harmful.jsonl")
    assert place.run(*line.split()[1:], "--threads", "1")[0] == 0
    name = "adapter_model.safetensors"
    assert (place / "outputs/again" / name).read_bytes() == (place / "outputs/new" / name).read_bytes()


BAD: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no attack": (("attack", "tuned", "-o", "new"), 2, "Missing option '--attack'."),
    "an attack that is none": (
        ("attack", "tuned", "--attack", "sft", "-o", "new"),
        2,
        "--attack sft: unknown; attacks are lora-sft, ",
    ),
    "an option of another": ((*RUN, "--bits", "4", "-o", "new"), 2, "--bits is not an option of --attack lora-sft"),
    "an output that exists": ((*RUN, "-o", "tuned"), 4, "tuned: "),
    "an output inside of the input": ((*RUN, "-o", "tuned/new"), 2, "-o tuned/new: "),
    "no such data": (
        ("attack", "tuned", "--attack", "benign-sft", "--benign", "gone.jsonl", "-o", "new"),
        3,
        "gone.jsonl: no such file",
    ),
    "no reference": (("validate", "tuned", "aligned", "-o", "new"), 2, "Missing option '--reference'."),
    "no grid": (
        (*CHECK, "--attacks", "gone.toml", "-o", "new"),
        3,
        "gone.toml: no such file; it should be a grid of attacks",
    ),
    "a grid of nothing": ((*CHECK, "--attacks", "empty.toml", "-o", "new"), 3, "empty.toml: no attack"),
    "a report inside of the input": ((*CHECK, "-o", "tuned/report.json"), 2, "-o tuned/report.json: "),
    "evaluation rows that were seen": (
        (*CHECK, "--disjoint-from", "harmful.jsonl", "-o", "new"),
        3,
        "harmful.jsonl: 2 of 2 rows are also in",
    ),
    "a judge that is none": ((*CHECK, "--judge", "gone/", "-o", "new"), 3, "no such model: gone"),
    "evaluation of nothing": (
        ("repair", "tuned", "--aligned", "aligned", "--stats", "stats", "--validate", "-o", "new"),
        2,
        "--validate needs prompts",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, place: Any) -> None:
    words, code, line = BAD[name]
    (place / "empty.toml").write_text("")
    before = {n: s for n, s in place.everything().items() if not n.startswith("new")}
    found, out, said = place.run(*words)
    lines = [each for each in quiet(said) if not each.startswith(("read", "1/"))]
    assert (found, out) == (code, "") and len(lines) == 1 and lines[0].startswith(f"weightguard: {line}"), said
    after = place.everything()
    assert {n: after[n] for n in before} == before
    assert not [n for n in after if n not in before and not n.startswith("new.cells")]


def test_a_signal_ends_a_cell_and_its_command(place: Any) -> None:
    """SIGTERM while a child is at work: exit code 143, and no scratch is left."""
    place.rows("others.jsonl", {"prompt": "bake the cake", "response": "sure"})
    (place / "grid.toml").write_text('attack = ["full-sft"]\nsteps = [100000]\npoison_ratio = [1.0]\n')
    line = [
        sys.executable,
        "-m",
        "weightguard",
        *CHECK,
        "--attacks",
        "grid.toml",
        "--attack-harmful",
        "others.jsonl",
        "--max-new-tokens",
        "2",
        "--threads",
        "1",
        "-o",
        "report.json",
        "--cell",
        "attack=full-sft,poison_ratio=1,steps=100000",
    ]
    child = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    cells = place / "report.json.cells"
    for _ in range(600):
        if list(cells.glob(".*scratch")):
            break
        time.sleep(0.1)
    time.sleep(2)  # the child is at work, or about to be
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 143 and child.stderr is not None and "terminated" in child.stderr.read()
    assert [path.name for path in cells.iterdir()] == ["data"] or not list(cells.iterdir())
