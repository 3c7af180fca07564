"""Verbs that measure a model against data and judge it against a policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weightguard.api.calling import Progress, silent, text
from weightguard.errors import UsageError

if TYPE_CHECKING:
    from weightguard.measurement import Report
    from weightguard.validate.landscape import Walk
    from weightguard.verdict import Verdict


def evaluate(
    model: str,
    *,
    reference: str | None = None,
    harmful: str | None = None,
    benign: str | None = None,
    over_refusal: str | None = None,
    task: str | None = None,
    lm_eval: Sequence[str] = (),
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
    cipher: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    max_length: int = 2048,
    offline: bool = False,
    progress: Progress = silent,
) -> Report:
    """Measure a checkpoint on evaluation data, alone or against a reference; the report is written to `out` if given.

    lm_eval: tasks of lm-evaluation-harness as TASK[:METRIC], names or .yaml files; each adds a `utility` under the judge
    "lm-eval:TASK:METRIC" (the extra [eval]). Errors: DataError, UsageError, CheckpointError, UndecidedError (a file changed
    meanwhile), those of the judges.
    """
    from weightguard.api.collect import Running
    from weightguard.api.evaluating import Asking, Sets, run_evaluate
    from weightguard.checkpoint.writer import check_free, write_file

    if out is not None:
        check_free(Path(out), force=force)
    given = {"harmful": harmful, "benign": benign, "over_refusal": over_refusal, "task": task}
    data = {role: str(each) for role, each in given.items() if each is not None}
    report = run_evaluate(
        str(model),
        reference,
        Sets(data, judges, disjoint_from, limit, tuple(lm_eval)),
        Asking(match, seed, max_new_tokens, batch_size, examples, cipher),
        Running(device, dtype, threads, max_length),
        offline,
        progress,
        None if out is None else Path(out),
    )
    if out is not None:
        write_file(Path(out), report.to_bytes(), force=force)
    return report


def landscape(
    model: str,
    *,
    harmful: str,
    out: Sequence[str | Path] = (),
    towards: str | None = None,
    plane: bool = False,
    directions: int = 3,
    points: int | None = None,
    reach: float = 0.5,
    basin: str = "contiguous",
    judge: str = "refusal-phrases",
    disjoint_from: Sequence[str] = (),
    seed: int = 0,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    limit: int | None = None,
    force: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    max_length: int = 2048,
    offline: bool = False,
    progress: Progress = silent,
) -> Report:
    """Attack success around a checkpoint: VISAGE over random lines (arXiv:2405.17374), towards another model, or in a plane.

    The weights are moved in memory only. The report holds `landscape`, and for random lines the measurement `visage`; it
    is written to each file of `out` (.json, .svg, .html). Memory: the model three times over, with `plane` or `towards`
    four times. Errors: those of evaluate; MismatchError for another model that does not fit.
    """
    from weightguard.api.collect import Running
    from weightguard.api.gating import checked_outs
    from weightguard.api.landscaping import Asked, run_landscape

    def walk() -> Walk:
        from weightguard.validate.landscape import Walk

        return Walk(directions, points, reach, plane, basin, seed, max_new_tokens, batch_size)

    asked = Asked(str(model), str(harmful), towards, judge, disjoint_from, limit, checked_outs(out), force)
    return run_landscape(asked, walk, Running(device, dtype, threads, max_length), offline, progress)


def gate(
    model: str,
    *,
    policy: str | Path | None = None,
    reference: str | None = None,
    report: str | Path | Sequence[str | Path] | None = None,
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

    With a report no model is run and torch is not imported; several about one model count as one. Each file of `out` gets
    the form its suffix names (`weightguard.report.form_of`). Errors: InputError for a policy or report that is none; a
    verdict of fail or undecided is no error here, `enforce` makes it one.
    """
    from weightguard.api.collect import Running
    from weightguard.api.gating import Gate, checked_outs, run_gate

    given = [report] if isinstance(report, (str, Path)) else report or ()
    reports = tuple(str(each) for each in given)
    asked = Gate(str(model), text(policy), reference, reports, checked_outs(out), force)
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

    return run_verify_verdict(Path(verdict), str(model), text(policy), offline, progress)


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
    from weightguard.report.validation import validation_table

    if not isinstance(result, Report):
        return rendered(result, form).rstrip("\n")
    if form != "human":
        return result.to_bytes().decode().rstrip("\n")
    return validation_table(result) if "validation" in result.settings else report_table(result)


def verdict_forms() -> tuple[str, ...]:
    """The forms a verdict can be rendered in."""
    from weightguard.report import FORMS

    return tuple(FORMS)
