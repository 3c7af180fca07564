"""`truncate --rank`: a merged LoRA is taken out again as an adapter that stock peft loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import weightguard as wg
from weightguard.errors import MismatchError, UsageError

Build = Callable[..., Path]


def merged(base: Path, adapter: Path, out: Path) -> dict[str, torch.Tensor]:
    """The stock merge, saved as stock transformers does."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((base / name).read_bytes())
    return dict(model.named_parameters())


@pytest.mark.parametrize(
    ("family", "options"),
    [("llama", {"target_modules": ["q_proj", "down_proj"], "r": 3}), ("phi3", {"target_modules": "all-linear", "r": 2}),
     ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "r": 4}),
     ("llama", {"target_modules": ["k_proj", "up_proj"], "r": 2, "rank_pattern": {"up_proj": 5}})],
)  # fmt: skip
def test_the_adapter_makes_the_merged_model_again(
    family: str, options: dict[str, Any], checkpoint: Build, adapter: Build, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = checkpoint(family)
    want = merged(base, adapter(base, **options), tmp_path / "merged")
    result = wg.repair(
        str(tmp_path / "merged"), method="truncate", rank=5, aligned=str(base), out=tmp_path / "out", threads=1
    )
    origin = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters())
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out").merge_and_unload()
    for name, values in model.named_parameters():
        assert torch.allclose(values, want[name], atol=1e-5), name
    moved = {name for name, values in want.items() if not torch.equal(values, origin[name])}
    assert len(result.plan.edits) == len(moved)
    ranks = {edit.left.shape[1] for edit in result.plan.edits.values()}
    assert ranks == {options["r"], *options.get("rank_pattern", {}).values()}
    assert any("leaves out 0.00%" in note for note in result.report.notes)
    assert wg.verify(tmp_path / "out") and json.loads((tmp_path / "out" / "adapter_config.json").read_text())[
        "r"
    ] == max(ranks)


def test_less_than_the_rank_says_what_is_lost(checkpoint: Build, adapter: Build, tmp_path: Path) -> None:
    base = checkpoint("llama")
    merged(base, adapter(base, target_modules=["q_proj"], r=4), tmp_path / "merged")
    plan = wg.repair(
        str(tmp_path / "merged"), method="truncate", rank=1, aligned=str(base), dry_run=True, threads=1
    ).plan
    for said in plan.evidence.values():
        assert 0 < said["energy_kept"] < said["energy"]
    edit = next(iter(plan.edits.values()))
    assert edit.left.shape[1] == edit.right.shape[0] == 1 and numpy.isfinite(edit.left).all()


def test_what_cannot_be_taken_out(checkpoint: Build, tmp_path: Path) -> None:
    base, tuned = (str(checkpoint("llama", **options)) for options in ({}, {"kind": "aligned"}))
    for told, kind, said in (
        ({"rank": 0}, UsageError, "--rank 0: must be 1 or more"),
        ({"rank": 2, "strength": 0.5}, UsageError, "--strength and --rank set the same thing"),
        ({"rank": 2, "aligned": tuned}, MismatchError, "no linear differs"),
    ):
        with pytest.raises(kind, match=said):
            wg.repair(tuned, method="truncate", out=tmp_path / "out", threads=1, **{"aligned": base, **told})
    assert not list(tmp_path.iterdir())
