"""Which repair a kind of change calls for, and why: as commands that can be pasted."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightguard.errors import UsageError

if TYPE_CHECKING:
    from weightguard.api.calling import Progress
    from weightguard.comparison.verdict import Verdict

_ALIGNED = "{base} must be the aligned model: over the model before alignment this takes alignment out"
_DELTA = "{model} --method antidote --target delta --aligned {base} -o {out}"
_ADAPTER = (
    "{model} --method antidote --target factor -o {out}",
    "the adapter lies apart from its base: repair its factors and keep the base",
)
# By what abliteration took: the same lines as below, where no one direction is gone from all matrices, or an adapter took it.
_OWN_DIRECTIONS = (
    "{model} --method scale --target delta --strength 1 --scope {roles} --aligned {base} -o {out}",
    "each matrix lost a direction of its own, and no method puts back those alone: this gives {roles} back as they are in "
    "{base}, with whatever else was done to them since; {rest}",
)
_ADAPTED_AWAY = (
    "none for MODEL and adapter together: if the adapter itself takes the direction out, leave it away; if MODEL lost it, "
    "repair MODEL alone with --method undo-abliteration --base {base}, and put the adapter over the result",
)
# By what else is seen of a model on a grid: `details["before"]`.
_QUANTISED = (
    ("{model} --method undo-abliteration --base {base} -o {out}",
     "puts back the direction that is gone from o and down under the rounding; the result lies on no grid until it is "
     "quantised again"),
    ("none that is sure: the model was changed before it was quantised, or rounded with what makes up for it (GPTQ); compare and "
     "repair it as it was before, or measure `repair --target delta` with --validate",),
)  # fmt: skip
# Kind -> (what follows `weightguard repair`, a line each, and why); without a line there is nothing to repair.
_BY_KIND = {
    "abliteration": (
        "{model} --method undo-abliteration --base {base} -o {out}",
        "puts back the direction that was removed and nothing else",
    ),
    "LoRA merge": (
        "{model} --method truncate --rank {rank} --aligned {base} -o {adapter}",
        "{adapter} --method antidote --target factor --aligned {base} -o {out}",
        "the first takes the merged adapter out again, over the untouched base; the second repairs the adapter. With the model "
        "before alignment the second can be --method safe-lora --unaligned UNALIGNED",
    ),
    "full fine-tuning": (
        _DELTA, f"every matrix moved, so the update is what a repair has to sort; {_ALIGNED}",
    ),
    "single-layer edit": (
        "{model} --method scale --target delta --strength 1 --aligned {base} -o {out}",
        "one matrix changed, and goes back to the base's",
    ),
    "model merge or interpolation": (
        _DELTA, f"part of another model was mixed in; {_ALIGNED}",
    ),
    "pruning": ("none: what is gone are entries, not refusals; evaluate the model before it is released",),
    "quantised round trip": (
        "none: only rounding is seen, which can weaken refusals and cannot be undone; what is smaller than a step stays hidden, "
        "so evaluate it as it is",
    ),
}  # fmt: skip
_IN_PART = (
    "none: what could be compared is the aligned model's; `weightguard inspect MODEL --base ALIGNED` names the rest"
)
# What `repair --suggest` says where `inspect`, whose base need not be the aligned model, says nothing.
_OTHERS = {
    "identical": ("none: the weights are those of the aligned model",),
    "re-sharded or re-typed only": ("none: the weights are those of the aligned model, stored otherwise",),
    "identical in what was compared": (_IN_PART,),
    "re-sharded or re-typed only in what was compared": (_IN_PART,),
    "noise": ("none: noise can weaken refusals, but has nothing to undo; evaluate the model as it is",),
    "unrelated model": ("none: this update is another model; name the model that MODEL came from with --aligned",),
    "unknown": (
        _DELTA, "what was done is not known; this assumes no kind of change, but that the harm lies in entries of the update, "
        "so measure it with --validate",
    ),
}  # fmt: skip


def suggested(
    verdict: Verdict, model: str = "MODEL", base: str = "BASE", *, adapted: bool = False, out: str = "OUT"
) -> tuple[str, ...]:
    """The commands, if there are any, and the reason; nothing where the weights are the base's or nothing is known."""
    if verdict.kind not in _BY_KIND:
        return ()
    return _filled(_lines(verdict, adapted), verdict.details, model, base, out)


def _lines(verdict: Verdict, adapted: bool) -> tuple[str, ...]:
    if verdict.kind == "abliteration" and adapted:
        return _ADAPTED_AWAY
    if verdict.kind == "abliteration" and verdict.details.get("roles"):
        return _OWN_DIRECTIONS
    if verdict.kind == "quantised round trip" and not adapted:
        return _quantised(verdict)
    return _ADAPTER if adapted else _BY_KIND[verdict.kind]


def _quantised(verdict: Verdict) -> tuple[str, ...]:
    from weightguard.comparison.kinds.quantised import LOST, MORE, NAME

    return dict(zip((LOST, MORE), _QUANTISED, strict=True)).get(verdict.details.get("before", ""), _BY_KIND[NAME])


def _filled(lines: tuple[str, ...], details: dict[str, Any], model: str, base: str, out: str) -> tuple[str, ...]:
    *commands, why = lines
    places = {"model": model, "base": base, "out": out, "adapter": f"{out.rstrip('/')}-adapter"}
    quoted = {name: shlex.quote(place) for name, place in places.items()}
    known = {"rank": details.get("rank"), "roles": ",".join(details.get("roles") or []), "rest": details.get("rest")}
    return (
        *(f"weightguard repair {line.format(**quoted, **known)}" for line in commands),
        why.format(**places | known),
    )


@dataclass(frozen=True)
class Suggestion:
    """What was done to a model since the aligned one, and the commands that repair that, none where nothing would; why."""

    model: str
    aligned: str
    verdict: Verdict
    commands: tuple[str, ...]
    why: str

    def as_dict(self) -> dict[str, Any]:
        """For `--format json`."""
        import dataclasses

        return dataclasses.asdict(self)


def run_suggest(
    reference: str, aligned: str | None, out: str | None, *, offline: bool, progress: Progress
) -> Suggestion:
    """Compare as `inspect --base` does. Errors: as when a repair opens its model; UsageError without an aligned model."""
    from weightguard.api.comparing import case_of
    from weightguard.api.subject import open_subject
    from weightguard.comparison.sides import Side
    from weightguard.comparison.verdict import judge
    from weightguard.statistics.loading import pinned_threads

    subject = open_subject(reference, aligned, offline=offline)
    if subject.aligned is None:
        raise UsageError("--suggest compares MODEL with the aligned model that it came from; give that with --aligned")
    adapted = subject.adapter is not None
    model = Side(subject.model, subject.adapter, dict(subject.factor_pairs()) if adapted else {})
    with pinned_threads(1):  # the last bits of a matrix product depend on it
        verdict = judge(case_of(model, Side(subject.aligned), {}, progress)[0])
    names = (model.label if adapted else reference, aligned or subject.aligned.label, out or "OUT")
    lines = suggested(verdict, *names[:2], adapted=adapted, out=names[2]) or _filled(
        _OTHERS[verdict.kind], verdict.details, *names
    )
    return Suggestion(model.label, subject.aligned.label, verdict, lines[:-1], lines[-1])
