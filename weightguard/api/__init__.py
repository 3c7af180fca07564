"""The verbs of weightguard as functions. This folder is the only one that composes the others.

Every function takes what the command of the same name takes, and returns objects; nothing heavy is imported before it
is called. `progress(stage, done, total)` is called often; bytes for "read", "write" and "verify", else counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.errors import UsageError

if TYPE_CHECKING:
    from weightguard.api.demonstrating import Demo
    from weightguard.api.inspecting import Inspection
    from weightguard.api.repairing import Repair
    from weightguard.api.reporting import RoleChange
    from weightguard.gate import Verdict
    from weightguard.measurement import Report
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
    from weightguard.api.repairing import Data, Output, run_repair

    return run_repair(
        str(model),
        method,
        options,
        aligned=aligned,
        strength=strength,
        data=Data(harmful, utility, safety, None if stats is None else str(stats), limit),
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
    force: bool = False,
    verify_write: bool = True,
    offline: bool = False,
    progress: Progress = silent,
) -> Applied:
    """Replay a plan saved with `--save-plan` on the model it was made for, and publish the result at `out`."""
    from weightguard.api.replaying import run_apply
    from weightguard.api.reporting import changes_of

    manifest = run_apply(Path(plan), str(model), Path(out), aligned, force, verify_write, offline, progress)
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


def evaluate(
    model: str,
    *,
    reference: str | None = None,
    harmful: str | None = None,
    benign: str | None = None,
    over_refusal: str | None = None,
    task: str | None = None,
    judges: Sequence[str] = ("refusal-phrases",),
    disjoint_from: Sequence[str] = (),
    out: str | Path | None = None,
    force: bool = False,
    limit: int | None = None,
    match: str = "exact",
    seed: int = 0,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    examples: int = 3,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    max_length: int = 2048,
    offline: bool = False,
    progress: Progress = silent,
) -> Report:
    """Measure a checkpoint on evaluation data, alone or against a reference; the report is written to `out` if given.

    Errors: DataError, UsageError, CheckpointError, UndecidedError (a file changed meanwhile), those of the judges.
    """
    from weightguard.api.collect import Running
    from weightguard.api.evaluating import Asking, Sets, run_evaluate
    from weightguard.checkpoint.writer import check_free, write_file

    if out is not None:
        check_free(Path(out), force=force)
    given = {"harmful": harmful, "benign": benign, "over_refusal": over_refusal, "task": task}
    report = run_evaluate(
        str(model),
        reference,
        Sets({role: str(each) for role, each in given.items() if each is not None}, judges, disjoint_from, limit),
        Asking(match, seed, max_new_tokens, batch_size, examples),
        Running(device, dtype, threads, max_length),
        offline,
        progress,
    )
    if out is not None:
        write_file(Path(out), report.to_bytes(), force=force)
    return report


def gate(
    model: str,
    *,
    policy: str | Path | None = None,
    reference: str | None = None,
    report: str | Path | None = None,
    out: Sequence[str | Path] = (),
    force: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    max_length: int = 2048,
    offline: bool = False,
    progress: Progress = silent,
) -> Verdict:
    """Apply a policy (None: the shipped one) to a report, or to an evaluation made now with the data the policy names.

    With a report no model is run and torch is not imported. Each file of `out` gets the form its suffix names
    (`weightguard.report.form_of`). Errors: InputError for a policy or report that is none; a verdict of fail or
    undecided is no error here, `enforce` makes it one.
    """
    from weightguard.api.collect import Running
    from weightguard.api.gating import Gate, checked_outs, run_gate

    asked = Gate(str(model), _text(policy), reference, _text(report), checked_outs(out), force)
    return run_gate(asked, Running(device, dtype, threads, max_length), offline, progress)


def verify_verdict(
    verdict: str | Path,
    *,
    model: str,
    policy: str | Path | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> Verdict:
    """The verdict of a file, when it, its policy and every file of `model` are what they were. No torch.

    policy: where the policy lies now, if not where the verdict says. Errors: InputError, MismatchError.
    """
    from weightguard.api.gating import run_verify_verdict

    return run_verify_verdict(Path(verdict), str(model), _text(policy), offline, progress)


def is_verdict(output: str | Path, model: str | None, policy: str | None, against: str | None) -> bool:
    """Whether `verify` is asked about a verdict: a file is one, a directory is an output. Error: UsageError."""
    if Path(output).is_file():
        if model is None or against is not None:
            raise UsageError("a verdict is verified with --model MODEL, and without --against")
        return True
    if model is not None or policy is not None:
        raise UsageError("--model and --policy go with a verdict, which is a file; an output is verified without them")
    return False


def enforce(verdict: Verdict) -> None:
    """Nothing for a pass; else GateFailed (exit code 1) or UndecidedError (7)."""
    from weightguard.api import gating

    gating.enforce(verdict)


def render(result: Report | Verdict, form: str) -> str:
    """A report as "human" or "json", a verdict in any form of `verdict_forms`."""
    from weightguard.measurement import Report
    from weightguard.report import rendered
    from weightguard.report.table import report_table

    if not isinstance(result, Report):
        return rendered(result, form).rstrip("\n")
    return report_table(result) if form == "human" else result.to_bytes().decode().rstrip("\n")


def verdict_forms() -> tuple[str, ...]:
    """The forms a verdict can be rendered in."""
    from weightguard.report import FORMS

    return tuple(FORMS)


def demo(directory: str | Path, *, seed: int = 0, force: bool = False, progress: Progress = silent) -> Demo:
    """Attack, repair and controls on the lab model; checkpoints are left in `directory`."""
    from weightguard.api.demonstrating import run_demo

    return run_demo(Path(directory), seed, force, progress)


def method_options(name: str | None = None) -> dict[str, dict[str, Any]]:
    """Flags of one method, or of all: name -> help, choices, default and the methods that have it."""
    import dataclasses

    from weightguard.methods import METHODS, method_class

    if name is not None and name not in METHODS:
        raise UsageError(f"--method {name}: unknown; methods are {', '.join(METHODS)}")
    found: dict[str, dict[str, Any]] = {}
    for each in METHODS if name is None else (name,):
        for field in dataclasses.fields(method_class(each)):
            entry = found.setdefault(field.name, {**field.metadata, "default": field.default, "methods": []})
            entry["methods"].append(each)
    return found
