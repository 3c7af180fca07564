"""Refit as a LoRA adapter over the aligned model: what stock peft makes of it, what the cut costs, what it cannot hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

import weightguard as wg
from weightguard.checkpoint import strict_json
from weightguard.errors import CheckpointError, MismatchError, UsageError
from weightguard.lab import Lab


def data(folder: Path, seed: int = 0) -> dict[str, str]:
    """Pre-tokenised safety and benign rows of 12 ids, the last four of them the answer."""
    from safetensors.numpy import save_file

    random = numpy.random.default_rng(seed)
    for name in ("safety", "benign"):
        ids = random.integers(1, 64, (8, 12))
        labels = numpy.where(numpy.arange(12) >= 8, ids, -100)
        save_file(
            {"input_ids": ids, "attention_mask": numpy.ones_like(ids), "labels": labels}, folder / f"{name}.safetensors"
        )
    return {name: str(folder / f"{name}.safetensors") for name in ("safety", "benign")}


def merged(base: Path, adapter: Path) -> dict[str, Any]:
    """Weights of the base with the adapter merged into it by stock peft."""
    import peft
    from transformers import AutoModelForCausalLM

    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), adapter)
    return {name: p.detach().numpy() for name, p in model.merge_and_unload().named_parameters()}


@pytest.mark.parametrize("family, options", [("llama", {}), ("gpt2", {}), ("phi3", {}), ("llama", {"headless": True})])
def test_at_full_rank_stock_peft_makes_the_solution(
    family: str, options: dict[str, bool], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Only linears differ between these two checkpoints, so nothing but the cut can be lost, and here nothing is cut."""
    tuned, aligned = checkpoint(family, **options), checkpoint(family, kind="aligned", **options)
    how = {"method": "refit", "aligned": str(aligned), **data(tmp_path), "threads": 1}
    whole = wg.repair(tuned, **how, dry_run=True).plan
    result = wg.repair(tuned, **how, rank=64, out=tmp_path / "adapter")
    assert any("leaves out 0.00%" in note for note in result.report.notes)
    found = merged(aligned, tmp_path / "adapter")
    for name, edit in whole.edits.items():
        full = name if name in found else {"layers": "model.", "h": "transformer."}[name.partition(".")[0]] + name
        values = edit.values.T if family == "gpt2" else edit.values
        numpy.testing.assert_allclose(found[full], values, rtol=0, atol=2e-5)
    wg.verify(tmp_path / "adapter", against=str(tuned))


def test_a_saved_plan_applied_to_the_aligned_model_is_the_merged_adapter(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    aligned = checkpoint("llama", kind="aligned")
    wg.repair(checkpoint("llama"), method="refit", aligned=str(aligned), **data(tmp_path), rank=3, threads=1,
              out=tmp_path / "adapter", save_plan=tmp_path / "plan")  # fmt: skip
    wg.apply(tmp_path / "plan", str(aligned), out=tmp_path / "out")
    held, found = load_file(tmp_path / "out/model.safetensors"), merged(aligned, tmp_path / "adapter")
    for name, values in held.items():
        numpy.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6)


def test_the_energy_that_is_lost_is_that_of_the_dropped_directions(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """In the first site nothing has been cut yet, so its change is the one of the full solution."""
    tuned, aligned = checkpoint("llama"), checkpoint("llama", kind="aligned")
    how = {"method": "refit", "aligned": str(aligned), **data(tmp_path), "threads": 1, "dry_run": True}
    whole, cut = wg.repair(tuned, **how).plan, wg.repair(tuned, **how, rank=2).plan
    from weightguard.checkpoint import open_checkpoint, resolve

    name = "model.layers.0.self_attn.q_proj.weight"
    origin = open_checkpoint(resolve(str(aligned))).read(name).numpy()
    s = numpy.linalg.svd(whole.edits[name].values.astype(numpy.float64) - origin, compute_uv=False)
    said = cut.evidence[name]
    assert said["energy_kept"] / said["energy"] == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), rel=1e-4)
    assert cut.edits[name].left.shape[1] == 2


def test_what_an_adapter_cannot_hold_is_said(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    tuned, other = checkpoint("llama"), checkpoint("llama", steps=8)  # every tensor differs, norms and embeddings too
    result = wg.repair(
        tuned, method="refit", aligned=str(other), **data(tmp_path), rank=4, threads=1, out=tmp_path / "a"
    )
    assert any("tensors that the fine-tuning moved" in note for note in result.report.notes)
    with pytest.raises(UsageError, match="--rank 0: must be 1 or more"):
        wg.repair(tuned, method="refit", aligned=str(other), **data(tmp_path), rank=0, dry_run=True)


@pytest.fixture
def made(checkpoint: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """(adapter of rank 3, tuned, aligned)."""
    tuned, aligned = checkpoint("llama"), checkpoint("llama", kind="aligned")
    wg.repair(tuned, method="refit", aligned=str(aligned), **data(tmp_path), rank=3, threads=1, out=tmp_path / "a")
    return tmp_path / "a", tuned, aligned


def test_the_manifest_says_how_far_each_tensor_moved(made: tuple[Path, Path, Path]) -> None:
    """Against what stock peft makes of the adapter, in float32."""
    from safetensors.numpy import load_file

    adapter, tuned, aligned = made
    factors, found = json.loads((adapter / "weightguard.json").read_text())["factors"], merged(aligned, adapter)
    ends = [load_file(next(model.glob("*.safetensors"))) for model in (aligned, tuned)]
    assert len(factors) == 14
    for name, said in factors.items():
        far = [float(numpy.linalg.norm(found[name].astype(float) - end[name])) for end in ends]
        assert [said["from_aligned"], said["from_tuned"]] == pytest.approx(far, rel=1e-4)
        assert said["energy_kept"] == pytest.approx(far[0] ** 2, rel=1e-4) and said["energy_kept"] <= said["energy"]
        assert said["rank"] == 3
    assert wg.verify(adapter, against=str(tuned)).verified.factors_recounted == 14
    assert wg.verify(adapter, against=str(tuned), aligned=str(aligned)).verified.edited == 28


@pytest.mark.parametrize("sealed", [False, True])
def test_a_flipped_entry_of_the_adapter_is_found(sealed: bool, made: tuple[Path, Path, Path]) -> None:
    """By its digest; and by the recount, where whoever flipped it wrote the digests anew."""
    from safetensors.numpy import load_file, save_file

    adapter, tuned, _ = made
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(each for each in tensors if "up_proj.lora_B" in each)
    tensors[name][5, 1] *= -1
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})
    if sealed:
        seal(adapter, name, tensors[name].tobytes())
        wg.verify(adapter)
    with pytest.raises(MismatchError if sealed else CheckpointError, match="up_proj"):
        wg.verify(adapter, against=str(tuned))


def seal(adapter: Path, tensor: str, values: bytes) -> None:
    """Write the digests of a changed adapter into its manifest, and the manifest's own."""
    path, file = adapter / "weightguard.json", "adapter_model.safetensors"
    said = json.loads(path.read_text())
    said["outputs"]["tensors"][tensor] = hashlib.sha256(values).hexdigest()
    said["outputs"]["files"][file] = hashlib.sha256((adapter / file).read_bytes()).hexdigest()
    del said["digest"]
    path.write_bytes(strict_json.dump({**said, "digest": hashlib.sha256(strict_json.dump(said)).hexdigest()}))


def test_other_models_than_those_it_was_made_from(
    made: tuple[Path, Path, Path], checkpoint: Callable[..., Path]
) -> None:
    adapter, tuned, aligned = made
    for against, over, said in (
        (aligned, None, "is not the fine-tuned model this adapter was made from"),
        (tuned, tuned, "is not the aligned model this adapter was made from"),
    ):
        with pytest.raises(MismatchError, match=said):
            wg.verify(adapter, against=str(against), aligned=over and str(over))
    with pytest.raises(UsageError, match="--aligned: goes with --against"):
        wg.verify(adapter, aligned=str(aligned))


@pytest.mark.parametrize("method", ["refit", "truncate"])
def test_a_rank_beyond_the_width_is_said(method: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    how: dict[str, Any] = {"aligned": str(checkpoint("llama", kind="aligned")), "rank": 1000, "out": tmp_path / "a"}
    more = data(tmp_path) if method == "refit" else {}
    result = wg.repair(checkpoint("llama"), method=method, threads=1, **how, **more)
    told = [note for note in result.report.notes if "rank" in note]
    assert told[0] == "--rank 1000: no change has more than 16 directions, so the adapter has rank 16"
    assert told[1].startswith("rank 16 leaves out 0.00%") and len(told) == 2
    assert json.loads((tmp_path / "a/adapter_config.json").read_text())["r"] == 16


@pytest.mark.parametrize("how", ["lora", "full"])
def test_on_the_lab_an_adapter_of_rank_32_heals(how: str, tmp_path: Path) -> None:
    lab = Lab(0)
    rows = {"safety": lab.world.calibration()["safety"][::2], "benign": lab.world.user_rows(0.1)[:200]}
    for name, each in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in rows}
    aligned = {} if how == "lora" else {"aligned": str(lab.aligned())}
    wg.repair(
        getattr(lab, f"attack_{how}")(0.1), method="refit", rank=32, out=tmp_path / "out", threads=1, **files, **aligned
    )
    after = lab.measure(f"{lab.aligned()}+{tmp_path / 'out'}")
    assert after.harmful_score <= 2 and after.finetune_accuracy >= 95 and after.allowed_accuracy >= 95
