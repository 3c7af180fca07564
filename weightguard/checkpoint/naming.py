"""The one table from tensor names to roles. A new architecture is a new row here and nothing else.

Roles: q k v o (attention), qkv (fused), gate up down (MLP), gate_up (fused). The linears of one `site` share one input:
attention_in {q, k, v, qkv}, attention_out {o}, mlp_in {gate, up, gate_up}, mlp_out {down}.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from weightguard.checkpoint.header import TensorInfo
from weightguard.errors import CheckpointError, UnsupportedError, UsageError

MAX_LAYERS = 100_000
SITES = {
    "q": "attention_in", "k": "attention_in", "v": "attention_in", "qkv": "attention_in", "o": "attention_out",
    "gate": "mlp_in", "up": "mlp_in", "gate_up": "mlp_in", "down": "mlp_out",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """`block`: last path component before the layer number. `transposed`: stored (in, out), as Conv1D does.

    `learned_positions`: positions come from a table of max_position_embeddings rows; there is no position beyond it.
    """

    block: str
    linears: dict[str, str]
    transposed: bool = False
    learned_positions: bool = False


@dataclass(frozen=True, slots=True)
class Linear:
    """One decoder linear: the on-disk tensor, its layer, role and whether it is stored (in, out)."""

    tensor: str
    layer: int
    role: str
    transposed: bool

    @property
    def site(self) -> tuple[int, str]:
        return self.layer, SITES[self.role]


_ATTENTION = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
_GATED = {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
_LLAMA = Family("layers", {**_ATTENTION, **_GATED})
_PHI3 = Family(
    "layers",
    {"qkv": "self_attn.qkv_proj", "o": "self_attn.o_proj", "gate_up": "mlp.gate_up_proj", "down": "mlp.down_proj"},
)
_GPT2 = Family(
    "h",
    {"qkv": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
    transposed=True,
    learned_positions=True,
)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "phi3": _PHI3,
    "gpt2": _GPT2,
}


def family_of(config: dict) -> Family:
    """The row of the table for a config. Error: UnsupportedError that shows the row to add."""
    kind = str(config.get("model_type"))[:60]
    if kind in FAMILIES:
        return FAMILIES[kind]
    raise UnsupportedError(
        f"config.json: architecture {kind!r} is not supported (known: {', '.join(sorted(FAMILIES))}); to add it, give "
        f'FAMILIES in weightguard/checkpoint/naming.py a row: "{kind}": Family("layers", {{"q": "self_attn.q_proj", ...}})'
    )


def decoder_linears(config: dict, tensors: Mapping[str, TensorInfo]) -> dict[str, Linear]:
    """On-disk tensor name -> Linear, in (layer, role) order. A layer without one of its linears is an error."""
    found = match_linears(family_of(config), (n.removesuffix(".weight") for n in tensors if n.endswith(".weight")))
    _check_complete(config, found)
    for path in found:
        info = tensors[f"{path}.weight"]
        if len(info.shape) != 2 or 0 in info.shape:
            raise CheckpointError(f"{info.file}: tensor {info.name!r} is {list(info.shape)}, where a matrix must be")
    return {f"{path}.weight": _with_tensor(linear, f"{path}.weight") for path, linear in found.items()}


def match_linears(family: Family, paths: Iterable[str]) -> dict[str, Linear]:
    """Module path -> Linear (its `tensor` is the path); serves on-disk names and the modules of a model alike."""
    ends = {path: role for role, path in family.linears.items()}
    pattern = re.compile(rf"(?:^|\.){family.block}\.(\d{{1,5}})\.({'|'.join(map(re.escape, ends))})$")
    found = {}
    for path in paths:
        match = pattern.search(path)
        if match:
            found[path] = Linear(path, int(match[1]), ends[match[2]], family.transposed)
    order = list(family.linears)
    return dict(sorted(found.items(), key=lambda item: (item[1].layer, order.index(item[1].role))))


def _with_tensor(linear: Linear, tensor: str) -> Linear:
    return Linear(tensor, linear.layer, linear.role, linear.transposed)


def _check_complete(config: dict, found: dict[str, Linear]) -> None:
    family = family_of(config)
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    if type(layers) is not int or not 0 < layers <= MAX_LAYERS:
        raise CheckpointError(f"config.json: num_hidden_layers is {str(layers)[:40]}; it must be 1 to {MAX_LAYERS}")
    if len(found) > layers * len(family.linears):
        raise CheckpointError(f"config.json: {layers} layers, but the tensors hold more decoder linears than that")
    present = {(linear.layer, linear.role) for linear in found.values()}
    for layer in range(layers):
        for role, path in family.linears.items():
            if (layer, role) not in present:
                raise CheckpointError(
                    f"missing tensor: no {family.block}.{layer}.{path}.weight for the {role} of layer {layer} "
                    f"(config.json says {layers} layers)"
                )


def in_scope(linears: dict[str, Linear], scope: str) -> dict[str, Linear]:
    """`scope`: "all", or roles joined by commas, for example "q,k,v". A role that is nowhere is an error."""
    if scope == "all":
        return linears
    roles = {role.strip() for role in scope.split(",") if role.strip()}
    known = {linear.role for linear in linears.values()}
    if not roles or not roles <= known:
        raise UsageError(f"--scope {scope}: this model has the roles {', '.join(sorted(known))}, or all")
    return {name: linear for name, linear in linears.items() if linear.role in roles}
