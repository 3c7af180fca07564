"""`gate` and `verify VERDICT`: a policy applied to a report, new or given. With a report no torch is imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightguard.api.collect import Running
from weightguard.api.evaluating import Asking, Sets, evaluated, identified
from weightguard.api.subject import Subject, open_subject
from weightguard.checkpoint import strict_json
from weightguard.checkpoint.writer import check_apart, check_free, write_file
from weightguard.errors import GateFailed, InputError, MismatchError, UndecidedError, UsageError
from weightguard.measurement import Report
from weightguard.report import form_of, rendered
from weightguard.verdict import FAIL, PASS, Binding, Policy, PolicyFile, Reason, Verdict, joined, judge, shipped_policy
from weightguard.verdict.policy import SHIPPED

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Gate:
    """What `gate` was asked: paths and references as typed."""

    model: str
    policy: str | None
    reference: str | None
    reports: Sequence[str]
    outs: Sequence[str]
    force: bool


def run_gate(asked: Gate, running: Running, offline: bool, progress: Progress) -> Verdict:
    """The verdict, written to every output, in the form its suffix names. Bad input of any kind ends it before."""
    forms = {out: form_of(out) for out in asked.outs}
    for out in asked.outs:
        check_free(Path(out), force=asked.force)
    policy = read_policy(asked.policy)
    given = [(Path(each).name, read_report(Path(each))) for each in asked.reports]
    report = joined(given) if given else None
    subject = open_subject(asked.model, offline=offline, search=False)
    reference = None if asked.reference is None else open_subject(asked.reference, offline=offline, search=False)
    for out in asked.outs:
        check_apart(Path(out), [p for s in (subject, reference) if s is not None for p in s.inputs])
        check_apart(Path(out), [Path(each) for each in (*asked.reports, asked.policy) if each is not None])
    binding, report = _bound(asked, policy, report, subject, reference, running, offline, progress)
    home = next((out for out, form in forms.items() if form == "json"), None)
    named = PolicyFile(policy.name, _way(asked.policy, home), policy.sha256)
    verdict = Verdict(named, binding.model, binding.reference, judge(policy, report, binding), report, _version())
    texts = {out: rendered(verdict, form) for out, form in forms.items()}
    for out, text in texts.items():
        write_file(Path(out), text.encode(), force=asked.force)
    return verdict


def _bound(
    asked: Gate,
    policy: Policy,
    report: Report | None,
    subject: Subject,
    reference: Subject | None,
    running: Running,
    offline: bool,
    progress: Progress,
) -> tuple[Binding, Report | None]:
    """The files as they are, and the report: the one given, or one made now with the data the policy names."""
    if report is None and policy.data:
        sets, asking = _asked(policy, asked.policy)
        found = evaluated(asked.model, asked.reference, sets, asking, running, offline, progress)
        return Binding(found.report.model, found.report.reference, found.changed), found.report
    model = identified(subject, progress)
    other = None if reference is None else identified(reference, progress)
    return Binding(model, other), report


def _asked(policy: Policy, path: str | None) -> tuple[Sets, Asking]:
    """How the policy wants the model to be asked. Local files are looked for beside the policy."""
    folder = Path("." if path is None else path).parent
    data = {role: _beside(folder, name) for role, name in (policy.data or {}).items()}
    told = dict(policy.asking or {})
    limit = told.pop("limit", None)
    judges = tuple(_judge_beside(folder, spec) for spec in policy.judges) or ("refusal-phrases",)
    seed = policy.seeds[0] if policy.seeds else 0
    sets = Sets(data, judges, tuple(_beside(folder, name) for name in policy.disjoint_from), limit)
    return sets, Asking(**told, seed=seed)


def _beside(folder: Path, name: str) -> str:
    place = folder / name
    return str(place) if os.path.lexists(place) else name


def _judge_beside(folder: Path, spec: str) -> str:
    head, colon, place = spec.rpartition(":") if "://" not in spec else ("", "", spec)
    return f"{head}{colon}{_beside(folder, place)}" if place else spec


def read_policy(path: str | None) -> Policy:
    """The policy of a file, the shipped one for None. Error: InputError."""
    if path is None:
        return Policy.parse(shipped_policy(), SHIPPED)
    return Policy.parse(_raw(Path(path), "a policy"), Path(path).name)


def read_report(path: Path) -> Report:
    """The report of a file. Error: InputError."""
    return Report.from_dict(strict_json.parse(_raw(path, "a report"), path.name), path.name)


def _raw(path: Path, what: str) -> bytes:
    if not path.is_file():
        raise InputError(f"{path}: {'not a regular' if path.exists() else 'no such'} file; it should be {what}")
    if path.stat().st_size > strict_json.MAX_BYTES:
        raise InputError(f"{path.name}: {path.stat().st_size} bytes; this is not {what}")
    return path.read_bytes()


def _way(policy: str | None, verdict: str | None) -> str | None:
    if policy is None or verdict is None:
        return None
    return os.path.relpath(os.path.realpath(policy), os.path.realpath(Path(verdict).parent))


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("weightguard")
    except PackageNotFoundError:
        return "unknown"


def enforce(verdict: Verdict) -> None:
    """Nothing for a pass. Errors: GateFailed, UndecidedError, naming the first rule that is to blame."""
    if verdict.verdict == PASS:
        return
    blamed = [r for r in verdict.reasons if (r.status == FAIL) == (verdict.verdict == FAIL) and r.status != PASS]
    more = f" (and {len(blamed) - 1} more)" if len(blamed) > 1 else ""
    said = f"{blamed[0].rule}: {blamed[0].said}{more}"
    if verdict.verdict == FAIL:
        raise GateFailed(f"the gate says no: {said}")
    raise UndecidedError(f"undecided, which is not a pass: {said}")


def run_verify_verdict(path: Path, model: str, policy: str | None, offline: bool, progress: Progress) -> Verdict:
    """The verdict, when not one byte of it, of the policy or of any file of the checkpoint is another, and when the
    policy applied to the report in it gives the same reasons again. Errors: InputError, MismatchError."""
    raw = _raw(path, "a verdict")
    verdict = Verdict.from_dict(strict_json.parse(raw, path.name), path.name)
    if verdict.to_bytes() != raw:
        raise InputError(f"{path.name}: was changed after it was written; these are not the bytes of its verdict")
    rules = _verified_policy(path, verdict, policy)
    found = identified(open_subject(model, offline=offline, search=False), progress, "verify")
    differing = found.differing(verdict.model)
    if differing:
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise MismatchError(f"{path.name}: is about other files than {model}: {differing[0]} differs{more}")
    _check_again(path, verdict, rules)
    return verdict


def _verified_policy(path: Path, verdict: Verdict, given: str | None) -> Policy:
    said = verdict.policy
    if given is not None:
        found = read_policy(given)
    elif said.file is not None:
        found = read_policy(str(path.parent / said.file))
    else:
        found = read_policy(None)
    if found.sha256 != said.sha256:
        where = given or said.file or SHIPPED
        raise MismatchError(
            f"{path.name}: was made with another policy than {where} (sha256 {said.sha256[:12]}, there {found.sha256[:12]}); "
            f"give the one it was made with: --policy"
        )
    return found


def _check_again(path: Path, verdict: Verdict, policy: Policy) -> None:
    """A verdict is a function of policy, report and files; who changed it and sealed it again is found out here."""
    stated = tuple(reason for reason in verdict.reasons if reason.rule != "binding.unchanged")
    again: tuple[Reason, ...] = judge(policy, verdict.report, Binding(verdict.model, verdict.reference))
    if stated != again:
        raise InputError(f"{path.name}: its reasons are not what the policy makes of its report")


def checked_outs(outs: Sequence[str | Path]) -> tuple[str, ...]:
    """Outputs as text, none twice. Error: UsageError."""
    found = tuple(str(out) for out in outs)
    if len(set(found)) != len(found):
        raise UsageError("-o: the same file twice")
    return found
