"""Safe LoRA on adapters as peft saves them, against dense float64 matrices; the result is loaded by stock peft."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import weightguard as wg
from weightguard.errors import MismatchError, UnsupportedError, UsageError

Build = Callable[..., Path]
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "all targets, shared key heads": ("llama", "float32", {"target_modules": "all-linear"}),
    "regex targets": ("mistral", "bfloat16", {"target_modules": r".*\.layers\.[01]\.self_attn\.(q|k)_proj"}),
    "one layer": ("qwen3", "float32", {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]}),
    "patterns": ("llama", "float32", {
        "target_modules": ["q_proj", "o_proj", "down_proj"], "rank_pattern": {"o_proj": 2, r"layers\.1\..*q_proj": 6},
        "alpha_pattern": {"model.layers.0.self_attn.q_proj": 3, "down_proj": 20},
    }),
    "rslora": ("gemma", "float16", {"target_modules": "all-linear", "use_rslora": True, "lora_alpha": 4}),
    "stored in, out": ("gpt2", "float32", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "fused": ("phi3", "float32", {"target_modules": "all-linear"}),
    "fp32 over fp16": ("llama", "float16", {"target_modules": ["q_proj", "down_proj"]}),
    "another name": ("llama", "float32", {"target_modules": ["q_proj"], "name": "mine"}),
}  # fmt: skip
PROJECTORS = ("paper", "normalized", "exact")


@dataclass(frozen=True)
class Module:
    """One adapted linear as stock peft sees it; float64, logical order."""

    aligned: numpy.ndarray
    unaligned: numpy.ndarray
    a: numpy.ndarray
    b: numpy.ndarray
    scaling: float


@dataclass(frozen=True)
class Case:
    aligned: Path
    unaligned: Path
    lora: Path
    modules: Mapping[str, Module]

    def repair(self, out: Path, **options: Any) -> Any:
        references = {"aligned": str(self.aligned), "unaligned": str(self.unaligned)}
        return wg.repair(str(self.lora), method="safe-lora", out=out, offline=True, **references, **options)


CLOSE = 3e-7  # the kernel adds 64 products in float32 and those sums in float64


def factors(base: Path, lora: Path) -> dict[str, Any]:
    """Module path -> the peft layer over it, with factors as stock peft loads them."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), lora)
    return {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "lora_A") and m.lora_A}


def logical(module: Any) -> numpy.ndarray:
    weight = getattr(module, "base_layer", module).weight.detach().double().numpy()
    return weight.T if type(getattr(module, "base_layer", module)).__name__ == "Conv1D" else weight


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, checkpoint: Build, adapter: Build) -> Case:
    from transformers import AutoModelForCausalLM

    family, dtype, settings = KINDS[request.param]
    aligned, unaligned = checkpoint(family, dtype), checkpoint(family, dtype, kind="aligned")
    lora = adapter(aligned, **settings)
    other = dict(AutoModelForCausalLM.from_pretrained(unaligned, dtype=torch.float32).named_modules())
    modules = {}
    for name, layer in factors(aligned, lora).items():
        a, b = (next(iter(part.values())).weight.detach().double().numpy() for part in (layer.lora_A, layer.lora_B))
        scaling = next(iter(layer.scaling.values()))
        modules[name] = Module(logical(layer), logical(other[name]), a, b, scaling)
    return Case(aligned, unaligned, lora, modules)


def dense(module: Module, kind: str) -> numpy.ndarray:
    """C (out, out), formed."""
    v = module.aligned - module.unaligned
    if kind == "exact":
        u = numpy.linalg.svd(v)[0][:, :3]
        return u @ u.T
    return v @ v.T / (numpy.linalg.norm(v) if kind == "paper" else numpy.linalg.norm(v, 2) ** 2)


def expected(module: Module, kind: str) -> tuple[float, float, numpy.ndarray]:
    """(cosine, share kept, C·B) from whole matrices."""
    c, update = dense(module, kind), module.scaling * module.b @ module.a
    projected = c @ update
    sizes = numpy.linalg.norm(projected), numpy.linalg.norm(update)
    return float((projected * update).sum() / (sizes[0] * sizes[1])), float(sizes[0] / sizes[1]), c @ module.b


@pytest.mark.parametrize("kind", PROJECTORS)
def test_cosines_and_factors_are_those_of_dense_float64(case: Case, kind: str, tmp_path: Path) -> None:
    rank = {"projector_rank": 3} if kind == "exact" else {}
    number = (len(case.modules) + 1) // 2
    before = {p.name: p.read_bytes() for p in case.lora.iterdir()}
    result = case.repair(tmp_path / "out", projector=kind, number=number, **rank)
    want = {name: expected(module, kind) for name, module in case.modules.items()}
    said = {e["module"].removesuffix(".weight"): e for e in result.plan.evidence.values()}
    assert set(said) == set(want) or case.aligned.name.startswith("gpt2")
    paths = {name: next(s for s in said if name.endswith(s) or s.endswith(name)) for name in want}
    order = sorted(want, key=lambda name: want[name][0])
    after = factors(case.aligned, tmp_path / "out")
    for name, (cosine, kept, projected) in want.items():
        evidence = said[paths[name]]
        assert evidence["cosine"] == pytest.approx(cosine, abs=CLOSE)
        assert evidence["kept"] == pytest.approx(kept, rel=CLOSE)
        assert evidence["projected"] == (name in order[:number])
        b = next(iter(after[name].lora_B.values())).weight.detach().double().numpy()
        wanted = projected if name in order[:number] else case.modules[name].b
        numpy.testing.assert_allclose(b, wanted, rtol=0, atol=CLOSE * numpy.abs(wanted).max())
    assert {p.name: p.read_bytes() for p in case.lora.iterdir()} == before


@pytest.mark.parametrize("kind", PROJECTORS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_full_update_is_projected_too(
    family: str, kind: str, checkpoint: Build, adapter: Build, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    aligned, unaligned = checkpoint(family), checkpoint(family, kind="aligned")
    tuned = tmp_path / "tuned"
    wide = "c_fc" if family == "gpt2" else "all-linear"
    lora = adapter(aligned, target_modules=[wide] if wide == "c_fc" else wide, fan_in_fan_out=family == "gpt2")
    wg.repair(str(lora), method="scale", target="delta", strength=0.25, out=tuned, offline=True)
    result = wg.repair(
        str(tuned), method="safe-lora", aligned=str(aligned), unaligned=str(unaligned), projector=kind, threshold=1,
        out=tmp_path / "out", offline=True, **({"projector_rank": 3} if kind == "exact" else {}),
    )  # fmt: skip
    a, u, t, o = (load_file(d / "model.safetensors") for d in (aligned, unaligned, tuned, tmp_path / "out"))
    assert result.plan.edits
    for name in result.plan.edits:
        turned = (lambda x: x.double().numpy().T) if family == "gpt2" else (lambda x: x.double().numpy())
        base, before, tuned_weight, after = (turned(x[name]) for x in (a, u, t, o))
        c = dense(Module(base, before, base, base, 1.0), kind)
        numpy.testing.assert_allclose(after, base + c @ (tuned_weight - base), rtol=0, atol=2e-6)
    wg.verify(tmp_path / "out", against=str(tuned))


def test_number_takes_exactly_so_many_and_threshold_is_inclusive(
    checkpoint: Build, adapter: Build, tmp_path: Path
) -> None:
    case = llama(checkpoint, adapter)
    cosines = sorted((e["cosine"], name) for name, e in case.repair(None, number=1, dry_run=True).plan.evidence.items())
    assert set(case.repair(None, number=2, dry_run=True).plan.edits) == {name for _, name in cosines[:2]}
    assert set(case.repair(None, strength="0.5", dry_run=True).plan.edits) == {
        n for _, n in cosines[: len(cosines) // 2]
    }
    at = case.repair(None, threshold=cosines[2][0], dry_run=True)
    assert set(at.plan.edits) == {name for _, name in cosines[:3]}
    below = case.repair(None, threshold=numpy.nextafter(cosines[2][0], -1), dry_run=True)
    assert set(below.plan.edits) == {name for _, name in cosines[:2]}


def llama(checkpoint: Build, adapter: Build, **settings: Any) -> Case:
    aligned, unaligned = checkpoint("llama"), checkpoint("llama", kind="aligned")
    return Case(aligned, unaligned, adapter(aligned, **{"target_modules": "all-linear", **settings}), {})


def changed(directory: Path, target: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of an adapter or checkpoint with other tensors."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(directory, target)
    file = next(target.glob("*.safetensors"))
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return target


def test_a_zero_update_is_skipped_and_not_counted(checkpoint: Build, adapter: Build, tmp_path: Path) -> None:
    case = llama(checkpoint, adapter, target_modules=["q_proj", "v_proj"])
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    lora = changed(case.lora, tmp_path / "lora", lambda tensors: tensors[name].zero_())
    case = Case(case.aligned, case.unaligned, lora, {})
    result = case.repair(tmp_path / "out", number=3)
    assert name not in result.plan.edits
    assert result.plan.evidence[name]["skipped"] == "the update is zero"
    assert any("have no update" in note for note in result.report.notes)
    with pytest.raises(UsageError, match="--number 4: 3 modules have an update"):
        case.repair(None, number=4, dry_run=True)


def test_modules_that_alignment_did_not_change_need_a_word(checkpoint: Build, adapter: Build, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    case = llama(checkpoint, adapter, target_modules=["q_proj", "v_proj"])
    name = "model.layers.0.self_attn.q_proj.weight"
    same = load_file(case.aligned / "model.safetensors")[name]
    unaligned = changed(case.unaligned, tmp_path / "u", lambda tensors: tensors[name].copy_(same))
    case = Case(case.aligned, unaligned, case.lora, {})
    with pytest.raises(UsageError, match="is the same in the aligned and the unaligned model"):
        case.repair(tmp_path / "none", number=1)
    factor = f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight"
    before = load_file(case.lora / "adapter_model.safetensors")[factor]
    for policy, kept in (("keep", 1.0), ("drop", 0.0)):
        case.repair(tmp_path / policy, number=1, no_alignment=policy)
        after = load_file(tmp_path / policy / "adapter_model.safetensors")[factor]
        assert torch.equal(after, before * kept)


def test_an_adapter_without_any_direction_left_is_zero_not_nan(
    checkpoint: Build, adapter: Build, tmp_path: Path
) -> None:
    """B orthogonal to every row of V: C·B is zero, the cosine is 0 by definition."""
    case = llama(checkpoint, adapter, target_modules=["q_proj"])
    name = "model.layers.0.self_attn.q_proj.weight"

    def only_first_row(tensors: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import load_file

        tensors[name].copy_(load_file(case.aligned / "model.safetensors")[name])
        tensors[name][0] += 1

    unaligned = changed(case.unaligned, tmp_path / "u", only_first_row)
    factor = f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight"
    lora = changed(case.lora, tmp_path / "lora", lambda tensors: tensors[factor][0].zero_())
    result = Case(case.aligned, unaligned, lora, {}).repair(tmp_path / "out", number=2)
    assert result.plan.evidence[factor]["cosine"] == 0
    assert numpy.abs(result.plan.edits[factor].values).max() == 0


REFUSED = {
    "DoRA": ({"use_dora": True}, UnsupportedError, "use_dora is not supported"),
    "lora bias": ({"lora_bias": True}, UnsupportedError, "lora_bias is not supported"),
}


@pytest.mark.parametrize("what", ["DoRA", "lora bias"])
def test_adapters_that_are_more_than_two_factors_are_refused(
    what: str, checkpoint: Build, adapter: Build, tmp_path: Path
) -> None:
    case = llama(checkpoint, adapter)
    said, error, message = REFUSED[what]
    lora = tmp_path / "lora"
    shutil.copytree(case.lora, lora)
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps({**config, **said}))
    with pytest.raises(error, match=message):
        Case(case.aligned, case.unaligned, lora, {}).repair(tmp_path / "out")


def test_tensors_that_bypass_the_projection_are_said(checkpoint: Build, adapter: Build, tmp_path: Path) -> None:
    case = llama(checkpoint, adapter, target_modules=["q_proj"], modules_to_save=["lm_head"])
    result = case.repair(tmp_path / "out", number=1)
    assert any("no LoRA factors and stay as they are" in note and "lm_head" in note for note in result.report.notes)


def test_an_adapted_head_is_outside_every_scope_and_said(checkpoint: Build, adapter: Build, tmp_path: Path) -> None:
    case = llama(checkpoint, adapter, target_modules=["q_proj", "lm_head"])
    result = case.repair(tmp_path / "out", number=1)
    assert any("lm_head.weight) are not repaired" in note for note in result.report.notes)


def test_an_adapter_over_another_model_is_refused(checkpoint: Build, adapter: Build, tmp_path: Path) -> None:
    case = llama(checkpoint, adapter)
    swapped = Case(case.unaligned, case.aligned, case.lora, {})
    with pytest.raises(MismatchError, match=r"was trained over .*, whose tensor .* is not that of"):
        swapped.repair(tmp_path / "out", number=1)
    other = Case(checkpoint("llama", hidden_size=32), case.unaligned, case.lora, {})
    with pytest.raises(MismatchError, match="the adapter belongs to another base"):
        other.repair(tmp_path / "out", number=1)


def test_sides_of_different_dtypes_are_said(checkpoint: Build, adapter: Build, tmp_path: Path) -> None:
    case = llama(checkpoint, adapter)
    other = Case(case.aligned, checkpoint("llama", "bfloat16", kind="aligned"), case.lora, {})
    notes = other.repair(None, number=1, dry_run=True).report.notes
    assert any("stored as F32 and BF16" in note for note in notes)


def test_an_unaligned_model_of_another_width_is_named(checkpoint: Build, adapter: Build, tmp_path: Path) -> None:
    case = llama(checkpoint, adapter)
    other = Case(case.aligned, checkpoint("llama", intermediate_size=28), case.lora, {})
    with pytest.raises(MismatchError, match=r"shape \[16, 24\] in the aligned model .*, \[16, 28\] in the unaligned"):
        other.repair(tmp_path / "out", number=1)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "both limits": ({"number": 1, "threshold": 0.5}, "--threshold and --number"),
    "limit and strength": ({"threshold": 0.5, "strength": 0.5}, "--strength and --threshold"),
    "no cosine": ({"threshold": 1.5}, "a cosine lies between -1 and 1"),
    "nan": ({"threshold": "nan"}, "a cosine lies between -1 and 1"),
    "negative number": ({"number": -1}, "a count of modules"),
    "too many": ({"number": 15}, "14 modules have an update"),
    "rank without exact": ({"projector_rank": 2}, "choose directions of --projector exact"),
    "rank and energy": ({"projector": "exact", "projector_rank": 2, "energy": 0.5}, "give one of them"),
    "rank beyond": ({"projector": "exact", "projector_rank": 9, "number": 1}, r"a tensor of shape \[8, 16\] has 8"),
    "no energy": ({"projector": "exact", "energy": 0}, "would keep no direction"),
    "nothing below": ({"threshold": -1}, "every cosine is above it, the lowest is"),
}


@pytest.mark.parametrize("what", WRONG)
def test_options_that_make_no_sense(what: str, checkpoint: Build, adapter: Build, tmp_path: Path) -> None:
    options, message = WRONG[what]
    with pytest.raises(UsageError, match=message):
        llama(checkpoint, adapter).repair(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_energy_and_floor_choose_directions(checkpoint: Build, adapter: Build, tmp_path: Path) -> None:
    """A rank-2 V over bf16 weights has two directions above the rounding floor, though its numerical rank is full."""
    from safetensors.torch import load_file

    generator = torch.Generator().manual_seed(0)
    case = llama(checkpoint, adapter, target_modules=["q_proj"])

    def low_rank(tensors: dict[str, torch.Tensor]) -> None:
        aligned = load_file(case.aligned / "model.safetensors")
        for name, tensor in tensors.items():
            if name.endswith("q_proj.weight"):
                left, right = torch.randn(16, 2, generator=generator), torch.randn(2, 16, generator=generator)
                tensor.copy_(aligned[name].bfloat16().float() + left @ right)
        tensors |= {n: t.bfloat16() for n, t in tensors.items()}

    unaligned = changed(case.unaligned, tmp_path / "u", low_rank)
    aligned = changed(case.aligned, tmp_path / "a", lambda t: t.update({n: x.bfloat16() for n, x in t.items()}))
    lora = tmp_path / "lora"
    shutil.copytree(case.lora, lora)
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(aligned)}))
    rounded = Case(aligned, unaligned, lora, {})
    ranks = {e["rank"] for e in rounded.repair(None, projector="exact", number=1, dry_run=True).plan.evidence.values()}
    assert ranks == {2}
    half = rounded.repair(None, projector="exact", energy=0.01, number=1, dry_run=True).plan.evidence.values()
    assert {e["rank"] for e in half} == {1}
