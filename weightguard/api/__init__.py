"""The verbs of weightguard as functions. This folder is the only one that composes the others.

Every function takes what the command of the same name takes, and returns objects; nothing heavy is imported before it
is called. `progress(stage, done, total)` is called often; bytes for "read", "write" and "verify", else counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.errors import UsageError

if TYPE_CHECKING:
    from weightguard.api.comparing import Comparison
    from weightguard.api.demonstrating import Demo
    from weightguard.api.inspecting import Inspection
    from weightguard.api.repairing import Repair
    from weightguard.api.reporting import RoleChange
    from weightguard.rewrite import Manifest, Verified
    from weightguard.statistics.norms import InputNorms

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """A progress that shows nothing."""


def inspect(model: str, *, offline: bool = False, digests: bool = True, progress: Progress = silent) -> Inspection:
    """Tensors, shards, roles, dtypes, tied weights, digests and problems of a checkpoint, without torch.

    model: a directory, `org/name[@revision]` or MODEL+ADAPTER. Errors: CheckpointError, SystemFailure.
    """
    from weightguard.api.inspecting import run_inspect

    return run_inspect(str(model), offline=offline, digests=digests, progress=progress)


def compare(
    model: str,
    base: str | None = None,
    *,
    aligned: str | None = None,
    unaligned: str | None = None,
    spectra: bool = False,
    html: str | Path | None = None,
    force: bool = False,
    offline: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """What was changed in `model` since `base`, where, how, and how it lies to the alignment direction; no model is run.

    model: a directory, `org/name[@revision]`, an adapter or MODEL+ADAPTER. base: None for an adapter's own base, or
    `aligned`. html: also write the report there. Errors: CheckpointError, UsageError, OutputError, SystemFailure.
    """
    from weightguard.api.comparing import run_compare, write_page
    from weightguard.checkpoint.writer import check_free

    if html is not None:
        check_free(Path(html), force=force)
    references = (_text(base), _text(aligned), _text(unaligned))
    found = run_compare(str(model), *references, spectra=spectra, offline=offline, progress=progress)
    if html is not None:
        write_page(found, Path(html), force=force)
    return found


def stats(
    model: str,
    *,
    data: str | None = None,
    tokens: str = "all",
    out: str | Path | None = None,
    force: bool = False,
    limit: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    max_length: int = 2048,
    offline: bool = False,
    progress: Progress = silent,
) -> InputNorms:
    """Input norms of every decoder linear on `data` (None: the shipped harmful prompts), written to `out` if given.

    Errors: DataError, CheckpointError, UnsupportedError, OutputError.
    """
    from weightguard.api.collect import Running, collect, encoded
    from weightguard.api.subject import open_subject
    from weightguard.checkpoint.writer import check_free, write_file

    if out is not None:
        check_free(Path(out), force=force)
    running = Running(device, dtype, threads, max_length)
    subject = open_subject(str(model), offline=offline, search=False)
    if out is not None:
        from weightguard.rewrite import check_apart

        check_apart(Path(out), subject.inputs)
    found, _ = encoded(subject, data, "harmful", tokens, limit, running)
    norms = collect(subject, found, running, progress)
    if out is not None:
        write_file(Path(out), norms.to_bytes(), force=force)
    return norms


def repair(
    model: str,
    *,
    method: str = "antidote",
    out: str | Path | None = None,
    aligned: str | None = None,
    harmful: str | None = None,
    utility: str | None = None,
    safety: str | None = None,
    stats: str | Path | None = None,
    unaligned: str | None = None,
    strength: str | float | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    force: bool = False,
    save_plan: str | Path | None = None,
    verify_write: bool = True,
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
        data=Data(harmful, utility, safety, _text(stats), unaligned, limit),
        output=Output(_text(out), force, dry_run, _text(save_plan), verify_write),
        running=Running(device, dtype, threads, max_length),
        offline=offline,
        progress=progress,
    )


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)


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
    offline: bool = False,
    progress: Progress = silent,
) -> Applied:
    """Replay a plan saved with `--save-plan` on the model it was made for, and publish the result at `out`."""
    from weightguard.api.replaying import run_apply
    from weightguard.api.reporting import changes_of

    references = (aligned, unaligned)
    manifest = run_apply(Path(plan), str(model), Path(out), references, force, verify_write, offline, progress)
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


def method_options(name: str | None = None) -> dict[str, dict[str, Any]]:
    """Flags of one method, or of all: name -> help, choices, default, type and the methods that have it."""
    import dataclasses

    from weightguard.methods import METHODS, method_class

    if name is not None and name not in METHODS:
        raise UsageError(f"--method {name}: unknown; methods are {', '.join(METHODS)}")
    found: dict[str, dict[str, Any]] = {}
    for each in METHODS if name is None else (name,):
        for field in dataclasses.fields(method_class(each)):
            said = {**field.metadata, "default": field.default, "type": str(field.type), "methods": []}
            entry = found.setdefault(field.name, said)
            entry["methods"].append(each)
    return found
