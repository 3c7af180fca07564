"""Tensors are edited block by block where they can be: output, digests and measured change are those of the whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from weightguard import weights

SIZES = [1, 40, 4 << 20]  # one row of the pico model, two or three, everything
WHOLE = [0, 0, 4 << 20]  # bytes of a tensor up to which a selection of the matrix is made in one piece
EDITS = {
    "select of each row": ["--method", "magnitude", "--group", "row", "--ratio", "0.5"],
    "select of the matrix": ["--method", "magnitude", "--group", "matrix", "--ratio", "0.5"],
    "select of all": ["--method", "magnitude", "--group", "global", "--ratio", "0.5"],
    "random": ["--method", "random", "--group", "row", "--ratio", "0.5"],
    "random of the matrix": ["--method", "random", "--group", "matrix", "--ratio", "0.5"],
    "scale": ["--method", "scale", "--strength", "0.3"],
}


@pytest.mark.parametrize("target", ["weight", "delta"])
@pytest.mark.parametrize("edit", EDITS)
def test_the_size_of_a_block_does_not_show(edit: str, target: str, place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    aligned = ["--aligned", str(place.root / "other")] if target == "delta" else []
    held = []
    for size, whole in zip(SIZES, WHOLE, strict=True):
        monkeypatch.setattr(weights, "BLOCK", size)
        monkeypatch.setattr(weights, "WHOLE", whole)
        arguments = ["repair", str(place.model), *EDITS[edit], "--target", target, *aligned, "--force"]
        ended = place.run(*arguments, "-o", str(place.out))
        if edit == "scale" and target == "weight":
            assert ended.code == 2  # there is an update to scale, or nothing
            return
        assert ended.code == 0, ended.said
        held.append(place.held())
    assert held[0] == held[1] == held[2]


def test_digests_are_those_of_what_lies_there(place: Any) -> None:
    """Files and tensors, before and after, counted anew by hashlib."""
    arguments = [*place.arguments(), "--target", "delta", "--aligned", str(place.root / "other")]
    assert place.run(*arguments).code == 0
    said = json.loads((place.out / "weightguard.json").read_text())
    for side, root in (("model", place.model), ("aligned", place.root / "other")):
        assert _without_absent(said["inputs"][side]["tensors"], _tensors(root)) == {}
    assert said["inputs"]["model"]["files"] == _files(place.model)
    assert said["outputs"]["tensors"] == _tensors(place.out)
    assert said["outputs"]["files"].items() >= _files(place.out).items()


def _files(root: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.glob("*.safetensors"))}


def _tensors(root: Path) -> dict[str, str]:
    stored = {n: t for p in sorted(root.glob("*.safetensors")) for n, t in load_file(p).items()}
    return {n: hashlib.sha256(t.view(torch.uint8).numpy().tobytes()).hexdigest() for n, t in stored.items()}


def _without_absent(said: dict[str, str], counted: dict[str, str]) -> dict[str, str]:
    """Those of `said` that are not what was counted."""
    assert said
    return {name: digest for name, digest in said.items() if counted[name] != digest}
