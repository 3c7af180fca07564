"""What tensor names tell of how a checkpoint was saved, where no stock language model would find its weights by them."""

from __future__ import annotations

import re
from collections.abc import Collection

from weightguard.checkpoint.naming import family_of, is_known, sees
from weightguard.checkpoint.shapes import OUTPUT_EMBEDDINGS

# What stock classes put before the list of layers; what stands before that again is of a module around the model.
_PLACES = (
    "model.language_model.model.", "model.language_model.", "language_model.model.", "language_model.", "model.decoder.",
    "decoder.", "model.", "transformer.", "gpt_neox.", "",
)  # fmt: skip
_OTHER_HEADS = ("score.weight", "classifier.weight", "qa_outputs.weight")


def foreign_names(config: dict, names: Collection[str]) -> str | None:
    """What is odd about the names and what to do, or None."""
    return _wrapped(config, names) or _old_norms(names) or _other_head(names)


def _wrapped(config: dict, names: Collection[str]) -> str | None:
    if not is_known(config) or sees(config):
        return None
    block = family_of(config).block
    layer = re.compile(rf"(?:^|\.)(?={block}\.\d{{1,5}}\.)")
    places = {name[: match.end()] for name in names if (match := layer.search(name))}
    around = {_outside(place): place + block for place in sorted(places)}
    if not around or "" in around:
        return None
    outer, first = min(around.items())
    return (
        f"tensors are named {first}..., as saved from a module around the model; save the model in it, whose names "
        f"have no {outer!r}"
    )


def _outside(place: str) -> str:
    """What stands before the longest place of a stock class, of which every component is whole."""
    return place.removesuffix(next(each for each in _PLACES if f".{place}".endswith(f".{each}")))


def _old_norms(names: Collection[str]) -> str | None:
    old = next((name for name in names if name.endswith((".gamma", ".beta"))), None)
    return old and f"tensor {old!r}: gamma and beta were once what norms hold; transformers asks for weight and bias"


def _other_head(names: Collection[str]) -> str | None:
    head = next((name for name in _OTHER_HEADS if name in names), None)
    if head is None or any(name.endswith(OUTPUT_EMBEDDINGS) for name in names):
        return None
    return (
        f"tensor {head!r} is the head of a classifier, and there is no lm_head; what runs a language model needs one, "
        f"or one that is tied to the embedding"
    )
