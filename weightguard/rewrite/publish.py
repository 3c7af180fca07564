"""A plan and its sources in, a published directory and its manifest out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightguard.checkpoint import Resolved, open_checkpoint
from weightguard.errors import MismatchError
from weightguard.plan import Plan
from weightguard.rewrite import manifest as manifests
from weightguard.rewrite.card import model_card
from weightguard.rewrite.companions import check_companions, copy_companions, write_companion
from weightguard.rewrite.manifest import Manifest
from weightguard.rewrite.resume import NAME as JOURNAL
from weightguard.rewrite.resume import Journal
from weightguard.rewrite.stage import Stage, check_space
from weightguard.rewrite.stream import Written, write_weights
from weightguard.rewrite.verify import verify_output
from weightguard.weights import Sources

Progress = Callable[[str, int, int], None]
# What the manifest, the card, the index and the file system's own tables may take: a share of the weights, and not more.
SLACK, SHARE = 64 << 20, 8


@dataclass(frozen=True)
class Options:
    """How to write: replace an earlier output, read everything again after the sync, keep what a killed run finished."""

    force: bool = False
    verify_write: bool = True
    resume: bool = False


def rewrite(
    plan: Plan,
    sources: Sources,
    target: Path,
    inputs: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
    progress: Progress,
    options: Options = Options(),
) -> Manifest:
    """Write `target` whole or not at all. `inputs` and `facts` go into the manifest (see `manifest.build`).

    `progress(stage, bytes done, bytes in all)`. Errors: OutputError (exists, locked), CheckpointError, SystemFailure.
    """
    beside = check_companions(sources.model)
    total = sum(info.nbytes for info in sources.model.tensors.values())
    stage = Stage(target, force=options.force, resume=options.resume)
    check_space(target.parent, total + beside + _slack(total) - stage.left_over())
    check_references(sources, progress)
    with stage:
        journal = Journal(stage.path, plan, sources, inputs)
        kept = _kept(journal, stage) if options.resume else Written()
        steps = counted(progress, "write", total)
        written = write_weights(plan, sources, stage.path, steps, kept=kept, finished=journal.add)
        sources.check_unchanged()
        _check_update(plan, written)
        others, notes = copy_companions(sources.model, stage.path)
        facts = {**facts, "notes": [*facts.get("notes", []), *_zeros(plan, written), *notes]}
        manifest = manifests.build(plan, written, inputs, others, facts)
        card = model_card(manifest, sources.model.directory)
        others["README.md"] = write_companion(stage.path / "README.md", card)
        manifest = manifests.build(plan, written, inputs, others, facts)
        write_companion(stage.path / manifests.NAME, manifest.to_bytes())
        if options.verify_write:
            output = open_checkpoint(Resolved(stage.path, None, None, str(target), None))
            verify_output(output, manifest, counted(progress, "verify", total))
        journal.remove()
        stage.publish()
    return manifest


def check_references(sources: Sources, progress: Progress) -> None:
    """The output may hold bytes of the references, of which not all are read: whole, where the hub says their sha256."""
    sizes = [side.headers[file].state.size for side in sources.references for file in side.promised]
    step = counted(progress, "check", sum(sizes))
    for side in sources.references:
        side.check_promised(step)


def _slack(total: int) -> int:
    return min(SLACK, (1 << 20) + total // SHARE)


def _kept(journal: Journal, stage: Stage) -> Written:
    """What is known of the shards of a killed run that are still right; all else is gone from the stage."""
    kept = journal.finished()
    stage.clear({*kept.files_out, JOURNAL})
    journal.begin(kept)
    return kept


def _check_update(plan: Plan, written: Written) -> None:
    """A repair of an update that is nowhere would publish the input as repaired. Error: MismatchError."""
    edited = [written.changes[name] for name in plan.edits]
    if plan.needs_aligned and edited and not any(change.update_norm_before for change in edited):
        raise MismatchError(
            "the update is zero: model and aligned reference are the same in every tensor to be edited; "
            "give the model that was fine-tuned, and as --aligned the one it was fine-tuned from"
        )


def _zeros(plan: Plan, written: Written) -> list[str]:
    """That matrices hold nothing, so that nothing could be taken from them."""
    zero = [name for name in plan.edits if not (written.changes[name].weight_norm or written.changes[name].changed)]
    return [f"{len(zero)} tensors to be edited hold only zeros and were left so (first: {zero[0]})"] if zero else []


def counted(progress: Progress, stage: str, total: int) -> Callable[[int], None]:
    """A callback that takes the bytes of one step and reports the running sum."""
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        progress(stage, done, total)

    return step
