"""The one table from tensor names to roles. A new architecture is a new row here and nothing else.

Roles of attention: q k v o; qkv fused; q_a q_b kv_a kv_b of latent attention; linear_in linear_gates linear_o of linear
attention. Of the MLP: gate up down; gate_up fused; the same with expert_ before for a routed and shared_ for a shared
expert. The linears of one `site` share one input. Routers and the gates of shared experts have no role: they stay.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from weightguard.checkpoint.header import FLOATS, MAX_TENSORS, TensorInfo
from weightguard.errors import CheckpointError, UnsupportedError, UsageError

MAX_LAYERS = 100_000
_MLP_SITES = {"gate": "in", "up": "in", "gate_up": "in", "down": "out"}
# Role -> site, in the order in which a forward pass meets them.
SITES = {
    "q": "attention_in", "k": "attention_in", "v": "attention_in", "qkv": "attention_in", "q_a": "attention_in",
    "kv_a": "attention_in", "linear_in": "attention_in", "linear_gates": "attention_in", "q_b": "q_latent",
    "kv_b": "kv_latent", "o": "attention_out", "linear_o": "attention_out",
    **{role: f"mlp_{site}" for role, site in _MLP_SITES.items()},
    **{f"shared_{role}": f"shared_{site}" for role, site in _MLP_SITES.items()},
    **{f"expert_{role}": f"expert_{site}" for role, site in _MLP_SITES.items()},
}  # fmt: skip
ROLES = tuple(SITES)
# What is added to the residual stream: its rows are coordinates of that, its columns the units of the layer.
WRITERS = tuple(role for role, site in SITES.items() if site.endswith("_out"))
# Where configs say how many routed experts a layer has.
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
# Before the block of a language model, and of one beside a vision tower, on disk or in memory.
_ANYWHERE, _BESIDE_VISION = r"(?:^|\.)", r"(?:^|^model\.|(?:^|\.)language_model\.(?:model\.)?)"
_NUMBER = re.compile(r"(?<=\.)\d{1,5}(?=\.)|(?<=#)\d{1,5}$")


@dataclass(frozen=True)
class Family:
    """`block`: last path component before the layer number. `attention`, `mlp`: the sets of linears, role -> path, of
    which a layer has one each.

    `*` in a path is the number of a routed expert, and `#*` that of its matrix in a tensor that packs all experts.
    transposed: roles stored (in, out), as Conv1D does. learned_positions: positions come from a table of
    max_position_embeddings rows; there is no position beyond it. heads_apart: q, k and v are made one by one from the
    same input, or lie one above the other where they are fused. ignores: sizes in a config that mean nothing to
    its class. place: what stands before the block, as a pattern.
    """

    block: str
    attention: tuple[Mapping[str, str], ...]
    mlp: tuple[Mapping[str, str], ...]
    transposed: tuple[str, ...] = ()
    learned_positions: bool = False
    heads_apart: bool = True
    ignores: tuple[str, ...] = ()
    place: str = _ANYWHERE

    @property
    def linears(self) -> dict[str, str]:
        """Role -> path of every linear that some layer may have."""
        return {role: path for linears in (*self.attention, *self.mlp) for role, path in linears.items()}


@dataclass(frozen=True, slots=True)
class Linear:
    """One decoder linear: the on-disk tensor, its layer, role, whether it is stored (in, out), and which expert it is."""

    tensor: str
    layer: int
    role: str
    transposed: bool
    expert: int | None = None

    @property
    def writes(self) -> bool:
        """True where the output is added to the residual stream: the units of such a linear are its columns."""
        return self.role in WRITERS

    @property
    def site(self) -> tuple[int | str, ...]:
        return (self.layer, SITES[self.role], *(() if self.expert is None else (self.expert,)))


def _under(place: str, **linears: str) -> dict[str, str]:
    return {role: f"{place}.{path}" for role, path in linears.items()}


def _renamed(kind: str, linears: Mapping[str, str], place: str) -> dict[str, str]:
    """The linears of an MLP as those of its experts, which lie at another place."""
    return {f"{kind}_{role}": f"{place}.{path.rpartition('.')[2]}" for role, path in linears.items()}


_QKVO = _under("self_attn", q="q_proj", k="k_proj", v="v_proj", o="o_proj")
_GATED = _under("mlp", gate="gate_proj", up="up_proj", down="down_proj")
_FUSED_GATED = _under("mlp", gate_up="gate_up_proj", down="down_proj")
_FOUR_H = _under("mlp", up="dense_h_to_4h", down="dense_4h_to_h")
_LATENT = _under("self_attn", kv_a="kv_a_proj_with_mqa", kv_b="kv_b_proj", o="o_proj")
_ROUTED = _renamed("expert", _GATED, "mlp.experts.*")
_LINEAR_ATTENTION = _under("linear_attn", linear_in="in_proj_qkvz", linear_gates="in_proj_ba", linear_o="out_proj")
_PACKED = {"expert_gate_up": "experts.gate_up_proj#*", "expert_down": "experts.down_proj#*"}
_IN_MEMORY = tuple(path.removesuffix("#*") for path in _PACKED.values())
_FEED_FORWARD = _under("feed_forward", gate="gate_proj", up="up_proj", down="down_proj")

_LLAMA = Family("layers", (_QKVO,), (_GATED,))
_PHI3 = Family("layers", (_under("self_attn", qkv="qkv_proj", o="o_proj"),), (_FUSED_GATED,))
_GLM = Family("layers", (_QKVO,), (_FUSED_GATED,))
_GPT2 = Family(
    "h",
    (_under("attn", qkv="c_attn", o="c_proj"),),
    (_under("mlp", up="c_fc", down="c_proj"),),
    transposed=("qkv", "o", "up", "down"),
    learned_positions=True,
)
_GPT_NEOX = Family("layers", (_under("attention", qkv="query_key_value", o="dense"),), (_FOUR_H,), heads_apart=False)
_BLOOM = Family(
    "h",
    (_under("self_attention", qkv="query_key_value", o="dense"),),
    (_FOUR_H,),
    heads_apart=False,
    ignores=("intermediate_size",),
)
_OPT = Family(
    "layers",
    (_under("self_attn", q="q_proj", k="k_proj", v="v_proj", o="out_proj"),),
    ({"up": "fc1", "down": "fc2"},),
    learned_positions=True,
    ignores=("num_key_value_heads", "intermediate_size"),
)
_PHI = Family("layers", ({**_QKVO, "o": "self_attn.dense"},), (_under("mlp", up="fc1", down="fc2"),))
_STARCODER2 = Family("layers", (_QKVO,), (_under("mlp", up="c_fc", down="c_proj"),))
_MIXTRAL = Family(
    "layers",
    (_QKVO,),
    (_under("block_sparse_moe.experts.*", expert_gate="w1", expert_up="w3", expert_down="w2"),),
)
_QWEN3_MOE = Family("layers", (_QKVO,), (_GATED, _ROUTED))
_SHARED_EXPERT = {**_ROUTED, **_renamed("shared", _GATED, "mlp.shared_expert")}
_QWEN2_MOE = Family("layers", (_QKVO,), (_GATED, _SHARED_EXPERT))
_QWEN3_NEXT = Family("layers", (_QKVO, _LINEAR_ATTENTION), (_GATED, _SHARED_EXPERT))
_DEEPSEEK = Family(
    "layers",
    (
        {"q": "self_attn.q_proj", **_LATENT},
        {**_under("self_attn", q_a="q_a_proj", q_b="q_b_proj"), **_LATENT},
    ),
    (_GATED, {**_ROUTED, **_renamed("shared", _GATED, "mlp.shared_experts")}),
    heads_apart=False,
)
_GRANITE_MOE = Family(
    "layers",
    (_QKVO,),
    (_under("block_sparse_moe", expert_gate_up="input_linear.weight#*", expert_down="output_linear.weight#*"),),
)
_GPT_OSS = Family("layers", (_QKVO,), (_under("mlp", **_PACKED),), transposed=tuple(_PACKED))
_LLAMA4 = Family(
    "layers",
    (_QKVO,),
    (
        _FEED_FORWARD,
        {**_under("feed_forward", **_PACKED), **_renamed("shared", _FEED_FORWARD, "feed_forward.shared_expert")},
    ),
    transposed=tuple(_PACKED),
)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "cohere": _LLAMA,
    "cohere2": _LLAMA,
    "exaone4": _LLAMA,
    "granite": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "phi3": _PHI3,  # and Phi-4, which has this model_type
    "glm": _GLM,
    "glm4": _GLM,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "opt": _OPT,
    "falcon": _BLOOM,
    "bloom": _BLOOM,
    "phi": _PHI,
    "starcoder2": _STARCODER2,
    "mixtral": _MIXTRAL,
    "qwen2_moe": _QWEN2_MOE,
    "qwen3_moe": _QWEN3_MOE,
    "qwen3_next": _QWEN3_NEXT,
    "olmoe": _QWEN3_MOE,
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "granitemoe": _GRANITE_MOE,
    "gpt_oss": _GPT_OSS,
    "llama4_text": _LLAMA4,
    "ministral3": _LLAMA,
}
# Models that see: the family of the language model in them, whose linears are repaired; nothing else is touched.
WRAPPERS: dict[str, str] = {
    "gemma3": "gemma3_text",
    "llama4": "llama4_text",
    "llava": "llama",
    "mistral3": "mistral",
    "qwen2_vl": "qwen2",
    "qwen2_5_vl": "qwen2",
}


def sees(config: dict) -> bool:
    """True for a language model beside a vision tower."""
    return config.get("model_type") in tuple(WRAPPERS)


def language_config(config: dict) -> dict:
    """The part of a config that describes the language model: `text_config`, or all of it."""
    inner = config.get("text_config")
    return inner if sees(config) and isinstance(inner, dict) else config


def _family(config: dict) -> Family | None:
    kind = str(config.get("model_type"))
    if not sees(config):
        return FAMILIES.get(kind)
    inner = language_config(config).get("model_type")
    own = WRAPPERS[kind] if inner in (None, kind, f"{kind}_text") else str(inner)
    return dataclasses.replace(FAMILIES[own], place=_BESIDE_VISION) if own in FAMILIES else None


def is_known(config: dict) -> bool:
    """True for an architecture of the table."""
    return _family(config) is not None


def family_of(config: dict) -> Family:
    """The row of the table for a config. Error: UnsupportedError that shows the row to add."""
    found = _family(config)
    if found is not None:
        return found
    kind, known = str(config.get("model_type"))[:60], ", ".join(sorted([*FAMILIES, *WRAPPERS]))
    raise UnsupportedError(
        f"config.json: architecture {kind!r} is not supported (known: {known}); to add it, give "
        f'FAMILIES in weightguard/checkpoint/naming.py a row: "{kind}": '
        f'Family("layers", ({{"q": "self_attn.q_proj", ...}},), ({{"up": "mlp.up_proj", ...}},))'
    )


def unpacked(config: dict, tensors: Iterable[TensorInfo]) -> dict[str, list[TensorInfo]]:
    """Stored tensor -> itself, or the matrices of the experts that are packed in it, NAME#0, NAME#1 and so on.

    A matrix lies in the file like a tensor of its own, so that it can be read, scored, edited and verified as one.
    """
    family = _family(config)
    paths = [] if family is None else [path.removesuffix("#*") for path in family.linears.values() if "#" in path]
    found = {info.name: _matrices(info) if info.name.endswith(tuple(paths)) else [info] for info in tensors}
    if sum(map(len, found.values())) > MAX_TENSORS:
        raise CheckpointError(f"config.json: packed experts make more than {MAX_TENSORS} matrices")
    names = [each.name for parts in found.values() for each in parts]
    if len(names) != len(set(names)):
        raise CheckpointError("a tensor has the name of an expert that is packed in another one")
    return found


def _matrices(info: TensorInfo) -> list[TensorInfo]:
    if len(info.shape) != 3 or 0 in info.shape or info.dtype not in FLOATS or info.shape[0] > MAX_TENSORS:
        return [info]
    count, size = info.shape[0], info.nbytes // info.shape[0]
    return [
        info._replace(
            name=f"{info.name}#{at}",
            shape=info.shape[1:],
            start=info.start + at * size,
            end=info.start + (at + 1) * size,
        )
        for at in range(count)
    ]


def decoder_linears(config: dict, tensors: Mapping[str, TensorInfo]) -> dict[str, Linear]:
    """On-disk tensor name -> Linear, in (layer, role) order. Errors: CheckpointError for a layer without one of its
    linears, UnsupportedError for packed experts where published models have none."""
    _check_packing(config, tensors.values())
    paths = {name.removesuffix(".weight"): name for name in tensors if name.endswith(".weight") or "#" in name}
    matched, beyond = match_linears(family_of(config), paths), predicting_layers(config)
    found = {path: linear for path, linear in matched.items() if linear.layer not in beyond}
    _check_complete(config, found)
    for path in found:
        info = tensors[paths[path]]
        if len(info.shape) != 2 or 0 in info.shape:
            raise CheckpointError(f"{info.file}: tensor {info.name!r} is {list(info.shape)}, where a matrix must be")
    return {paths[path]: dataclasses.replace(linear, tensor=paths[path]) for path, linear in found.items()}


def _check_packing(config: dict, tensors: Iterable[TensorInfo]) -> None:
    """Experts that only transformers' memory packs are no damage, but none of the published layouts. UnsupportedError."""
    for info in tensors:
        if info.name.endswith(_IN_MEMORY) and len(info.shape) == 3 and 0 not in info.shape and info.dtype in FLOATS:
            raise UnsupportedError(
                f"{info.file}: tensor {info.name!r} packs experts as transformers does in memory, which is not the layout "
                f"of published {config['model_type']} models; load the model, put its state_dict into "
                f"AutoModelForCausalLM.from_config(model.config), and repair what save_pretrained of that writes"
            )


def predicting_layers(config: dict) -> range:
    """Numbers of the layers after the last one that only guess further tokens ahead; the model itself runs without them."""
    config = language_config(config)
    layers, more = config.get("num_hidden_layers"), config.get("num_nextn_predict_layers")
    if type(layers) is not int or type(more) is not int or not 0 < more <= MAX_LAYERS:
        return range(0)
    return range(layers, layers + more)


def match_linears(family: Family, paths: Iterable[str]) -> dict[str, Linear]:
    """Module path -> Linear (its `tensor` is the path); serves on-disk names and the modules of a model alike."""
    roles = {path: role for role, path in family.linears.items()}
    pattern = re.compile(rf"{family.place}{family.block}\.(\d{{1,5}})\.(.+)$")
    found = {}
    for path in paths:
        match = pattern.search(path)
        role = match and roles.get(_NUMBER.sub("*", match[2]))
        if match and role:
            number = _NUMBER.search(match[2])
            expert = None if number is None else int(number[0])
            found[path] = Linear(path, int(match[1]), role, role in family.transposed, expert)
    return dict(sorted(found.items(), key=lambda it: (it[1].layer, ROLES.index(it[1].role), it[1].expert or 0)))


def _check_complete(config: dict, found: dict[str, Linear]) -> None:
    """Every layer has one whole set of linears for its attention and one for its MLP, and nothing beside them."""
    family, whole, config = family_of(config), config, language_config(config)
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    if layers is None and config is not whole:  # a part of a config leaves out what its class has for a default
        layers = 1 + max((linear.layer for linear in found.values()), default=0)
    if type(layers) is not int or not 0 < layers <= MAX_LAYERS:
        key = f"{'' if config is whole else 'text_config.'}num_hidden_layers"
        said = "missing" if layers is None else str(layers)[:40]
        raise CheckpointError(f"config.json: {key} is {said}; it must be 1 to {MAX_LAYERS}")
    held: dict[int, dict[str, set[int | None]]] = {}
    for linear in found.values():
        held.setdefault(linear.layer, {}).setdefault(linear.role, set()).add(linear.expert)
    distinct = sum(len(experts) for roles in held.values() for experts in roles.values())
    if distinct < len(found) or any(layer >= layers for layer in held):
        raise CheckpointError(f"config.json: {layers} layers, but the tensors hold more decoder linears than that")
    for layer in range(layers):
        for sets in (family.attention, family.mlp):
            _check_layer(config, f"{family.block}.{layer}", sets, held.get(layer, {}))


def _check_layer(
    config: dict, place: str, sets: tuple[Mapping[str, str], ...], held: Mapping[str, set[int | None]]
) -> None:
    """The set that comes nearest to what the layer has must be there as a whole, and nothing of another one."""
    near = max(sets, key=lambda linears: len(linears.keys() & held.keys()))
    for role, path in near.items():
        count, have = _experts(config) if "*" in path else 1, held.get(role, set())
        lacking = next((n for n in range(count) if (n if "*" in path else None) not in have), None)
        if lacking is not None:
            name = path.replace("*", str(lacking)) + ("" if "#" in path else ".weight")
            raise CheckpointError(
                f"missing tensor: no {place}.{name} for the {role} of layer {place.rpartition('.')[2]} "
                f"(config.json says {_said(config)})"
            )
        if len(have) > count:
            raise CheckpointError(f"config.json: {count} experts, but {place} holds {len(have)}")
    beside = sorted(held.keys() & {role for linears in sets for role in linears} - near.keys())
    if beside:
        raise CheckpointError(f"{place}: holds the {beside[0]} of another kind of layer beside its {next(iter(near))}")


def _experts(config: dict) -> int:
    """How many routed experts a layer has. Error: CheckpointError."""
    key = next((key for key in _EXPERT_COUNTS if key in config), _EXPERT_COUNTS[0])
    found = config.get(key)
    if type(found) is not int or not 0 < found <= MAX_TENSORS:
        raise CheckpointError(f"config.json: {key} is {str(found)[:40]}; it must be 1 to {MAX_TENSORS}")
    return found


def _said(config: dict) -> str:
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    return f"{layers} layers" + next((f", {config[key]} experts" for key in _EXPERT_COUNTS if key in config), "")


def in_scope(linears: dict[str, Linear], scope: str) -> dict[str, Linear]:
    """`scope`: "all", or roles joined by commas, for example "q,k,v". A role that is nowhere is an error."""
    if scope == "all":
        return linears
    roles = {role.strip() for role in scope.split(",") if role.strip()}
    known = {linear.role for linear in linears.values()}
    if not roles or not roles <= known:
        raise UsageError(f"--scope {scope}: this model has the roles {', '.join(sorted(known))}, or all")
    return {name: linear for name, linear in linears.items() if linear.role in roles}
