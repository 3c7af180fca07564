"""Which repair a kind of change calls for, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weightguard.comparison.verdict import Verdict

_BY_KIND = {
    "abliteration": "--method undo-abliteration --aligned BASE: puts back the direction that was removed and nothing else",
    "LoRA merge": "--target delta --aligned BASE: the update has a small rank and lies in a few modules; where the adapter "
    "itself is at hand, repair that (--target factor) and keep the base",
    "full fine-tuning": "--target delta --aligned BASE: every matrix moved, so the update is what a repair has to sort",
    "single-layer edit": "--method scale --strength 1 --aligned BASE: one matrix changed, and goes back to the base's",
    "model merge or interpolation": "--target delta --aligned BASE: part of another model was mixed in",
    "pruning": "none: what is gone are entries, not refusals; evaluate the model before it is released",
    "quantised round trip": "none: rounding noise can weaken refusals, but has nothing to undo; evaluate it as it is",
}


def suggested(verdict: Verdict) -> tuple[str, ...]:
    """Lines of advice; none where the weights are the base's or nothing is known of the change."""
    said = _BY_KIND.get(verdict.kind)
    return () if said is None else (said,)
