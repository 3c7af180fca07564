"""Gradient reset and the comparators against naive float64 code on stock models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest

import weightguard as wg
from weightguard import bits
from weightguard.checkpoint import decoder_linears, open_checkpoint, resolve
from weightguard.errors import UsageError

Rows = Sequence[tuple[list[int], list[bool]]]


def drawn(count: int, seed: int) -> Rows:
    """Rows of 3 to 12 ids, of which a tail that is never all of them is the answer."""
    random = numpy.random.default_rng(seed)
    rows = []
    for length in random.integers(3, 13, count):
        start = int(random.integers(1, length))
        rows.append((random.integers(1, 64, length).tolist(), [at >= start for at in range(length)]))
    return rows


def write(path: Path, rows: Rows) -> str:
    from safetensors.numpy import save_file

    shape = (len(rows), max(len(ids) for ids, _ in rows))
    arrays = {"input_ids": numpy.zeros(shape, int), "attention_mask": numpy.zeros(shape, int),
              "labels": numpy.full(shape, -100)}  # fmt: skip
    for at, (ids, answer) in enumerate(rows):
        arrays["input_ids"][at, : len(ids)] = ids
        arrays["attention_mask"][at, : len(ids)] = 1
        arrays["labels"][at, : len(ids)] = numpy.where(answer, ids, -100)
    save_file(arrays, path)
    return str(path)


class Naive:
    """A stock model in float64, its linears by on-disk name, one row a pass."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.source = open_checkpoint(resolve(str(directory)))
        self.linears = decoder_linears(self.source.config, self.source.tensors)
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype="float64").eval()

    def weight(self, name: str) -> Any:
        return self.model.get_submodule(name.removesuffix(".weight")).weight

    def logical(self, name: str, tensor: Any) -> numpy.ndarray:
        found = tensor.detach().double().numpy()
        return found.T if self.linears[name].transposed else found

    def gradients(self, rows: Rows) -> list[dict[str, numpy.ndarray]]:
        """Of each row's loss, which transformers computes from labels."""
        import torch

        found = []
        for ids, answer in rows:
            self.model.zero_grad()
            labels = torch.tensor([[i if yes else -100 for i, yes in zip(ids, answer, strict=True)]])
            self.model(input_ids=torch.tensor([ids]), labels=labels).loss.backward()
            found.append({name: self.logical(name, self.weight(name).grad).copy() for name in self.linears})
        return found


def naive_masks(tuned: Path, aligned: Path, safety: Rows, benign: Rows, share: float, rounds: int):
    import torch

    model, origin = Naive(tuned), Naive(aligned)
    names = sorted(model.linears)
    rows = model.gradients(benign)
    fisher = {n: sum(g[n] ** 2 for g in rows) / len(rows) for n in names}
    mean = numpy.concatenate([f.ravel() for f in fisher.values()]).mean()
    delta = {n: model.logical(n, model.weight(n)) - origin.logical(n, origin.weight(n)) for n in names}
    masks = {n: numpy.zeros(d.shape, bool) for n, d in delta.items()}
    total = sum(d.size for d in delta.values())
    for round_ in range(1, rounds + 1):
        take = int(share * round_ / rounds * total + 0.5) - sum(int(m.sum()) for m in masks.values())
        rows = model.gradients(safety)
        g = {n: sum(row[n] for row in rows) / len(rows) for n in names}
        with numpy.errstate(invalid="ignore", divide="ignore"):
            score = {n: numpy.maximum(0, g[n] * delta[n]) / ((fisher[n] + 0.1 * mean) * delta[n] ** 2) for n in names}
        flat = numpy.concatenate([numpy.where(masks[n] | (delta[n] == 0), 0, score[n]).ravel() for n in names])
        best = [i for i in numpy.argsort(-flat, kind="stable")[:take] if flat[i] > 0]
        chosen = numpy.zeros(flat.size, bool)
        chosen[best] = True
        for name, part in zip(
            names, numpy.split(chosen, numpy.cumsum([delta[n].size for n in names])[:-1]), strict=True
        ):
            masks[name] |= part.reshape(masks[name].shape)
            values = numpy.where(
                masks[name], origin.logical(name, origin.weight(name)), model.logical(name, model.weight(name))
            )
            stored = torch.from_numpy(values.T.copy() if model.linears[name].transposed else values)
            model.weight(name).data = stored
    return masks


@pytest.mark.parametrize("family, rounds", [("llama", 1), ("llama", 3), ("gpt2", 2)])
def test_masks_are_those_of_the_formula(
    family: str, rounds: int, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    tuned, aligned = checkpoint(family), checkpoint(family, kind="aligned")
    safety, benign = drawn(6, 1), drawn(7, 2)
    files = {"safety": write(tmp_path / "h.safetensors", safety), "benign": write(tmp_path / "b.safetensors", benign)}
    plan = wg.repair(tuned, method="gradient-reset", aligned=str(aligned), **files, share="0.15", rounds=rounds,
                     dtype="float64", threads=1, dry_run=True).plan  # fmt: skip
    wanted = naive_masks(tuned, aligned, safety, benign, 0.15, rounds)
    found = {name: bits.unpacked(plan.edits[name].bits, mask.shape) if name in plan.edits else numpy.zeros(mask.shape, bool)
             for name, mask in wanted.items()}  # fmt: skip
    differing = sum(int((found[name] != mask).sum()) for name, mask in wanted.items())
    assert differing <= 2  # two scores that differ in the last bits may change places at the edge
    assert plan.selected == sum(int(mask.sum()) for mask in wanted.values())


def test_the_count_is_the_share_of_all_entries(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    files = {
        "safety": write(tmp_path / "h.safetensors", drawn(5, 1)),
        "benign": write(tmp_path / "b.safetensors", drawn(5, 2)),
    }
    how = {"method": "gradient-reset", "aligned": str(checkpoint("llama", kind="aligned")), **files, "threads": 1}
    result = wg.repair(checkpoint("llama"), **how, share="0.1", out=tmp_path / "out")
    total = sum(numpy.prod(said["shape"]) for said in result.plan.evidence.values())
    assert result.plan.selected == result.report.changes[-1].selected == int(0.1 * total + 0.5)
    assert not wg.repair(checkpoint("llama"), **how, share=0, dry_run=True).plan.edits


def test_realign_lowers_the_loss_of_the_safety_rows(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    safety = drawn(6, 1)
    data, how = write(tmp_path / "h.safetensors", safety), {"steps": 5, "learning_rate": "0.01", "threads": 1}
    result = wg.repair(checkpoint("llama"), method="realign", aligned=str(checkpoint("llama", kind="aligned")), safety=data,
                       out=tmp_path / "out", **how)  # fmt: skip
    assert loss(tmp_path / "out", safety) < loss(checkpoint("llama"), safety) - 0.1
    assert all(name in result.plan.edits for name in Naive(tmp_path / "out").linears)


def loss(directory: Path, rows: Rows) -> float:
    import torch

    model = Naive(directory).model
    total = 0.0
    with torch.no_grad():
        for ids, answer in rows:
            labels = torch.tensor([[i if yes else -100 for i, yes in zip(ids, answer, strict=True)]])
            total += float(model(input_ids=torch.tensor([ids]), labels=labels).loss)
    return total / len(rows)


def matrices(directory: Path) -> dict[str, numpy.ndarray]:
    naive = Naive(directory)
    return {name: naive.logical(name, naive.weight(name)) for name in naive.linears}


@pytest.mark.parametrize("rank", [None, 3])
def test_safety_vector_adds_what_alignment_changed(
    rank: int | None, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    sides = checkpoint("llama"), checkpoint("llama", kind="aligned"), checkpoint("llama", steps=8)
    wg.repair(sides[0], method="safety-vector", aligned=str(sides[1]), unaligned=str(sides[2]), alpha="0.75", vector_rank=rank,
              out=tmp_path / "out")  # fmt: skip
    tuned, aligned, unaligned, out = map(matrices, (*sides, tmp_path / "out"))
    for name, found in out.items():
        vector = aligned[name] - unaligned[name]
        if rank is not None:
            u, s, v = numpy.linalg.svd(vector)
            vector = u[:, :rank] @ numpy.diag(s[:rank]) @ v[:rank]
        numpy.testing.assert_allclose(found, tuned[name] + 0.75 * vector, rtol=0, atol=1e-6)


def test_truncate_keeps_the_leading_directions(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    tuned, aligned = checkpoint("gpt2"), checkpoint("gpt2", kind="aligned")
    wg.repair(tuned, method="truncate", aligned=str(aligned), strength="0.75", out=tmp_path / "out")
    before, origin, after = map(matrices, (tuned, aligned, tmp_path / "out"))
    for name, found in after.items():
        u, s, v = numpy.linalg.svd(before[name] - origin[name])
        k = len(s) - int(0.75 * len(s) + 0.5)
        numpy.testing.assert_allclose(found, origin[name] + u[:, :k] @ numpy.diag(s[:k]) @ v[:k], rtol=0, atol=1e-6)


def test_truncate_counts_the_rank_of_an_adapter(checkpoint: Callable[..., Path], adapter: Callable[..., Path]) -> None:
    lora = adapter(checkpoint("llama"), target_modules=["q_proj", "down_proj"], r=4)
    plan = wg.repair(lora, method="truncate", strength="0.5", dry_run=True).plan
    assert {(said["directions"], said["kept"]) for said in plan.evidence.values()} == {(4, 2)}


@pytest.mark.parametrize("options, said", [
    ({"method": "gradient-reset", "rounds": 0}, "--rounds 0: must be 1 to 100"),
    ({"method": "gradient-reset", "share": 2}, "--share 2: must lie between 0 and 1"),
    ({"method": "gradient-reset", "share": "0.1", "strength": "0.2"}, "--strength and --share set the same thing"),
    ({"method": "realign", "steps": -1}, "--steps -1: must be 0 to 10000"),
    ({"method": "realign", "strength": 1}, "--strength is not an option of --method realign"),
    ({"method": "safety-vector", "vector_rank": 0}, "--vector-rank 0: must be 1 or more"),
    ({"method": "safety-vector", "alpha": -1}, "--alpha -1: must be a number from 0"),
    ({"method": "truncate", "strength": 2}, "--strength 2: must lie between 0 and 1"),
])  # fmt: skip
def test_bad_options(options: dict[str, Any], said: str, checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=said):
        wg.repair(checkpoint("llama"), aligned=str(checkpoint("llama", kind="aligned")), **options, dry_run=True)
