"""Which repair a kind of change calls for, and why."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weightguard.api.subject import Subject
    from weightguard.comparison.verdict import Verdict

_ALIGNED = "BASE must be the aligned model: over the model before alignment this takes alignment out"
_ADAPTER = (
    "--method antidote --target factor",
    "the adapter lies apart from its base: repair its factors and keep the base",
)
# Kind -> (options of `weightguard repair MODEL`, why); without options there is nothing to repair.
_BY_KIND = {
    "abliteration": ("--method undo-abliteration --base {base}", "puts back the direction that was removed and nothing else"),
    "LoRA merge": (
        "--method truncate --rank {rank} --aligned {base}",
        "takes the merged adapter out again, over the untouched base; then repair the adapter: weightguard repair OUT "
        "--method antidote --target factor, or --method safe-lora --unaligned UNALIGNED",
    ),
    "full fine-tuning": (
        "--method antidote --target delta --aligned {base}",
        f"every matrix moved, so the update is what a repair has to sort; {_ALIGNED}",
    ),
    "single-layer edit": (
        "--method scale --target delta --strength 1 --aligned {base}", "one matrix changed, and goes back to the base's",
    ),
    "model merge or interpolation": (
        "--method antidote --target delta --aligned {base}",
        f"part of another model was mixed in; {_ALIGNED}",
    ),
    "pruning": ("", "none: what is gone are entries, not refusals; evaluate the model before it is released"),
    "quantised round trip": ("", "none: rounding noise can weaken refusals, but has nothing to undo; evaluate it as it is"),
}  # fmt: skip


def suggested(verdict: Verdict, model: str = "MODEL", base: str = "BASE", *, adapted: bool = False) -> tuple[str, ...]:
    """The command, if there is one, and the reason; nothing where the weights are the base's or nothing is known of the change."""
    if verdict.kind not in _BY_KIND:
        return ()
    options, why = _ADAPTER if adapted else _BY_KIND[verdict.kind]
    if not options:
        return (why,)
    said = options.format(base=shlex.quote(base), rank=verdict.details.get("rank"))
    return f"weightguard repair {shlex.quote(model)} {said} -o OUT", why


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
    lines = suggested(verdict, base="ALIGNED", adapted=subject.adapter is not None)
    return (f"{said}; suggested: {': '.join(lines)}",) if lines else ()
