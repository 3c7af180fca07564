"""LoRA adapters as peft writes them: which base tensor each pair of factors changes, and by how much.

The update of one linear is s·B·A with A (r, in), B (out, r) and s = alpha / r, or alpha / sqrt(r) with rsLoRA.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from weightguard.checkpoint.naming import Linear
from weightguard.checkpoint.reader import Checkpoint
from weightguard.errors import CheckpointError, MismatchError, UnsupportedError

PREFIX = "base_model.model."
# Options under which s·B·A over the named base is not what stock peft computes.
_REFUSED = (
    "use_dora", "lora_bias", "use_qalora", "use_bdlora", "arrow_config", "alora_invocation_tokens", "kasa_config",
    "velora_config", "monteclora_config", "layer_replication", "megatron_config", "target_parameters",
    "trainable_token_indices",
)  # fmt: skip
# Initialisations that rewrite the base when the adapter is loaded.
_REWRITES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")


@dataclass(frozen=True)
class LoraPair:
    """One module of an adapter. `transposed`: the base stores this weight as (in, out)."""

    module: str
    a: str
    b: str
    scaling: float
    transposed: bool


def lora_pairs(adapter: Checkpoint) -> dict[str, LoraPair]:
    """Module path (without peft's prefix) -> its pair, in file order. Errors name the tensor and the config key."""
    _check_config(adapter.config)
    pairs = {}
    for name, info in adapter.tensors.items():
        if not name.endswith(".lora_A.weight"):
            _check_other(adapter, name)
            continue
        module = name.removesuffix(".lora_A.weight").removeprefix(PREFIX)
        other = name.replace(".lora_A.", ".lora_B.")
        if other not in adapter.tensors:
            raise CheckpointError(f"{info.file}: tensor {name!r} has no lora_B beside it")
        rank = _rank(adapter, name, other, module)
        pairs[module] = LoraPair(module, name, other, _scaling(adapter.config, module, rank), _transposed(adapter))
    if not pairs:
        raise CheckpointError(f"{adapter.label}: no lora_A tensors; is this a LoRA adapter?")
    return pairs


def _transposed(adapter: Checkpoint) -> bool:
    return bool(adapter.config.get("fan_in_fan_out"))


def _check_config(config: dict) -> None:
    if config.get("peft_type") != "LORA":
        raise UnsupportedError(
            f"adapter_config.json: peft_type {config.get('peft_type')!r} is not supported, only LORA"
        )
    for key in _REFUSED:
        if config.get(key):
            raise UnsupportedError(f"adapter_config.json: {key} is not supported; merge the adapter with peft first")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_REWRITES_BASE):
        raise UnsupportedError(
            f"adapter_config.json: init_lora_weights {start!r} rewrites the base on loading; convert it to plain LoRA first"
        )


def _check_other(adapter: Checkpoint, name: str) -> None:
    file = adapter.info(name).file
    if "lora_embedding" in name:
        raise UnsupportedError(f"{file}: tensor {name!r}: embedding adapters are not supported; merge with peft first")
    if "lora_magnitude" in name:
        raise UnsupportedError(f"{file}: tensor {name!r}: DoRA is not supported; merge with peft first")
    if name.endswith(".lora_B.weight") and name.replace(".lora_B.", ".lora_A.") not in adapter.tensors:
        raise CheckpointError(f"{file}: tensor {name!r} has no lora_A beside it")


def bypassing(adapter: Checkpoint) -> list[str]:
    """Tensors of the adapter that are not LoRA factors (modules_to_save, trained biases)."""
    return [n for n in adapter.tensors if not n.endswith((".lora_A.weight", ".lora_B.weight"))]


def _rank(adapter: Checkpoint, a: str, b: str, module: str) -> int:
    shape_a, shape_b = adapter.info(a).shape, adapter.info(b).shape
    if len(shape_a) != 2 or len(shape_b) != 2 or shape_a[0] != shape_b[1] or shape_a[0] == 0:
        raise CheckpointError(
            f"{adapter.info(a).file}: {a!r} {list(shape_a)} and {b!r} {list(shape_b)} do not share a rank"
        )
    declared = _by_pattern(adapter.config, "rank_pattern", module, adapter.config.get("r"))
    if declared != shape_a[0]:
        raise CheckpointError(f"adapter_config.json: rank {declared!r} for {module}, but {a!r} has rank {shape_a[0]}")
    return shape_a[0]


def _scaling(config: dict, module: str, rank: int) -> float:
    alpha = _by_pattern(config, "alpha_pattern", module, config.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"adapter_config.json: lora_alpha {alpha!r} for {module} is not a finite number")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _by_pattern(config: dict, key: str, module: str, default: object) -> object:
    """peft's rule: the first pattern that matches a suffix of the module path wins, else the common value."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"adapter_config.json: {key} is not an object")
    for pattern, value in patterns.items():
        if _matches(pattern, module, key):
            return value
    return default


def _matches(pattern: str, module: str, key: str) -> bool:
    if module == pattern or module.endswith("." + pattern):
        return True
    # A stranger's pattern may backtrack for ever: one with two open-ended repeats in a group is refused.
    if len(pattern) > 500 or re.search(r"\([^)]*[*+][^)]*\)[*+{]", pattern):
        raise CheckpointError(f"adapter_config.json: {key} has a pattern that may never end: {pattern[:60]!r}")
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error as error:
        raise CheckpointError(
            f"adapter_config.json: {key} {pattern[:60]!r} is no regular expression: {error}"
        ) from error


def base_tensors(pairs: dict[str, LoraPair], base: Checkpoint, adapter: Checkpoint) -> dict[str, LoraPair]:
    """On-disk tensor name of the base -> pair. A module the base lacks, or of another shape, is a MismatchError."""
    return {_base_tensor(pair, base, adapter): pair for pair in pairs.values()}


def _base_tensor(pair: LoraPair, base: Checkpoint, adapter: Checkpoint) -> str:
    parts = pair.module.split(".")
    # A base saved without its head class has the same paths less their first components.
    candidates = [".".join(parts[i:]) + ".weight" for i in range(len(parts))]
    name = next((c for c in candidates if c in base.tensors), None)
    if name is None:
        raise MismatchError(f"{adapter.label}: adapts {pair.module}, which {base.label} does not have")
    found = base.info(name).shape
    shape = (adapter.info(pair.b).shape[0], adapter.info(pair.a).shape[1])
    wanted = shape[::-1] if pair.transposed else shape
    if found != wanted:
        raise MismatchError(
            f"{adapter.label}: {pair.module} is {list(wanted)} in the adapter, {list(found)} in {base.label}: "
            f"the adapter belongs to another base"
        )
    return name


def adapter_linears(pairs: Mapping[str, LoraPair], named: Mapping[str, Linear]) -> dict[str, Linear]:
    """The adapter's own tensors as linears: lora_A and lora_B of each pair, with the role of the base linear."""
    linears = {}
    for tensor, pair in pairs.items():
        if tensor in named:
            for name in (pair.a, pair.b):
                linears[name] = Linear(name, named[tensor].layer, named[tensor].role, False)
    return linears
