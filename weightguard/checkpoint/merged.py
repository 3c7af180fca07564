"""Two checkpoints that belong together: a base with an adapter over it, a tuned model and its aligned reference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from weightguard.checkpoint.adapter import LoraPair, base_tensors, bypassing, lora_pairs
from weightguard.checkpoint.reader import Checkpoint
from weightguard.errors import MismatchError, UnsupportedError


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


def check_pairing(model: Checkpoint, aligned: Checkpoint, names: list[str]) -> None:
    """Names pair by name, with the same shape; extra, missing or reshaped tensors are a MismatchError naming one.

    Only a head may be in one of them alone: of a tied model some tools write it, and some do not.
    """
    for name in names:
        if _is_head(name) and name not in aligned.tensors:
            continue
        if name not in aligned.tensors:
            raise MismatchError(f"tensor {name!r} of {model.label} is not in the aligned model {aligned.label}")
        ours, theirs = model.info(name).shape, aligned.info(name).shape
        if ours != theirs:
            raise MismatchError(
                f"tensor {name!r}: shape {list(ours)} in {model.label}, {list(theirs)} in the aligned model {aligned.label}"
            )
    extra = next((n for n in aligned.tensors if n not in model.tensors and not _is_head(n)), None)
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


def _is_head(name: str) -> bool:
    return name.removesuffix(".weight").rpartition(".")[2] in ("lm_head", "embed_out")
