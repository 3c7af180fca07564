"""Tensors are edited block by block where they can be: output, digests and measured change are those of the whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from weightguard import bits, weights
from weightguard.plan import Edit, LowRank, Mask, Replace, Scale, Select
from weightguard.rewrite.apply import Cut, Measured, apply, by_rows

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


def in_pieces(place: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Iterator[Any]:
    """The same repair, with tensors in pieces of every size; on one thread, for a fork has no other."""
    for size, whole in zip(SIZES, WHOLE, strict=True):
        monkeypatch.setattr(weights, "BLOCK", size)
        monkeypatch.setattr(weights, "WHOLE", whole)
        yield place.run("repair", str(place.model), *arguments, "--force", "--threads", "1", "-o", str(place.out))


@pytest.mark.parametrize("target", ["weight", "delta"])
@pytest.mark.parametrize("edit", EDITS)
def test_the_size_of_a_block_does_not_show(edit: str, target: str, place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    aligned = ["--aligned", str(place.root / "other")] if target == "delta" else []
    held = []
    for ended in in_pieces(place, monkeypatch, *EDITS[edit], "--target", target, *aligned):
        if edit == "scale" and target == "weight":
            assert ended.code == 2  # there is an update to scale, or nothing
            return
        assert ended.code == 0, ended.said
        held.append(place.held())
    assert held[0] == held[1] == held[2]


@pytest.mark.parametrize("ratio", ["0.3", "0.6", "1"])
def test_ties_go_on_from_block_to_block(ratio: str, place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of entries that score the same, those of the first rows are taken, in whatever pieces the tensor comes."""
    for file in sorted(place.model.glob("*.safetensors")):
        rounded = {name: tensor.round() for name, tensor in load_file(file).items()}
        save_file(rounded, file, {"format": "pt"})
    held = []
    for ended in in_pieces(place, monkeypatch, "--method", "magnitude", "--group", "matrix", "--ratio", ratio):
        assert ended.code == 0, ended.said
        held.append(place.held())
    assert held[0] == held[1] == held[2]


def _edits() -> dict[str, Edit]:
    draw = numpy.random.default_rng(0)
    marked, norms = draw.random((7, 5)) < 0.4, draw.random(5).astype("f4")
    left, right = draw.random((7, 2)).astype("f4"), draw.random((2, 5)).astype("f4")
    return {
        "mask": Mask("t", "delta", bits.packed(marked)),
        "low rank": LowRank("t", left, right),
        "replace": Replace("t", draw.random((7, 5)).astype("f4")),
        "scale": Scale("t", "delta", 0.25),
        "random of the matrix": Select("t", "delta", 11, "matrix", "random", seed=3),
        "wanda of the matrix": Select("t", "delta", 11, "matrix", "wanda", norms),
        "all but the spared": Select("t", "delta", 20, "matrix", "wanda", norms, None, 9, norms[::-1].copy()),
    }


@pytest.mark.parametrize("name", _edits())
@pytest.mark.parametrize("merged", [False, True])
def test_an_edit_of_blocks_is_that_of_the_whole(name: str, merged: bool) -> None:
    """Blocks of two rows; merged: the tuned weights are a base with a low-rank update over it."""
    edit, draw = _edits()[name], torch.Generator().manual_seed(1)
    tuned, aligned = torch.randn(2, 7, 5, generator=draw).bfloat16()
    update = weights.LowRank(
        torch.randn(7, 2, generator=draw).double(), torch.randn(2, 5, generator=draw).double(), 0.5
    )

    def opened(step: int, tensor: torch.Tensor) -> Iterator[weights.Weights]:
        for start in range(0, 7, step):
            block, beside = tensor[start : start + step], aligned[start : start + step]
            if merged:
                yield weights._over_base(block, block, update, start)
            else:
                yield replace(weights._compared(block, beside, transposed=False), first=start)

    found = []
    for step in (7, 2):
        edited, measured = tuned.clone(), Measured()
        how = Cut(edit, lambda s=step: opened(s, tuned)) if step == 2 and not by_rows(edit) else edit
        for block in opened(step, edited):
            apply(how, block, measured)
        found.append((edited.tolist(), measured.change()))
    assert found[0] == found[1] and found[0][0] != tuned.tolist()


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
