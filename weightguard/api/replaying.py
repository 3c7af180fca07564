"""`apply` and `verify`: plans and outputs that exist already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from weightguard.api.repairing import identities
from weightguard.api.subject import open_subject
from weightguard.checkpoint import open_checkpoint, resolve
from weightguard.errors import MismatchError, UsageError
from weightguard.plan import Edit, Plan

if TYPE_CHECKING:
    from weightguard.checkpoint import Checkpoint
    from weightguard.rewrite import Manifest, Options, Verified
    from weightguard.weights import Sources

Progress = Callable[[str, int, int], None]


def run_apply(
    path: Path,
    reference: str,
    out: Path,
    references: tuple[str | None, str | None],
    options: Options,
    offline: bool,
    progress: Progress,
) -> Manifest:
    from weightguard.rewrite import check_apart, check_target, rewrite

    check_target(out, options.force)
    plan = Plan.load(path)
    subject = open_subject(reference, *references, offline=offline, search=plan.needs_aligned)
    check_apart(out, subject.inputs)
    sources = subject.sources(plan.target)
    if plan.needs_unaligned and subject.unaligned is None:
        raise UsageError("this plan projects on aligned minus unaligned; give --unaligned")
    _check_fits(plan, sources)
    given = " --aligned ALIGNED" if plan.target == "delta" and subject.adapter is None else ""
    given += " --unaligned UNALIGNED" if plan.needs_unaligned else ""
    model = "MODEL" if subject.adapter is None else "MODEL+ADAPTER"
    facts = {"command": f"weightguard apply PLAN {model}{given} -o OUT", "notes": list(subject.notes)}
    return rewrite(plan, sources, out, identities(subject, plan.target), facts, progress, options)


def _check_fits(plan: Plan, sources: Sources) -> None:
    for name, edit in plan.edits.items():
        if name not in sources.model.tensors:
            raise MismatchError(f"the plan edits tensor {name!r}, which {sources.model.label} does not have")
        shape, said = list(sources.model.info(name).shape), plan.evidence.get(name, {}).get("shape")
        if said is not None and said not in (shape, shape[::-1]):
            raise MismatchError(f"the plan was made for a tensor {name!r} of shape {said}, here it is {shape}")
        _check_size(edit, shape[::-1] if name in sources.linears and sources.linears[name].transposed else shape)


def _check_size(edit: Edit, shape: list[int]) -> None:
    """What an edit holds must fit the tensor, (out, in); a plan is a file, and may come from anywhere."""
    if len(shape) != 2 or not edit.fits((shape[0], shape[1])):
        raise MismatchError(f"the plan's edit of tensor {edit.tensor!r} does not fit its shape {shape}")


def run_verify(
    output: str, against: str | None, aligned: str | None, offline: bool, progress: Progress
) -> tuple[Manifest, Verified]:
    import dataclasses

    from weightguard.rewrite import Manifest, counted, recount_factors, verify_against, verify_output

    opened = open_checkpoint(resolve(output, offline=offline))
    manifest = Manifest.read(opened.directory)
    if aligned is not None and not (manifest.factors and against):
        raise UsageError("--aligned: goes with --against, where the output is an adapter that a repair made")
    total = sum(info.nbytes for info in opened.tensors.values())
    verified = verify_output(opened, manifest, counted(progress, "verify", total))
    if against is None:
        return manifest, verified
    if manifest.factors:
        sources = _under(opened, against, aligned, offline)
        recounted = recount_factors(opened, manifest, sources, counted(progress, "compare", total))
        return manifest, dataclasses.replace(verified, factors_recounted=recounted)
    before = _before(against, manifest, offline)
    identical, recounted = verify_against(opened, manifest, before, counted(progress, "compare", total))
    return manifest, dataclasses.replace(verified, untouched_identical=identical, changed_recounted=recounted)


def _under(output: Checkpoint, against: str, aligned: str | None, offline: bool) -> Sources:
    """The tuned weights that an adapter was made from, and the aligned ones that it lies over."""
    subject = open_subject(against, offline=offline, search=False)
    if subject.adapter is None:
        base = aligned or output.config.get("base_model_name_or_path")
        subject = open_subject(against, str(base), offline=offline)
    return subject.sources("delta")


def _before(against: str, manifest: Manifest, offline: bool) -> Sources:
    """The tuned weights the output was made from; the aligned model is not needed to recount changes."""
    from weightguard.weights import Sources

    subject = open_subject(against, offline=offline, search=False)
    target = manifest.data["target"]
    if target == "adapter":
        raise UsageError(
            "--against: this output is an adapter made anew, there is nothing of the model in it to compare"
        )
    if "adapter" in manifest.data["inputs"] and subject.adapter is None:
        raise UsageError("--against: this output was made from an adapter; give ADAPTER or MODEL+ADAPTER")
    if subject.adapter is not None:
        return subject.sources("factor" if target == "factor" else "delta")
    return Sources(subject.model, None, None, subject.named)
