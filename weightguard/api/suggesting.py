"""Which repair a kind of change calls for, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weightguard.api.subject import Subject
    from weightguard.comparison.verdict import Verdict

_BY_KIND = {
    "abliteration": "--method undo-abliteration --base BASE: puts back the direction that was removed and nothing else",
    "LoRA merge": "--target delta --aligned BASE: the update has a small rank and lies in known modules; where the adapter "
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


def advice(subject: Subject) -> tuple[str, ...]:
    """What `inspect --base` says of the model that is to be repaired, for the notes of a repair."""
    from weightguard.api.comparing import case_of
    from weightguard.comparison.sides import Side
    from weightguard.comparison.verdict import judge
    from weightguard.statistics.loading import pinned_threads

    if subject.aligned is None:
        return ()
    pairs = {} if subject.adapter is None else dict(subject.factor_pairs())
    with pinned_threads(1):  # the last bits of a matrix product depend on it
        case, _ = case_of(Side(subject.model, subject.adapter, pairs), Side(subject.aligned), {}, lambda *_: None)
        verdict = judge(case)
    said = f"what was done to MODEL since ALIGNED: {verdict.kind} (confidence {verdict.confidence:.2f})"
    return tuple(f"{said}; suggested: {line}" for line in suggested(verdict))
