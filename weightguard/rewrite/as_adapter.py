"""A low-rank plan over a full model as the files of a stock peft adapter."""

from __future__ import annotations

from pathlib import Path

import numpy

from weightguard.checkpoint import Checkpoint, Linear, decoder_linears, family_of
from weightguard.checkpoint.adapter import PREFIX
from weightguard.checkpoint.strict_json import dump
from weightguard.checkpoint.writer import safetensors_bytes
from weightguard.plan import LowRank, Plan
from weightguard.rewrite.companions import write_companion

# Path of the decoder in a causal model, for checkpoints saved without their head class: by kind, else by block.
_DECODER = {"gpt_neox": "gpt_neox", "layers": "model", "h": "transformer"}


def write_factors(plan: Plan, base: Checkpoint, named: str, directory: Path) -> None:
    """Write the LowRank edits of `plan` as an adapter over `base`: float32, alpha = rank, so that s is 1.

    named: what the adapter's config calls its base.
    """
    data = safetensors_bytes(_factors(plan, base), {"format": "pt"})
    write_companion(directory / "adapter_model.safetensors", data)
    write_companion(directory / "adapter_config.json", _config(plan, base, named))


def _factors(plan: Plan, base: Checkpoint) -> dict[str, numpy.ndarray]:
    """lora_A (r, in) and lora_B (out, r) by peft's names."""
    found: dict[str, numpy.ndarray] = {}
    linears = decoder_linears(base.config, base.tensors)
    for name, edit in plan.edits.items():
        assert isinstance(edit, LowRank)
        module = f"{PREFIX}{_module(linears[name], base)}"
        found[f"{module}.lora_A.weight"] = numpy.ascontiguousarray(edit.right)
        found[f"{module}.lora_B.weight"] = numpy.ascontiguousarray(edit.left)
    return found


def _module(linear: Linear, base: Checkpoint) -> str:
    path = linear.tensor.removesuffix(".weight")
    block = family_of(base.config).block
    if not path.startswith(f"{block}."):
        return path
    return f"{_DECODER.get(str(base.config.get('model_type')), _DECODER[block])}.{path}"


def _config(plan: Plan, base: Checkpoint, named: str) -> bytes:
    """adapter_config.json. Matrices smaller than the rank have fewer directions, which rank_pattern says."""
    linears = decoder_linears(base.config, base.tensors)
    ranks = {_module(linears[n], base): e.left.shape[1] for n, e in plan.edits.items() if isinstance(e, LowRank)}
    most = max(ranks.values())
    fewer = {module: rank for module, rank in ranks.items() if rank < most}
    said = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": named,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": fewer,
        "alpha_pattern": dict(fewer),
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(linears[name].transposed for name in plan.edits),
        "inference_mode": True,
    }
    return dump(said)
