"""What a tensor is for: role and layer of decoder linears, and of everything around them."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from weightguard.checkpoint import Checkpoint, Linear, decoder_linears, match_linears
from weightguard.checkpoint.naming import FAMILIES, SITES
from weightguard.checkpoint.naming import ROLES as LINEAR_ROLES
from weightguard.errors import WeightguardError

ROLES = ("embed", "position", *LINEAR_ROLES, "norm", "bias", "head", "other")
# What writes to the residual stream: the rows of these are its coordinates.
WRITERS = tuple(role for role, site in SITES.items() if site.endswith("_out"))
_OTHERS = (
    ("embed", r"(embed_tokens|wte|embed_in|word_embeddings)\.weight$"),
    ("position", r"(wpe|embed_positions)\.weight$"),
    ("head", r"(^|\.)(lm_head|embed_out)\.weight$"),
    ("bias", r"\.bias$"),
    ("norm", r"(norm|norm\d|ln_\d|ln_f)\.weight$"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """`layer` is None outside the decoder blocks."""

    role: str
    layer: int | None


def places_of(checkpoint: Checkpoint) -> tuple[dict[str, Linear], dict[str, Place]]:
    """(decoder linears, place of every tensor). An architecture without a row in the table is read by its names."""
    try:
        linears = decoder_linears(checkpoint.config, checkpoint.tensors)
    except WeightguardError:
        linears = _guessed(checkpoint)
    return linears, {name: _place(name, linears) for name in checkpoint.tensors}


def _guessed(checkpoint: Checkpoint) -> dict[str, Linear]:
    paths = [n.removesuffix(".weight") for n in checkpoint.tensors if n.endswith(".weight")]
    matrices = [p for p in paths if len(checkpoint.info(f"{p}.weight").shape) == 2]
    found = max((match_linears(family, matrices) for family in FAMILIES.values()), key=len)
    return {f"{p}.weight": dataclasses.replace(each, tensor=f"{p}.weight") for p, each in found.items()}


def _place(name: str, linears: dict[str, Linear]) -> Place:
    if name in linears:
        return Place(linears[name].role, linears[name].layer)
    layer = re.search(r"\.?(?:layers|h|blocks)\.(\d{1,5})\.", name)
    role = next((role for role, pattern in _OTHERS if re.search(pattern, name)), "other")
    return Place(role, int(layer[1]) if layer else None)


def short_name(name: str) -> str:
    """A tensor's name for tables: without the model. and .weight that nearly all of them have."""
    return name.removeprefix("model.").removesuffix(".weight")
