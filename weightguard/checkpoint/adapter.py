"""LoRA adapters as peft writes them: which base tensor each pair of factors changes, and by how much.

The update of one linear is s·B·A with A (r, in), B (out, r) and s = alpha / r, or alpha / sqrt(r) with rsLoRA.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from weightguard.checkpoint.adapter_config import check_config, check_pattern, check_patterns, is_adapted
from weightguard.checkpoint.header import FLOATS
from weightguard.checkpoint.naming import Linear, family_of, match_linears
from weightguard.checkpoint.reader import Checkpoint
from weightguard.errors import CheckpointError, MismatchError, UnsupportedError

PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraPair:
    """One module of an adapter: the tensors A (r, in) and B (out, r), and s."""

    module: str
    a: str
    b: str
    scaling: float


def lora_pairs(adapter: Checkpoint) -> dict[str, LoraPair]:
    """Module path (without peft's prefix) -> its pair, in file order. Errors name the tensor and the config key."""
    check_config(adapter.config)
    # peft asks about the base's modules; .lora_A.weight makes up for those with longer names than the linears.
    check_patterns(adapter.config, max((len(name.removeprefix(PREFIX)) for name in adapter.tensors), default=0))
    pairs = {}
    for name, info in adapter.tensors.items():
        if not name.endswith(".lora_A.weight"):
            _check_other(adapter, name)
            continue
        if not name.startswith(PREFIX):
            raise CheckpointError(f"{info.file}: tensor {name!r} does not begin with {PREFIX!r}, as peft writes it")
        module = name.removesuffix(".lora_A.weight").removeprefix(PREFIX)
        other = name.replace(".lora_A.", ".lora_B.")
        if other not in adapter.tensors:
            raise CheckpointError(f"{info.file}: tensor {name!r} has no lora_B beside it")
        _check_targeted(adapter, name, module)
        _check_floats(adapter, name, other)
        rank = _rank(adapter, name, other, module)
        pairs[module] = LoraPair(module, name, other, _scaling(adapter.config, module, rank))
    if not pairs:
        raise CheckpointError(f"{adapter.label}: no lora_A tensors; is this a LoRA adapter?")
    return pairs


def _check_targeted(adapter: Checkpoint, name: str, module: str) -> None:
    if not is_adapted(adapter.config, module):
        raise MismatchError(
            f"{adapter.info(name).file}: tensor {name!r} belongs to a module that adapter_config.json leaves out (by "
            f"target_modules, exclude_modules, modules_to_save or layers_to_transform), so that peft would ignore it; "
            f"remove it or correct the config"
        )


def _check_floats(adapter: Checkpoint, *names: str) -> None:
    for info in map(adapter.info, names):
        if info.dtype not in FLOATS:
            raise UnsupportedError(
                f"{info.file}: tensor {info.name!r} is {info.dtype}, not a float type that can be edited"
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
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < 1e30:
        raise CheckpointError(f"adapter_config.json: lora_alpha {str(alpha)[:40]} for {module} is not a usable number")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _by_pattern(config: dict, key: str, module: str, default: object) -> object:
    """peft's rule: the first pattern that matches a suffix of the module path wins, else the common value."""
    patterns = config.get(key) or {}
    for pattern, value in patterns.items():
        if _matches(pattern, module, key):
            return value
    return default


def _matches(pattern: str, module: str, key: str) -> bool:
    if module == pattern or module.endswith("." + pattern):
        return True
    whole = rf"(.*\.)?({pattern})$"
    check_pattern(whole, pattern, key, len(module))
    return re.match(whole, module) is not None


def base_tensors(pairs: dict[str, LoraPair], base: Checkpoint, adapter: Checkpoint) -> dict[str, LoraPair]:
    """On-disk tensor name of the base -> pair. A module the base lacks, or of another shape, is a MismatchError."""
    _check_saved(base, adapter)
    found: dict[str, LoraPair] = {}
    for pair in pairs.values():
        name = _base_tensor(pair, base, adapter)
        if name in found:
            raise MismatchError(f"{adapter.label}: {found[name].module} and {pair.module} both adapt {name!r}")
        found[name] = pair
    return found


def _check_saved(base: Checkpoint, adapter: Checkpoint) -> None:
    """Of every module of the base that modules_to_save names there must be a copy: peft loads nothing without it."""
    for module in adapter.config.get("modules_to_save") or []:
        named = any(f".{name}".endswith(f".{module}.weight") for name in base.tensors)
        if named and not any(f".{module}." in name for name in adapter.tensors):
            raise MismatchError(
                f"{adapter.label}: modules_to_save of adapter_config.json names {module!r}, of which no tensor is there, "
                "so that peft could not load it; remove it or copy the adapter again"
            )


def _base_tensor(pair: LoraPair, base: Checkpoint, adapter: Checkpoint) -> str:
    parts = pair.module.split(".")
    # A base saved without its head class has the same paths less their first components.
    candidates = [".".join(parts[i:]) + ".weight" for i in range(len(parts))]
    name = next((c for c in candidates if c in base.tensors), None) or _same_linear(pair.module, base)
    if name is None and parts[-1] == "lm_head" and base.config.get("tie_word_embeddings", True):
        raise UnsupportedError(f"{adapter.label}: adapts lm_head, which {base.label} ties to its embedding")
    if name is None:
        raise MismatchError(f"{adapter.label}: adapts {pair.module}, which {base.label} does not have")
    found = base.info(name).shape
    shape = (adapter.info(pair.b).shape[0], adapter.info(pair.a).shape[1])
    wanted = shape[::-1] if _is_transposed(name, base) else shape
    if found != wanted:
        raise MismatchError(
            f"{adapter.label}: {pair.module} is {list(wanted)} in the adapter, {list(found)} in {base.label}: "
            f"the adapter belongs to another base"
        )
    return name


def _same_linear(module: str, base: Checkpoint) -> str | None:
    """The decoder linear of the same place and role, where files and memory name the parts of a model differently."""
    family = family_of(base.config)
    for wanted in match_linears(family, [module]).values():
        named = match_linears(family, (n.removesuffix(".weight") for n in base.tensors if n.endswith(".weight")))
        same = (path for path, linear in named.items() if (linear.site, linear.role) == (wanted.site, wanted.role))
        return next((f"{path}.weight" for path in same), None)
    return None


def _is_transposed(name: str, base: Checkpoint) -> bool:
    # As peft does, the kind of module decides. fan_in_fan_out in the config is that of the module peft visited last:
    # False for a GPT-2 adapter with an lm_head among its targets, though every other module is stored (in, out).
    found = match_linears(family_of(base.config), [name.removesuffix(".weight")])
    return any(linear.transposed for linear in found.values())


def adapter_linears(pairs: Mapping[str, LoraPair], named: Mapping[str, Linear]) -> dict[str, Linear]:
    """The adapter's own tensors as linears: lora_A and lora_B of each pair, with the role of the base linear."""
    linears = {}
    for tensor, pair in pairs.items():
        if tensor in named:
            for name in (pair.a, pair.b):
                linears[name] = Linear(name, named[tensor].layer, named[tensor].role, False)
    return linears
