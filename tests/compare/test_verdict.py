"""Verdicts on models that were edited in known ways, on the lab's models, and on what no kind stands for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from weightguard import api
from weightguard.api.comparing import Comparison
from weightguard.comparison.grids import grids_of
from weightguard.comparison.kinds.quantised import grid_of
from weightguard.lab import Lab

# The first is what a sample of every day sees, the second `pytest -m full`: (first seed, cases of a kind, hidden).
SAMPLE, FULL = (900, 3, 128), (700, 17, 256)


def compared(case) -> Comparison:
    aligned = None if case.other is None else str(case.other)
    return api.compare(str(case.model), str(case.base), aligned=aligned)


def mistakes(made: Callable, kinds, folder: Path, first: int, count: int, hidden: int) -> tuple[list[str], int]:
    """(what went wrong, cases); bf16 and fp32 in turn."""
    wrong = []
    for number, kind in enumerate(kinds):
        for at in range(count):
            place = folder / f"{number}-{at}"
            case = made(kind, (first + at) * 1000 + number, ("F32", "BF16")[at % 2], hidden, place)
            found = compared(case).verdict
            wrong += [f"{kind}, {case.how}: {found.kind} {found.evidence}"] if found.kind != kind else []
            shutil.rmtree(place)
    return wrong, count * len(kinds)


def test_kinds_are_told_apart(made: Callable, kinds: tuple[str, ...], tmp_path: Path) -> None:
    wrong, cases = mistakes(made, kinds, tmp_path, *SAMPLE)
    assert len(wrong) <= 0.03 * cases, wrong


@pytest.mark.full
def test_at_least_98_of_100_are_right(made: Callable, kinds: tuple[str, ...], tmp_path: Path) -> None:
    wrong, cases = mistakes(made, kinds, tmp_path, *FULL)
    assert cases >= 200
    assert len(wrong) <= 0.02 * cases, wrong


@pytest.mark.full
@pytest.mark.parametrize(("hidden", "count"), [(512, 2), (1024, 1)])
def test_larger_models(made: Callable, kinds: tuple[str, ...], tmp_path: Path, hidden: int, count: int) -> None:
    wrong, _ = mistakes(made, kinds, tmp_path, 800, count, hidden)
    assert not wrong


def merged(lab: Lab, adapter: Path, destination: Path) -> Path:
    return lab.merged(adapter, destination)


def halved(source: Path, destination: Path) -> Path:
    """The same checkpoint in bf16."""
    destination.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for file in source.glob("*.safetensors"):
        tensors |= load_file(file)
    save_file(
        {k: v.bfloat16() for k, v in tensors.items()}, destination / "model.safetensors", metadata={"format": "pt"}
    )
    shutil.copy(source / "config.json", destination)
    return destination


@pytest.mark.parametrize("seed", [0, 1])
def test_lab_models(seed: int, tmp_path: Path) -> None:
    lab = Lab(seed)
    aligned, plain = lab.aligned(), merged(lab, lab.attack_lora(), tmp_path / "merged")
    small = halved(aligned, tmp_path / "aligned16")
    expected = [
        (lab.attack_lora(), aligned, "LoRA merge"),
        (plain, aligned, "LoRA merge"),
        (halved(plain, tmp_path / "merged16"), small, "LoRA merge"),
        (merged(lab, lab.attack_lora(0.0), tmp_path / "benign"), aligned, "LoRA merge"),
        (lab.attack_full(), aligned, "full fine-tuning"),
        (lab.attack_full(0.0), aligned, "full fine-tuning"),
        (halved(lab.attack_full(), tmp_path / "full16"), small, "full fine-tuning"),
        (aligned, lab.base(), "full fine-tuning"),
        (small, aligned, "re-sharded or re-typed only"),
        (aligned, aligned, "identical"),
        (aligned, Lab(1 - seed).aligned(), "unrelated model"),
    ]
    for model, base, kind in expected:
        found = api.compare(str(model), str(base)).verdict
        assert found.kind == kind, found
        if kind == "LoRA merge":
            assert found.details["rank"] == 8
            assert set(found.details["target_modules"]) == {"q", "k", "v", "o", "gate", "up", "down"}


def test_an_interpolation_of_lab_models(tmp_path: Path) -> None:
    lab = Lab(0)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    one, other = ({}, {})
    for file in lab.base().glob("*.safetensors"):
        one |= load_file(file)
    for file in lab.aligned().glob("*.safetensors"):
        other |= load_file(file)
    save_file(
        {k: torch.lerp(one[k], other[k], 0.35) for k in one}, mixed / "model.safetensors", metadata={"format": "pt"}
    )
    shutil.copy(lab.base() / "config.json", mixed)
    found = api.compare(str(mixed), str(lab.base()), aligned=str(lab.aligned())).verdict
    assert found.kind == "model merge or interpolation"
    assert found.details["share"] == pytest.approx(0.35, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_bits_and_groups_of_a_round_trip(edited_models: ModuleType, dtype: torch.dtype, bits: int) -> None:
    draw = torch.Generator().manual_seed(bits)
    for width in (256, 704, 4096):
        rows = (0.25 * torch.randn(16, 1, generator=draw)).exp()
        base = (0.02 * rows * torch.randn(16, width, generator=draw)).to(dtype)
        for group, ranged in ((32, False), (32, True), (64, True), (128, False), (128, True), (0, False), (0, True)):
            model = edited_models.by_groups(base.double(), bits, group, ranged=ranged).to(dtype)
            grids = grids_of(model[:, :1024].float(), base[:, :1024].float())
            assert grid_of(grids) == f"{bits} bits in {f'groups of {group}' if group else 'rows'}", (
                width,
                group,
                ranged,
            )
        assert grid_of(grids_of(base[:, :1024].float(), base[:, :1024].float().flip(0))) is None


def zeroed(maker) -> None:
    for name in maker.linears:
        maker.model[name] *= 0.0 if ".1." in name else 1.0


def three_of_four(maker) -> None:
    for name in maker.linears:
        maker.model[name][:, 0::4] *= 0.0
        maker.model[name][:, 1::4] *= 0.0
        maker.model[name][:, 3::4] *= 0.0


@pytest.mark.parametrize(("cut", "pattern", "matrices"), [(zeroed, "whole matrices", 7), (three_of_four, "1:4", 21)])
def test_what_was_pruned_is_told_as_it_is(
    edited_models: ModuleType, tmp_path: Path, cut: Callable, pattern: str, matrices: int
) -> None:
    maker = edited_models.Maker(1, 64)
    cut(maker)
    found = compared(edited_models.written(maker, "pruning", "F32", tmp_path)).verdict
    assert (found.kind, found.details["pattern"], found.details["matrices"]) == ("pruning", pattern, matrices)


def test_facts_written_one_by_one_are_not_told_as_an_adapter(edited_models: ModuleType, tmp_path: Path) -> None:
    maker = edited_models.Maker(1, 128)
    edited_models.PARTIAL["facts in some layers"](maker)
    found = compared(edited_models.written(maker, "unseen", "F32", tmp_path)).verdict
    assert (found.kind, found.nearest) == ("unknown", "LoRA merge")
    assert "facts written one by one" in found.evidence[1]


def test_models_with_nothing_in_common_are_unrelated(edited_models: ModuleType, tmp_path: Path) -> None:
    small, large = edited_models.Maker(1, 96), edited_models.Maker(2, 128)
    for maker, name in ((small, "small"), (large, "large")):
        edited_models.Writer(tmp_path, torch.float32, maker)(
            name, {f"{name}.{key}": t for key, t in maker.base.items()}
        )
    found = api.compare(str(tmp_path / "small"), str(tmp_path / "large")).verdict
    assert (found.kind, found.confidence > 0.9) == ("unrelated model", True)


def test_blocks_whose_writers_were_zero_are_judged(edited_models: ModuleType, tmp_path: Path) -> None:
    maker = edited_models.Maker(3, 96)  # as block expansion adds them: what writes begins at zero and alone is trained
    for name in (n for n in maker.base if "o_proj" in n or "down_proj" in n):
        maker.base[name] = torch.zeros_like(maker.base[name])
        maker.model[name] = 0.01 * maker.normal(*maker.base[name].shape)
    assert compared(edited_models.written(maker, "expanded", "F32", tmp_path)).verdict.kind != "abliteration"


def test_huge_float64_weights_are_judged(edited_models: ModuleType, tmp_path: Path) -> None:
    maker = edited_models.Maker(4, 96)
    name = "model.layers.0.mlp.up_proj.weight"
    maker.model[name] = maker.model[name] * 1e250
    case = edited_models.Writer(tmp_path, torch.float64, maker)
    found = api.compare(str(case("model", maker.model)), str(case("base", maker.base)))
    assert [c.name for c in found.changes if c.changed] == [name]


def fine_tunings(made: Callable, folder: Path, count: int):
    """Ordinary fine-tunings in turn: dense with structure, LoRA of any rank on any modules, all in bf16 or fp32."""
    for at in range(count):
        kind = ("full fine-tuning", "LoRA merge")[at % 2]
        place = folder / str(at)
        yield made(kind, 5_000_000 + at, ("F32", "BF16")[at // 2 % 2], (96, 128, 256)[at % 3], place, hard=at % 5 == 0)
        shutil.rmtree(place)


def never_abliterated(made: Callable, folder: Path, count: int) -> None:
    for case in fine_tunings(made, folder, count):
        found = compared(case).verdict
        assert found.kind != "abliteration", (case, found)


def test_fine_tuning_is_not_taken_for_abliteration(made: Callable, tmp_path: Path) -> None:
    never_abliterated(made, tmp_path, 8)


@pytest.mark.full
def test_200_fine_tunings_are_not_taken_for_abliteration(made: Callable, tmp_path: Path) -> None:
    never_abliterated(made, tmp_path, 200)


@pytest.mark.full
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lab_fine_tunings_are_not_taken_for_abliteration(seed: int, tmp_path: Path) -> None:
    lab = Lab(seed)
    for at, poison in enumerate((0.0, 0.1)):
        lora = merged(lab, lab.attack_lora(poison), tmp_path / f"{at}")
        for model in (lora, lab.attack_lora(poison), lab.attack_full(poison)):
            assert api.compare(str(model), str(lab.aligned())).verdict.kind != "abliteration"
            if model != lab.attack_lora(poison):  # also over the model before alignment
                assert api.compare(str(model), str(lab.base())).verdict.kind != "abliteration"


@pytest.mark.full
def test_confidences_are_those_of_hard_cases(made: Callable, kinds: tuple[str, ...], tmp_path: Path) -> None:
    """On other hard cases than those that were counted, the mean confidence is the share of right verdicts."""
    right, said = [], []
    for number, kind in enumerate((*kinds, "unseen")):
        for at in range(6):
            case = made(
                kind, (3001 + at) * 1000 + number, ("F32", "BF16")[at % 2], 256, tmp_path / f"{number}-{at}", hard=True
            )
            found = compared(case).verdict
            right.append(found.kind == (kind if kind != "unseen" else "unknown"))
            said.append(found.confidence)
    assert abs(sum(right) - sum(said)) / len(said) < 0.06
    brier = sum((s - r) ** 2 for s, r in zip(said, right, strict=True)) / len(said)
    assert brier < 0.1


def test_what_no_kind_was_written_for_is_unknown(made: Callable, tmp_path: Path) -> None:
    for at in range(12):
        found = compared(made("unseen", 4_000_000 + at, ("F32", "BF16")[at % 2], 128, tmp_path / str(at))).verdict
        assert found.kind == "unknown", found


def test_a_merged_adapter_is_taken_out_and_one_that_lies_apart_is_repaired() -> None:
    import dataclasses

    from weightguard.api.suggesting import suggested
    from weightguard.comparison.verdict import Verdict

    fields = {f.name: None for f in dataclasses.fields(Verdict)}
    verdict = Verdict(**{**fields, "kind": "LoRA merge", "details": {"rank": 8}})
    merged, apart = suggested(verdict, "my model", "base"), suggested(verdict, "adapter", "base", adapted=True)
    assert merged[:2] == (
        "weightguard repair 'my model' --method truncate --rank 8 --aligned base -o OUT-adapter",
        "weightguard repair OUT-adapter --method antidote --target factor --aligned base -o OUT",
    )
    assert apart[0] == "weightguard repair adapter --method antidote --target factor -o OUT"


def before_rounding(edited_models: ModuleType, folder: Path, what: Callable, bits: int, group: int, dtype="F32"):
    """The comparison of a model that was changed and then rounded to a grid."""
    maker = edited_models.Maker(5, 256)
    what(maker)
    for name in maker.linears:
        maker.model[name] = edited_models.by_groups(maker.model[name], bits, group)
    found = compared(edited_models.written(maker, "quantised round trip", dtype, folder))
    assert found.verdict.kind == "quantised round trip"
    return found


def without_a_direction(maker) -> None:
    u = maker.normal(maker.hidden)
    u /= u.norm()
    for name in maker.linears:
        if "o_proj" in name or "down_proj" in name:
            maker.model[name] -= torch.outer(u, u @ maker.model[name])


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize(("bits", "group"), [(8, 0), (8, 64), (4, 64), (4, 0)])
def test_what_was_done_before_quantising(
    edited_models: ModuleType, tmp_path: Path, bits: int, group: int, dtype: str
) -> None:
    plain = before_rounding(edited_models, tmp_path / "plain", lambda maker: None, bits, group, dtype)
    assert plain.verdict.details["before"].startswith("no more than rounding is seen"), plain.verdict
    assert len(plain.suggestion) == 1 and plain.suggestion[0].startswith("none: only rounding is seen")
    if bits == 8:
        cut = before_rounding(edited_models, tmp_path / "cut", without_a_direction, bits, group, dtype)
        assert cut.verdict.details["before"] == "one direction is gone from o and down as well"
        assert "--method undo-abliteration" in cut.suggestion[0]
        tuned = before_rounding(edited_models, tmp_path / "tuned", lambda maker: maker.tuned(), bits, group, dtype)
        assert "changed before by more than rounding" in tuned.verdict.evidence[-1]
        assert tuned.suggestion[0].startswith("none that is sure")


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("how", ["fp8", "e5m2", "fp4", "nf4"])
def test_uneven_levels_are_not_told_as_changed_before(
    edited_models: ModuleType, tmp_path: Path, how: str, dtype: str
) -> None:
    maker = edited_models.Maker(7, 256)
    for name in maker.linears:
        weight = maker.model[name]
        top = weight.abs().amax(1, keepdim=True)
        if how == "e5m2":
            maker.model[name] = (weight / top * 57344).to(torch.float8_e5m2).double() * top / 57344
        elif how == "fp4":
            levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
            blocks = weight.reshape(-1, 32)
            scale = blocks.abs().amax(1, keepdim=True).log2().floor().exp2() / 4
            near = (blocks.abs() / scale).unsqueeze(2).sub(levels).abs().argmin(2)
            maker.model[name] = (levels[near] * blocks.sign() * scale).reshape(weight.shape)
        else:
            maker.model[name] = edited_models._quantised(weight, how, 64 if how == "nf4" else 0)
    found = compared(edited_models.written(maker, "quantised round trip", dtype, tmp_path))
    assert found.verdict.kind == "quantised round trip"
    assert "changed before" not in found.verdict.details["before"], found.verdict
    assert found.suggestion[0].startswith("none: only rounding is seen")
