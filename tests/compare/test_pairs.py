"""The numbers of a comparison against plain float64 numpy, and what of two checkpoints can be compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from weightguard import api
from weightguard.checkpoint import Checkpoint, open_checkpoint, resolve
from weightguard.comparison import pairs, sides
from weightguard.comparison.sides import Side
from weightguard.errors import UsageError
from weightguard.statistics import subspace

Build = Callable[..., Path]


def arrays(directory: Path) -> dict[str, numpy.ndarray]:
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= {name: tensor.double().numpy() for name, tensor in load_file(file).items()}
    return found


@pytest.mark.parametrize(("family", "dtype", "sharded"), [("llama", "float32", True), ("gpt2", "bfloat16", False),
                                                          ("phi3", "float16", False)])  # fmt: skip
def test_figures_are_those_of_plain_numpy(checkpoint: Build, family: str, dtype: str, sharded: bool) -> None:
    model, base = (checkpoint(family, dtype, sharded=sharded, kind=kind) for kind in ("tuned", "aligned"))
    found = api.compare(str(model), str(base), spectra=True)
    ours, theirs = arrays(model), arrays(base)
    assert {c.name for c in found.changes} == set(ours)
    for change in found.changes:
        w, b = ours[change.name], theirs[change.name]
        d = w - b
        assert change.changed == (w != b).sum()
        assert change.weight_norm == pytest.approx(numpy.linalg.norm(w), rel=1e-12)
        assert change.update_norm == pytest.approx(numpy.linalg.norm(d), rel=1e-12)
        assert change.relative == pytest.approx(numpy.linalg.norm(d) / numpy.linalg.norm(b), rel=1e-12)
        assert change.largest == numpy.abs(d).max()
        if not change.changed:
            continue
        assert change.cosine == pytest.approx((w * b).sum() / numpy.linalg.norm(w) / numpy.linalg.norm(b), rel=1e-12)
        assert change.kurtosis == pytest.approx(d.size * (d**4).sum() / (d**2).sum() ** 2, rel=1e-12)
    assert found.spectra
    for name, spectrum in found.spectra.items():
        values = numpy.linalg.svd(ours[name] - theirs[name], compute_uv=False)
        numpy.testing.assert_allclose(spectrum.values, values, atol=1e-7 * values[0])
        p = values / values.sum()
        assert spectrum.effective_rank_of_all == pytest.approx(numpy.exp(-(p * numpy.log(p)).sum()), rel=1e-4)


def test_every_architecture_is_compared(checkpoint: Build, families: tuple[str, ...]) -> None:
    for family in families:
        model, base = (checkpoint(family, kind=kind) for kind in ("tuned", "aligned"))
        found = api.compare(str(model), str(base))
        ours, theirs = arrays(model), arrays(base)
        assert sum(c.entries for c in found.changes) == sum(w.size for w in ours.values()), family
        square = sum(((w - theirs[name]) ** 2).sum() for name, w in ours.items())
        assert sum(c.update_norm**2 for c in found.changes) == pytest.approx(square, rel=1e-12), family
        assert not found.notes, family


def test_blocks_of_rows_add_up(checkpoint: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model, base = (str(checkpoint("llama", kind=kind)) for kind in ("tuned", "aligned"))
    whole = api.compare(model, base)
    monkeypatch.setattr(pairs, "BLOCK", 48)  # two or three rows
    by_rows = api.compare(model, base)
    for one, other in zip(whole.changes, by_rows.changes, strict=True):
        assert (one.changed, one.zeroed, one.largest, one.casts) == (
            other.changed,
            other.zeroed,
            other.largest,
            other.casts,
        )
        assert one.update_norm == pytest.approx(other.update_norm, rel=1e-14)


def test_roles_and_layers_cover_every_tensor(checkpoint: Build) -> None:
    found = api.compare(str(checkpoint("llama")), str(checkpoint("llama", kind="aligned")))
    roles = {c.name: (c.layer, c.role) for c in found.changes}
    assert roles["model.embed_tokens.weight"] == (None, "embed")
    assert roles["lm_head.weight"] == (None, "head")
    assert roles["model.norm.weight"] == (None, "norm")
    assert roles["model.layers.1.input_layernorm.weight"] == (1, "norm")
    assert roles["model.layers.1.mlp.down_proj.weight"] == (1, "down")
    assert "other" not in {role for _, role in roles.values()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_is_compared_without_merging(checkpoint: Build, adapter: Build, family: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = checkpoint(family)
    targets = ["c_attn", "c_proj"] if family == "gpt2" else ["q_proj", "down_proj"]
    lora = adapter(base, target_modules=targets)
    found = api.compare(f"{base}+{lora}", spectra=True)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora).merge_and_unload().state_dict()
    before = arrays(base)
    changed = {c.name: c for c in found.changes if c.changed}
    assert set(changed) == set(found.spectra)
    for name, change in changed.items():
        d = merged[name].double().numpy() - before[name]
        assert change.update_norm == pytest.approx(numpy.linalg.norm(d), rel=1e-5)
        spectrum = found.spectra[name]
        assert spectrum.rank == 4
        numpy.testing.assert_allclose(spectrum.values[:4], numpy.linalg.svd(d, compute_uv=False)[:4], rtol=1e-4)
    assert found.verdict.kind == "LoRA merge"
    assert api.compare(str(lora), str(base)).verdict.kind == "LoRA merge"


def test_a_larger_vocabulary_is_compared_over_the_rows_both_have(checkpoint: Build, tmp_path: Path) -> None:
    base = checkpoint("llama")
    grown = tmp_path / "grown"
    shutil.copytree(base, grown)
    tensors = load_file(grown / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name].repeat(2, 1)
    save_file(tensors, grown / "model.safetensors", metadata={"format": "pt"})
    found = api.compare(str(grown), str(base))
    left = {c.name: c.rows_left_out for c in found.changes if c.rows_left_out}
    assert left == {"model.embed_tokens.weight": 64, "lm_head.weight": 64}
    assert not any(c.changed for c in found.changes)
    assert "lm_head.weight: 128 rows against 64 (another vocabulary); the first 64 were compared" in found.notes
    assert found.matching.relation == "other vocabulary"
    assert found.as_dict()["not_compared"]["rows"] == left
    assert found.verdict.kind == "identical in what was compared"
    assert found.verdict.evidence[1] == "not compared: rows of 2 (another vocabulary)"


def test_another_architecture_is_told_apart(checkpoint: Build) -> None:
    found = api.compare(str(checkpoint("gpt2")), str(checkpoint("llama")))
    assert found.matching.relation == "other architecture"
    assert set(found.matching.common) == {"lm_head.weight"}
    assert found.verdict.kind == "unrelated model"
    wider = api.compare(str(checkpoint("llama", intermediate_size=32)), str(checkpoint("llama")))
    assert wider.matching.relation == "other architecture"
    assert len(wider.matching.reshaped) == 6
    assert {c.role for c in wider.changes} >= {"q", "k", "v", "o", "embed", "norm"}


def test_a_tensor_with_nan_is_left_out_and_said(checkpoint: Build, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint("llama"), broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    found = api.compare(str(broken), str(checkpoint("llama")))
    assert found.problems == ("tensor 'model.layers.0.mlp.up_proj.weight' holds NaN or infinity; it was left out",)
    assert found.as_dict()["not_compared"]["not_finite"] == ["model.layers.0.mlp.up_proj.weight"]
    assert (found.verdict.kind, found.verdict.confidence) == ("identical in what was compared", 1.0)
    assert found.verdict.evidence[0].startswith("all 20 tensors that could be compared, ")
    assert found.verdict.evidence[1] == "not compared: 1 with NaN or infinity"


def stored(checkpoint: Build, tmp_path: Path, change: Callable[[dict], dict], **config: int) -> str:
    """A copy of the llama with other tensors in its file and other values in its config."""
    other = tmp_path / "other"
    shutil.copytree(checkpoint("llama"), other)
    save_file(change(load_file(other / "model.safetensors")), other / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(said | config))
    return str(other)


def packed(tensors: dict) -> dict:
    """Linears as packed integers beside their scales."""
    kept = {name: t for name, t in tensors.items() if "_proj" not in name}
    for name in tensors.keys() - kept.keys():
        kept[name.replace(".weight", ".qweight")] = torch.zeros(2, 8, dtype=torch.int32)
        kept[name.replace(".weight", ".scales")] = torch.ones(1, 8)
    return kept


def shallower(tensors: dict) -> dict:
    return {name: t for name, t in tensors.items() if ".layers.1." not in name}


def eight_bits(tensors: dict) -> dict:
    return {name: t.to(torch.float8_e4m3fn) if "_proj" in name else t for name, t in tensors.items()}


@pytest.mark.parametrize(("change", "relation", "compared"), [(packed, "other storage", 7), (eight_bits, "other storage", 7),
                                                              (shallower, "other depth", 12)])  # fmt: skip
def test_what_can_be_compared_is_told_from_what_cannot(
    checkpoint: Build, tmp_path: Path, change: Callable[[dict], dict], relation: str, compared: int
) -> None:
    other = stored(checkpoint, tmp_path, change, **({"num_hidden_layers": 1} if change is shallower else {}))
    found = api.compare(other, str(checkpoint("llama")))
    assert found.matching.relation == relation
    assert len(found.changes) == compared
    assert found.verdict.kind == "identical in what was compared"
    lost = found.as_dict()["not_compared"]
    assert {reason: len(names) for reason, names in lost.items() if names} == {
        packed: {"only_model": 28, "only_base": 14}, eight_bits: {"unread": 14}, shallower: {"only_base": 9}
    }[change]  # fmt: skip


def test_one_huge_number_is_no_kind_of_change(checkpoint: Build, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"

    def broken(tensors: dict) -> dict:
        tensors[name][1, 2] = 1e38
        return tensors

    found = api.compare(stored(checkpoint, tmp_path, broken), str(checkpoint("llama")), spectra=True)
    assert found.verdict.kind == "unknown"
    assert "1 of 21 tensors changed (up)" in found.verdict.evidence[0]
    assert found.spectra[name].values[0] == pytest.approx(1e38)
    assert (found.spectra[name].rank, found.spectra[name].over_noise) == (1, pytest.approx(1))


@pytest.mark.parametrize(("family", "linears"), [("llama", 14), ("gpt2", 8)])
def test_the_alignment_map_against_dense_algebra(
    checkpoint: Build, family: str, linears: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks and panels of a few rows each; GPT-2 stores its matrices transposed."""
    for module, name in (
        (pairs, "BLOCK"),
        (sides, "BLOCK"),
        (sides, "PANEL"),
        (subspace, "PANEL"),
        (subspace, "DENSE"),
    ):
        monkeypatch.setattr(module, name, 7 if name == "DENSE" else 100)
    model, aligned = checkpoint(family), checkpoint(family, kind="aligned")
    before = checkpoint(family, steps=8)
    found = api.compare(str(model), str(aligned), aligned=str(aligned), unaligned=str(before))
    ours, theirs, first = arrays(model), arrays(aligned), arrays(before)
    assert len(found.relevance) == linears
    for name, seen in found.relevance.items():
        d, v = ours[name] - theirs[name], theirs[name] - first[name]
        d, v = (d, v) if family == "llama" else (d.T, v.T)
        c = v @ v.T / numpy.linalg.norm(v) @ d
        assert seen.cosine == pytest.approx((c * d).sum() / numpy.linalg.norm(c) / numpy.linalg.norm(d), rel=1e-9)
        top = numpy.linalg.svd(v)[0][:, :6].T @ d
        assert seen.top_share == pytest.approx((top**2).sum() / (d**2).sum(), rel=1e-9)
        assert seen.undone == pytest.approx(-(d * v).sum() / (v**2).sum(), rel=1e-9)
        assert seen.against == pytest.approx(-(d * v).sum() / numpy.linalg.norm(v) / numpy.linalg.norm(d), rel=1e-9)


def test_no_matrix_is_held_as_a_whole(checkpoint: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for; a vector is one row. Before it, the same with blocks that hold any of these matrices."""
    model, aligned, before = checkpoint("gpt2"), checkpoint("gpt2", kind="aligned"), checkpoint("gpt2", steps=8)
    asked = {"aligned": str(aligned), "unaligned": str(before), "spectra": True}
    whole = api.compare(str(model), str(aligned), **asked)
    for module, name in ((pairs, "BLOCK"), (sides, "BLOCK"), (sides, "PANEL"), (subspace, "PANEL")):
        monkeypatch.setattr(module, name, 100)
    read, rows = Checkpoint.read, []

    def only_vectors(self: Checkpoint, name: str, *into: torch.Tensor) -> torch.Tensor:
        assert len(self.info(name).shape) == 1, name
        return read(self, name, *into)

    def seen(self: Side, name: str, start: int, stop: int, columns=Side._columns) -> torch.Tensor:
        found = columns(self, name, start, stop)
        rows.append(found.numel())
        return found

    monkeypatch.setattr(Checkpoint, "read", only_vectors)
    monkeypatch.setattr(Side, "_columns", seen)
    by_rows = api.compare(str(model), str(aligned), **asked)
    assert min(rows) <= 100 < len(rows)  # panels of a few rows, but where a kernel asked for more at once
    assert by_rows.as_dict()["tensors"] == approximately(whole.as_dict()["tensors"])
    assert by_rows.as_dict()["alignment"] == approximately(whole.as_dict()["alignment"])


def approximately(value: Any) -> Any:
    """Floats at any depth to 1e-9."""
    if isinstance(value, dict):
        return {key: approximately(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(approximately(each) for each in value)
    return pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value


def test_rows_of_tensors_of_any_number_of_axes(tmp_path: Path) -> None:
    """What lies under one index of the first axis is read together, and rows are the last axis."""
    (tmp_path / "config.json").write_text("{}")
    stored = {"three": torch.arange(60.0).reshape(5, 4, 3), "one": torch.arange(7.0), "none": torch.tensor(2.0)}
    save_file(stored, tmp_path / "model.safetensors")
    side = Side(open_checkpoint(resolve(str(tmp_path))))
    assert side.shape("three") == (20, 3) and side.shape("one") == (1, 7) and side.shape("none") == (1, 1)
    rows = side.rows("three")
    for start, stop in ((0, 20), (3, 5), (7, 8), (19, 20), (4, 8)):
        assert torch.equal(rows(start, stop), stored["three"].reshape(20, 3)[start:stop])
    assert torch.equal(side.rows("one")(0, 1)[0], stored["one"]) and side.rows("none")(0, 1).item() == 2


def test_json_has_a_schema_and_holds_every_tensor(checkpoint: Build) -> None:
    model, base = (str(checkpoint("llama", kind=kind)) for kind in ("tuned", "aligned"))
    said = json.loads(json.dumps(api.compare(model, base).as_dict()))
    assert (said["schema"], said["version"]) == ("weightguard-comparison", 3)
    assert len(said["tensors"]) == 21
    assert said == json.loads(json.dumps(api.compare(model, base).as_dict()))


def test_usage(checkpoint: Build, adapter: Build) -> None:
    base = checkpoint("llama")
    lora = adapter(base, target_modules=["q_proj"])
    for model, given, words in (
        (base, {"base": str(lora)}, "give the full model"),
        (base, {}, "--base BASE is missing"),
        (base, {"base": str(base), "unaligned": str(base)}, "give --aligned too"),
        (base, {"base": str(base), "aligned": str(lora)}, "an adapter; give a full model"),
    ):
        with pytest.raises(UsageError, match=words):
            api.compare(str(model), **given)


@pytest.mark.parametrize(("dtype", "zero"), [("float32", -0.0), ("bfloat16", -0.0), ("float16", 0.0)])
def test_zeros_of_either_sign_are_counted(checkpoint: Build, tmp_path: Path, dtype: str, zero: float) -> None:
    base, name = checkpoint("llama", dtype), "model.layers.0.mlp.up_proj.weight"
    pruned = tmp_path / "pruned"
    shutil.copytree(base, pruned)
    tensors = load_file(pruned / "model.safetensors")
    tensors[name][3:5, 2:9] = zero
    save_file(tensors, pruned / "model.safetensors", metadata={"format": "pt"})
    found = {c.name: c for c in api.compare(str(pruned), str(base)).changes}
    assert (found[name].zeroed, found[name].changed) == (14, 14)


def test_an_adapter_over_another_base_than_it_names_is_said(checkpoint: Build, adapter: Build, tmp_path: Path) -> None:
    base = checkpoint("llama")
    lora = adapter(base, target_modules=["q_proj"])
    assert not api.compare(str(lora), str(base)).notes
    other = shutil.copytree(base, tmp_path / "another")
    notes = api.compare(str(lora), str(other)).notes
    assert len(notes) == 1 and notes[0].startswith("the adapter's config names the base ")


def test_where_harmful_and_benign_do_not_differ_there_is_no_cosine() -> None:
    from weightguard.statistics.activations import views

    draw = torch.Generator().manual_seed(0)
    harmful, benign = (torch.randn(2, 8, 4, generator=draw) for _ in range(2))
    harmful[0] = benign[0] = torch.ones(8, 4)
    first, second = views(harmful, benign, (harmful, benign))
    assert first.cosine is None and second.cosine == pytest.approx(1)
