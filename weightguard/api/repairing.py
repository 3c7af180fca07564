"""`repair`: from references and options to a published, verified output."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.api.behaviour import Behaviour, behaviour_inputs, left_behind, read_behaviour, refusals_by_category
from weightguard.api.collect import Progress, Running
from weightguard.api.memory import check_repair
from weightguard.api.needs import Data, Notes, gather
from weightguard.api.reporting import Report, changes_of
from weightguard.api.strength import Calibration, planned, weakest
from weightguard.api.subject import Subject, open_subject
from weightguard.checkpoint.writer import check_free, write_file
from weightguard.errors import UsageError
from weightguard.methods import method_class
from weightguard.methods.inputs import Inputs
from weightguard.options import as_share, configured, settings

if TYPE_CHECKING:
    from weightguard.measurement import Report as Measured
    from weightguard.plan import Plan
    from weightguard.rewrite import Manifest
    from weightguard.statistics.norms import InputNorms


@dataclass(frozen=True)
class Output:
    """Where the result goes. dry_run: the plan only. verify_write: read everything again after it was written.

    resume: keep the shards that a killed run at the same output finished.
    """

    out: str | None = None
    force: bool = False
    dry_run: bool = False
    save_plan: str | None = None
    verify_write: bool = True
    resume: bool = False


@dataclass(frozen=True)
class Repair:
    """What a repair returns. `manifest` and `out` are None after a dry run; `statistics` where the method used data.

    validation: the model before and after, where that was asked for.
    """

    plan: Plan
    manifest: Manifest | None
    report: Report
    out: Path | None
    statistics: InputNorms | None = None
    validation: Measured | None = None


def run_repair(
    reference: str,
    method_name: str,
    options: Mapping[str, Any],
    *,
    aligned: str | None,
    strength: str | float | None,
    data: Data,
    output: Output,
    running: Running,
    offline: bool,
    progress: Progress,
    split: Sequence[str] = (),
) -> Repair:
    """The whole repair. Nothing is written before everything that can be checked was checked.

    split: notes on how --validate shared out the data, since the same line without it would repair with all of them.
    """
    method = _configured(method_name, options, strength)
    _check_output(output)
    notes = Notes(list(split))
    search = getattr(method, "target", None) != "weight"
    subject = open_subject(reference, aligned, data.unaligned, offline=offline, search=search)
    _check_apart(output, subject)
    notes.add(*subject.notes)
    method = method.settled(subject.default_target(), adapter=subject.adapter is not None)
    notes.add(*_fallback_note(method, subject, options))
    check_repair(method, subject, strength, running)
    inputs = gather(method, subject, data, running, notes, progress)
    behaviour = _behaviour(method, subject, data, running, notes)
    if behaviour is not None:
        inputs = behaviour_inputs(behaviour, inputs, subject, running, progress)
    method, plan, calibration = _planned(method, strength, subject, inputs, data, running, notes, progress)
    notes.add(*plan.notes)
    refusals = _refusals(method, plan, inputs, subject, behaviour, running)
    refused, of = (sum(column) for column in zip(*refusals.values(), strict=True)) if refusals else (0, 0)
    if 2 * refused < of:
        notes.add(
            f"warning: it refuses {refused} of the {of} safety prompts it was made with; is --aligned the aligned model?"
        )
    more = [*running.words, *(["--validate"] if split else [])]
    command = command_line(method_name, method, subject, data, strength, more)
    if output.save_plan:
        write_file(Path(output.save_plan), plan.parts(), force=output.force)
    facts = _facts(command, notes, inputs, calibration)
    if behaviour is not None:
        counted = {name: {"refused": refused, "of": of} for name, (refused, of) in refusals.items()}
        facts["behaviour"] = {**behaviour.facts, "refusals": counted}
    manifest = None if output.dry_run else _publish(plan, inputs, subject, output, facts, progress)
    out = None if manifest is None else Path(str(output.out))
    changes = () if manifest is None else changes_of(manifest.edits)
    report = Report(tuple(_all_notes(notes, manifest)), command, _label(plan, subject), changes, calibration, refusals)
    return Repair(plan, manifest, report, out, inputs.harmful)


def _all_notes(notes: Notes, manifest: Manifest | None) -> list[str]:
    """The manifest's notes hold ours and what the rewrite had to say about the files beside the weights."""
    return notes.said if manifest is None else manifest.data["notes"]


def _label(plan: Plan, subject: Subject) -> str | None:
    return subject.aligned.label if plan.needs_aligned and subject.aligned else None


def _configured(name: str, options: Mapping[str, Any], strength: str | float | None) -> Any:
    method = configured(method_class(name), f"--method {name}", options)
    if strength is None:
        return method
    if not hasattr(method, "with_strength"):
        raise UsageError(f"--strength is not an option of --method {name}, which has no strength")
    same = next((key for key in method.STRENGTH if options.get(key) is not None), None)
    if same is not None:
        raise UsageError(f"--strength and --{same} set the same thing; give one of them")
    return method if strength == "auto" else method.with_strength(as_share(strength, "strength"))


def _check_output(output: Output) -> None:
    if output.save_plan is not None:
        check_free(Path(output.save_plan), force=output.force)
    if output.dry_run:
        return
    if output.out is None:
        raise UsageError("-o OUT is missing; or --dry-run for the plan alone")
    from weightguard.rewrite import check_target

    check_target(Path(output.out), output.force)


def _check_apart(output: Output, subject: Subject) -> None:
    from weightguard.rewrite import check_apart

    if output.out is not None and not output.dry_run:
        check_apart(Path(output.out), subject.inputs)
    if output.save_plan is not None:
        check_apart(Path(output.save_plan), subject.inputs, "--save-plan")


def _fallback_note(method: Any, subject: Subject, options: Mapping[str, Any]) -> tuple[str, ...]:
    if method.target != "weight" or options.get("target") is not None or not hasattr(method, "ratio"):
        return ()
    return (
        f"no aligned reference given or found, so entries of the merged weights become zero (ratio {method.ratio} of each "
        f"{method.group}): this rarely heals, because at ratios that do the model is destroyed; with the model it was "
        f"fine-tuned from, --aligned ALIGNED repairs the update instead",
    )


def _behaviour(method: Any, subject: Subject, data: Data, running: Running, notes: Notes) -> Behaviour | None:
    """Safety and benign rows, where the method learns from them."""
    if "safety" not in method.NEEDS:
        return None
    found = read_behaviour(method, subject, data.safety, data.benign, data.limit, running)
    notes.add(*found.notes)
    return found


def _refusals(
    method: Any, plan: Plan, inputs: Inputs, subject: Subject, behaviour: Behaviour | None, running: Running
) -> dict[str, tuple[int, int]]:
    if behaviour is None or behaviour.prompts is None or method.judge == "none":
        return {}
    return refusals_by_category(plan, inputs, subject, behaviour.prompts, running)


def _planned(
    method: Any,
    strength: Any,
    subject: Subject,
    inputs: Inputs,
    data: Data,
    running: Running,
    notes: Notes,
    progress: Progress,
) -> tuple[Any, Plan, Calibration | None]:
    if strength != "auto":
        if data.safety is not None and "safety" not in method.NEEDS:
            raise UsageError("--safety is the calibration data of --strength auto; give both or neither")
        return method, planned(method, inputs, running), None
    method, plan, calibration, note = weakest(subject, method, inputs, data.safety, data.limit, running, progress)
    notes.add(note)
    return method, plan, calibration


def _facts(command: str, notes: Notes, inputs: Inputs, calibration: Calibration | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"command": command, "notes": notes.said}
    if inputs.neurons is not None:
        found = inputs.neurons
        facts["neurons"] = {"sha256": found.digest(), "kind": found.kind, "options": dict(found.options),
                            "data": found.facts.get("data", {})}  # fmt: skip
    for role in ("harmful", "utility"):
        norms = getattr(inputs, role)
        if norms is not None:
            said = {k: v for k, v in norms.facts.items() if k != "threads"}
            facts.setdefault("statistics", {})[role] = {
                "sha256": norms.digest(),
                "counted_tokens": norms.tokens,
                **said,
            }
    if calibration is not None:
        facts["calibration"] = {"strength": str(calibration.strength), **calibration.facts}
    return facts


def _publish(
    plan: Plan, inputs: Inputs, subject: Subject, output: Output, facts: dict[str, Any], progress: Progress
) -> Manifest:
    from weightguard.rewrite import Options, rewrite

    if plan.target == "adapter":
        return _publish_adapter(plan, inputs, subject, output, facts, progress)
    options = Options(force=output.force, verify_write=output.verify_write, resume=output.resume)
    target = Path(str(output.out))
    return rewrite(plan, inputs.sources, target, identities(subject, plan.target), facts, progress, options)


def _publish_adapter(
    plan: Plan, inputs: Inputs, subject: Subject, output: Output, facts: dict[str, Any], progress: Progress
) -> Manifest:
    from weightguard.rewrite import Options, identity, publish_adapter, write_factors

    base = subject.aligned
    assert base is not None
    named = base.label.partition("@")[0] if base.revision else str(base.directory)
    given = {"model": identity(base, whole=True), "tuned": identity(subject.adapter or subject.model, whole=True)}
    facts = {**facts, "notes": [*facts["notes"], *left_behind(inputs, subject)], "plan": plan.digest(),
             "factors": plan.evidence}  # fmt: skip
    options = Options(force=output.force, verify_write=output.verify_write)
    return publish_adapter(
        Path(str(output.out)), lambda place: write_factors(plan, base, named, place),
        (plan.method, plan.paper, plan.options), given, facts, progress, options,
    )  # fmt: skip


def identities(subject: Subject, target: str) -> dict[str, dict[str, Any]]:
    """The inputs of a repair by role, as the manifest names them; "model" is the one whose files are rewritten."""
    from weightguard.rewrite import identity

    if subject.adapter is None:
        found = {"model": identity(subject.model)}
        return found | ({"aligned": identity(subject.aligned)} if target == "delta" and subject.aligned else {})
    if target == "factor":
        return {"model": identity(subject.adapter), "base": identity(subject.model)}
    return {"model": identity(subject.model), "adapter": identity(subject.adapter, whole=True)}


def command_line(name: str, method: Any, subject: Subject, data: Data, strength: Any, more: Sequence[str] = ()) -> str:
    """The line that does this again, with placeholders for paths."""
    model = "MODEL" if subject.adapter is None else "MODEL+ADAPTER"
    words = ["weightguard", "repair", model, "--method", name]
    if subject.adapter is None and subject.aligned is not None and method.target == "delta":
        words += ["--aligned", "ALIGNED"]
    words += [w for role in data.named(method) for w in (f"--{role}", role.upper())]
    said = {
        k: v
        for k, v in settings(method).items()
        if k not in ("strength", *(method.STRENGTH if strength == "auto" else ()))
    }
    words += [w for key, value in said.items() for w in (f"--{key.replace('_', '-')}", str(value))]
    if strength == "auto":
        words += ["--strength", "auto", *(["--safety", "SAFETY"] if data.safety else [])]
    elif "strength" in settings(method):
        words += ["--strength", str(method.strength)]
    words += ["--limit", str(data.limit)] if data.limit else []
    return shlex.join([*words, *more, "-o", "OUT"])
