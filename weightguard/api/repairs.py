"""Verbs that write a repaired model, and that check one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.api.calling import Progress, silent, text

if TYPE_CHECKING:
    from weightguard.api.demonstrating import Demo
    from weightguard.api.repairing import Repair
    from weightguard.api.reporting import RoleChange
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
    suggest: bool = False,
    verify_write: bool = True,
    resume: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    max_length: int = 2048,
    offline: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> Repair:
    """Repair a checkpoint or an adapter and publish the result at `out`; the input is never touched.

    options: the fields of the method (`weightguard.methods`). Errors: the tree in `weightguard.errors`.
    """
    from weightguard.api.collect import Running
    from weightguard.api.needs import Data
    from weightguard.api.repairing import Output, run_repair

    return run_repair(
        str(model),
        method,
        options,
        aligned=aligned,
        strength=strength,
        data=Data(harmful, utility, safety, benign, text(stats), unaligned, text(neurons), limit),
        output=Output(text(out), force, dry_run, text(save_plan), verify_write, resume, suggest),
        running=Running(device, dtype, threads, max_length),
        offline=offline,
        progress=progress,
    )


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
    output: str | Path, *, against: str | None = None, offline: bool = False, progress: Progress = silent
) -> Verification:
    """Check every file and tensor of an output against its manifest, and with `against` the input it came from.

    Errors: CheckpointError or MismatchError naming the first file or tensor that is not as it should be.
    """
    from weightguard.api.replaying import run_verify

    return Verification(*run_verify(str(output), against, offline, progress), against)


def demo(directory: str | Path, *, seed: int = 0, force: bool = False, progress: Progress = silent) -> Demo:
    """Attack, repair and controls on the lab model; checkpoints are left in `directory`."""
    from weightguard.api.demonstrating import run_demo

    return run_demo(Path(directory), seed, force, progress)
