"""Whether the shapes of tensors are those that config.json makes. Headers only: no model is built, no library asked.

Only what holds for every architecture of the table is looked at, and only where the config says it: what a config leaves
out is for the model's class to fill in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from weightguard.checkpoint.config import HEADS, HIDDEN, LATENT, size_of
from weightguard.checkpoint.header import TensorInfo
from weightguard.checkpoint.naming import SITES, Linear, family_of, language_config

OUTPUT_EMBEDDINGS = ("lm_head.weight", "embed_out.weight")
INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_MIDDLE = ("intermediate_size_mlp", "ffn_dim", "n_inner", "ffn_hidden_size", "intermediate_size")
_EXPERT = ("moe_intermediate_size", "intermediate_size")
_Size = tuple[int, str]  # and how the config says it
_FUSED = ("gate_up", "expert_gate_up")


@dataclass(frozen=True)
class Misfit:
    """A tensor and the side of it, 0 for outputs and 1 for inputs, that config.json makes another."""

    info: TensorInfo
    side: str
    wanted: int
    said: str

    def __str__(self) -> str:
        return (
            f"{self.info.file}: tensor {self.info.name!r} is {list(self.info.shape)}, config.json gives it {self.wanted} "
            f"{self.side} ({self.said}); the config belongs to another model"
        )


def misfits(config: dict, linears: Mapping[str, Linear], tensors: Mapping[str, TensorInfo]) -> list[Misfit]:
    """Every tensor of `linears`, and every embedding, whose shape contradicts the config; none of a quantised one."""
    if config.get("quantization_config"):
        return []  # packed values have shapes of their own
    ignored = family_of(config).ignores
    config = {key: value for key, value in language_config(config).items() if key not in ignored}
    return [*_of_embeddings(config, tensors), *_of_linears(config, linears, tensors)]


def _of_embeddings(config: dict, tensors: Mapping[str, TensorInfo]) -> Iterator[Misfit]:
    rows = size_of(config, "vocab_size")
    for name, info in tensors.items():
        if rows and name.endswith(INPUT_EMBEDDINGS + OUTPUT_EMBEDDINGS) and info.shape[:1] != (rows,):
            yield Misfit(info, "rows", rows, f"vocab_size {rows}")


def _of_linears(config: dict, linears: Mapping[str, Linear], tensors: Mapping[str, TensorInfo]) -> Iterator[Misfit]:
    heads = _heads(config, linears, tensors)
    for name, linear in linears.items():
        shape = tensors[name].shape[::-1] if linear.transposed else tensors[name].shape
        for side, wanted, said in (*_outputs(config, linear, heads), *_inputs(config, linear)):
            if shape[side] != wanted:
                yield Misfit(tensors[name], ("outputs", "inputs")[side], wanted, said)
                break


def _outputs(config: dict, linear: Linear, heads: Mapping[str, _Size]) -> Iterator[tuple[int, int, str]]:
    hidden, middle = _said(config, HIDDEN), _middle(config, linear)
    if linear.writes and hidden:
        yield 0, *hidden
    elif middle and SITES[linear.role] in ("mlp_in", "expert_in"):
        fused = linear.role in _FUSED
        yield 0, middle[0] * (2 if fused else 1), f"twice {middle[1]}" if fused else middle[1]
    elif linear.role in heads:
        yield 0, *heads[linear.role]


def _inputs(config: dict, linear: Linear) -> Iterator[tuple[int, int, str]]:
    hidden, middle = _said(config, HIDDEN), _middle(config, linear)
    if hidden and SITES[linear.role].endswith("_in"):
        yield 1, *hidden
    if middle and SITES[linear.role] in ("mlp_out", "expert_out"):
        yield 1, *middle


def _middle(config: dict, linear: Linear) -> _Size | None:
    """Units of an MLP or of a routed expert; those of shared experts are said in too many ways."""
    return _said(config, _EXPERT if linear.role.startswith("expert_") else _MIDDLE)


def _heads(config: dict, linears: Mapping[str, Linear], tensors: Mapping[str, TensorInfo]) -> dict[str, _Size]:
    """Outputs of q, k and v where each is a linear of its own, and said why.

    A config without head_dim leaves that to the class, which does not always divide the hidden size: q then tells.
    """
    count, groups = _said(config, HEADS), size_of(config, "num_key_value_heads")
    q = next((tensors[name].shape[0] for name, linear in linears.items() if linear.role == "q"), None)
    gated = any(linear.role == "linear_in" for linear in linears.values())  # such attention has gates beside its q
    if count is None or q is None or gated or size_of(config, *LATENT) is not None:
        return {}
    each = size_of(config, "head_dim") or q // count[0] or 1
    found = {"q": (count[0] * each, f"{count[1]} of {each}")}
    if groups:
        found["k"] = found["v"] = groups * each, f"num_key_value_heads {groups} of {each}"
    return found


def _said(config: dict, keys: tuple[str, ...]) -> _Size | None:
    """The size that a config gives under one of these keys, and how."""
    key = next((key for key in keys if size_of(config, key)), None)
    return None if key is None else (config[key], f"{key} {config[key]}")
