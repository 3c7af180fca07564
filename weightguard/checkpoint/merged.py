"""Two checkpoints that belong together: a base with an adapter over it, a tuned model and its aligned reference."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from weightguard.checkpoint.adapter import LoraPair, base_tensors, bypassing, lora_pairs
from weightguard.checkpoint.naming import predicting_layers
from weightguard.checkpoint.reader import Checkpoint
from weightguard.errors import MismatchError, UnsupportedError

# What a tensor is in, by class and by the version that saved it: "h.0.ln_1.bias" is "transformer.h.0.ln_1.bias", and
# "language_model.model.norm.weight" is "model.language_model.norm.weight".
_WRAPPERS = ("model", "transformer", "language_model", "gpt_neox")
# Tables that older versions of transformers saved, and every version makes by itself.
_TABLES = (
    ".rotary_emb.inv_freq", ".masked_bias", ".attn.bias", ".attention.bias", ".rotary_emb.cos_cached",
    ".rotary_emb.sin_cached", ".position_ids",
)  # fmt: skip
_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,5})\.")


@dataclass(frozen=True)
class Merged:
    """A base checkpoint with an adapter over it: W = W_base + s·B·A in float32, never written before it is edited."""

    base: Checkpoint
    adapter: Checkpoint

    @cached_property
    def pairs(self) -> dict[str, LoraPair]:
        """On-disk base tensor -> pair, in the base's order."""
        pairs = lora_pairs(self.adapter)
        others = bypassing(self.adapter)
        if others:
            raise UnsupportedError(
                f"{self.adapter.label}: tensor {others[0]!r} is no LoRA factor and bypasses the update; "
                f"merge the adapter with peft and repair the merged checkpoint"
            )
        found = base_tensors(pairs, self.base, self.adapter)
        return {name: found[name] for name in self.base.tensors if name in found}


def named_like(other: Checkpoint, model: Checkpoint) -> Checkpoint:
    """`other` with the names of `model` for tensors whose names differ only in what the tensors are in.

    A model saved without its head class, or by an earlier version, has the same tensors under other prefixes. Names that
    would not be told apart without these stay as they are.
    """
    theirs, ours = _bare(other.tensors), _bare(model.tensors)
    pairs = {theirs[bare]: ours[bare] for bare in theirs if bare in ours}
    renamed = {_stored(old): _stored(new) for old, new in pairs.items() if old != new}
    return dataclasses.replace(other, renamed=renamed) if renamed else other


def _bare(names: Iterable[str]) -> dict[str, str]:
    """Name without what it is in -> name, of names that this tells apart."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_unwrapped(name), []).append(name)
    return {bare: names[0] for bare, names in found.items() if len(names) == 1}


def _unwrapped(name: str) -> str:
    parts = name.split(".")
    while parts[0] in _WRAPPERS:
        parts = parts[1:]
    return ".".join(parts)


def _stored(name: str) -> str:
    """The name in the file, of an expert that is packed with others."""
    return name.partition("#")[0]


def may_lack(name: str, checkpoint: Checkpoint) -> bool:
    """Whether a model may have this tensor of another of its kind or not, and be the same.

    A head, which of a tied model some tools write and some do not; tables that the class makes; a layer that only guesses
    further tokens ahead.
    """
    is_head = name.removesuffix(".weight").rpartition(".")[2] in ("lm_head", "embed_out")
    layer = _LAYER.search(name)
    guesses = layer is not None and int(layer[1]) in predicting_layers(checkpoint.config)
    return is_head or guesses or name.endswith(_TABLES)


def check_pairing(model: Checkpoint, aligned: Checkpoint, names: list[str]) -> None:
    """Names pair by name, with the same shape; extra, missing or reshaped tensors are a MismatchError naming one.

    What only one of them needs to have (see `may_lack`) is passed over.
    """
    for name in names:
        if name not in aligned.tensors:
            if may_lack(name, model):
                continue
            raise MismatchError(f"tensor {name!r} of {model.label} is not in the aligned model {aligned.label}")
        ours, theirs = model.info(name).shape, aligned.info(name).shape
        if ours != theirs:
            raise MismatchError(
                f"tensor {name!r}: shape {list(ours)} in {model.label}, {list(theirs)} in the aligned model {aligned.label}"
            )
    extra = next((n for n in aligned.tensors if n not in model.tensors and not may_lack(n, aligned)), None)
    if extra:
        raise MismatchError(f"tensor {extra!r} of the aligned model {aligned.label} is not in {model.label}")


def check_same(name: str, aligned: Checkpoint, unaligned: Checkpoint) -> None:
    """Both hold the tensor, in one shape. Error: MismatchError naming it."""
    for side in (aligned, unaligned):
        if name not in side.tensors:
            raise MismatchError(
                f"tensor {name!r} is not in {side.label}; aligned and unaligned must be one architecture"
            )
    ours, theirs = aligned.info(name).shape, unaligned.info(name).shape
    if ours != theirs:
        raise MismatchError(
            f"tensor {name!r}: shape {list(ours)} in the aligned model {aligned.label}, {list(theirs)} in the unaligned "
            f"model {unaligned.label}; they must be one model before and after alignment"
        )
