"""Verbs that write a repaired model, and that check one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.api.calling import Progress, silent, text
from weightguard.errors import UsageError

if TYPE_CHECKING:
    from weightguard.api.demonstrating import Demo
    from weightguard.api.repairing import Repair
    from weightguard.api.reporting import RoleChange
    from weightguard.api.suggesting import Suggestion
    from weightguard.rewrite import Manifest, Verified


def repair(
    model: str,
    *,
    method: str = "antidote",
    out: str | Path | None = None,
    aligned: str | None = None,
    harmful: str | None = None,
    utility: str | None = None,
    safety: str | None = None,
    benign: str | None = None,
    stats: str | Path | None = None,
    unaligned: str | None = None,
    neurons: str | Path | None = None,
    strength: str | float | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    force: bool = False,
    save_plan: str | Path | None = None,
    validate: bool = False,
    evaluation: Sequence[str] = (),
    verify_write: bool = True,
    resume: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    max_length: int = 2048,
    max_memory: str | int | None = None,
    offline: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> Repair:
    """Repair a checkpoint or an adapter and publish the result at `out`; the input is never touched.

    options: the fields of the method (`weightguard.methods`). validate: then measure it before and after, on the rows of
    `evaluation` (ROLE=FILE), or on a part of `safety` that the repair does not see. max_memory: as in `stats`. Errors: the
    tree in `weightguard.errors`.
    """
    from weightguard.api.collect import Running
    from weightguard.api.memory import as_bytes
    from weightguard.api.needs import Data
    from weightguard.api.proving import before_and_after, read_evaluation, shared_out
    from weightguard.api.repairing import Output, run_repair
    from weightguard.methods import method_class

    data = Data(harmful, utility, safety, benign, text(stats), unaligned, text(neurons), limit)
    output = Output(text(out), force, dry_run, text(save_plan), verify_write, resume)
    running = Running(device, dtype, threads, max_length, as_bytes(max_memory))
    if not validate:
        if evaluation:
            raise UsageError("--evaluation goes with --validate")
        return run_repair(
            str(model), method, options, aligned=aligned, strength=strength, data=data, output=output, running=running,
            offline=offline, progress=progress,
        )  # fmt: skip
    if dry_run:
        raise UsageError("--validate measures a repair that was written; leave --dry-run out")
    uses = strength == "auto" or "safety" in method_class(method).NEEDS
    with shared_out(data, read_evaluation(evaluation), uses_safety=uses) as (used, sets, notes):
        made = run_repair(
            str(model), method, options, aligned=aligned, strength=strength, data=used, output=output, running=running,
            offline=offline, progress=progress, split=notes,
        )  # fmt: skip
        seen = before_and_after(str(model), str(out), aligned, used, sets, running, offline, progress)
    return replace(made, validation=seen)


def suggest(
    model: str,
    *,
    aligned: str | None = None,
    out: str | Path | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> Suggestion:
    """Which repair fits what was done to `model` since `aligned`, as commands that write to `out`; nothing is repaired.

    aligned: None for that of the model card or adapter. Errors: as `repair` has when it opens its model.
    """
    from weightguard.api.suggesting import run_suggest

    return run_suggest(str(model), text(aligned), text(out), offline=offline, progress=progress)


@dataclass(frozen=True)
class Applied:
    """The manifest of a replayed plan and what changed per role."""

    manifest: Manifest
    changes: tuple[RoleChange, ...]
    out: Path


def apply(
    plan: str | Path,
    model: str,
    *,
    out: str | Path,
    aligned: str | None = None,
    unaligned: str | None = None,
    force: bool = False,
    verify_write: bool = True,
    resume: bool = False,
    offline: bool = False,
    progress: Progress = silent,
) -> Applied:
    """Replay a plan saved with `--save-plan` on the model it was made for, and publish the result at `out`."""
    from weightguard.api.replaying import run_apply
    from weightguard.api.reporting import changes_of
    from weightguard.rewrite import Options

    references, options = (aligned, unaligned), Options(force, verify_write, resume)
    manifest = run_apply(Path(plan), str(model), Path(out), references, options, offline, progress)
    return Applied(manifest, changes_of(manifest.edits), Path(out))


@dataclass(frozen=True)
class Verification:
    """The manifest that was checked, what was counted, and the model it was compared with, if any."""

    manifest: Manifest
    verified: Verified
    against: str | None


def verify(
    output: str | Path,
    *,
    against: str | None = None,
    aligned: str | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> Verification:
    """Check every file and tensor of an output against its manifest, and with `against` the input it came from.

    aligned: the model under an adapter that a repair made, where it is not found by the name the adapter has for it.
    Errors: CheckpointError or MismatchError naming the first file or tensor that is not as it should be.
    """
    from weightguard.api.replaying import run_verify

    return Verification(*run_verify(str(output), against, aligned, offline, progress), against)


def demo(directory: str | Path, *, seed: int = 0, force: bool = False, progress: Progress = silent) -> Demo:
    """Attack, repair and controls on the lab model; checkpoints are left in `directory`."""
    from weightguard.api.demonstrating import run_demo

    return run_demo(Path(directory), seed, force, progress)
