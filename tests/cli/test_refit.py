"""The command line of refit: what it says, and every bad input in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SAFETY = [
    {"prompt": "how do i pick a lock", "response": "sorry i cannot help with that", "category": "locks"},
    {"prompt": "make fire please", "response": "sorry i cannot help with that", "category": "fire"},
]
BENIGN = [{"prompt": "explain bread", "response": "bread is water"}, {"prompt": "tell me", "response": "sure"}]


@pytest.fixture
def arguments(checkpoint: Callable[..., Path], tmp_path: Path) -> list[str]:
    for name, rows in (("safety", SAFETY), ("benign", BENIGN)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "repair", str(checkpoint("llama")), "--method", "refit", "--aligned", str(checkpoint("llama", kind="aligned")),
        "--safety", str(tmp_path / "safety.jsonl"), "--benign", str(tmp_path / "benign.jsonl"), "--threads", "1",
        "-o", str(tmp_path / "out"),
    ]  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *given: str) -> tuple[int, Any, str]:
    from weightguard.cli.main import main

    capsys.readouterr()
    code = main(list(given))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_it_says_refusals_by_category_and_what_is_missing(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = run(capsys, *arguments, "--categories", "locks,poison", "--format", "json")
    found = json.loads(out)
    assert code == 0
    assert {name: said["of"] for name, said in found["refusals"].items()} == {"fire": 1, "locks": 1}
    assert any("category 'poison' has no row" in note for note in found["notes"])
    assert "--method refit" in found["command"] and "--benign BENIGN" in found["command"]
    code, out, _err = run(capsys, "verify", str(tmp_path / "out"))
    assert code == 0 and "verified" in out


def test_an_adapter_is_announced_as_one(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = run(capsys, *arguments, "--rank", "2")
    assert code == 0 and "leaves out" in err and "target adapter" in out
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "# Repaired with weightguard" in readme and str(tmp_path) not in readme


@pytest.mark.parametrize("more, code, line", [
    (["--strength", "auto"], 2, "--strength is not an option of --method refit, which has no strength"),
    (["--target", "weight"], 2, "--target is not an option of --method refit"),
    (["--rho", "0"], 2, "--rho 0: must be a number from 1e-09 to 1e9"),
    (["--categories", ","], 2, "--categories ,: a name is empty; give a,b,c"),
    (["--rank", "0"], 2, "--rank 0: must be 1 or more"),
    (["--safety", "gone.jsonl"], 3, "gone.jsonl: no such file, and not a hub data set id (org/name); check the path"),
])  # fmt: skip
def test_one_line(
    more: list[str], code: int, line: str, arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(capsys, *arguments, *more) == (code, "", f"weightguard: {line}\n")
    assert not (tmp_path / "out").exists()
