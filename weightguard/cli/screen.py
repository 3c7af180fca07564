"""What people see: progress on stderr, results on stdout as tables or as JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from weightguard.api import render

if TYPE_CHECKING:
    from weightguard.api import Applied, Verification
    from weightguard.api.demonstrating import Demo
    from weightguard.api.finetuning import Finetuned
    from weightguard.api.grading import Verdict
    from weightguard.api.inspecting import Inspection
    from weightguard.api.locating import Located
    from weightguard.api.measuring import InputNorms
    from weightguard.api.repairing import Plan, Repair
    from weightguard.api.reporting import RoleChange
    from weightguard.api.strength import Calibration

MODULES = 30  # lines of the table of modules; a large model has hundreds
_SLOW = "cells"  # a stage each part of which is long enough to be told of
_BYTES = ("read", "write", "verify", "compare")
_NOT_SHOWN = re.compile(r"[^\n -~]")
Report = Callable[[str, int, int], None]


@contextlib.contextmanager
def progress() -> Iterator[Report]:
    """A bar for the stage at work, with rate and time left, on a terminal; elsewhere one line when a stage is done."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>20}"), BarColumn(), TextColumn("{task.fields[amount]}"),
               TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, tuple[Any, float]] = {}
        quiet_since = time.monotonic()  # a stage's first report comes after its first piece of work

        def report(said: str, done: int, total: int) -> None:
            nonlocal quiet_since
            stage = said.partition(" (")[0]  # what stands in brackets changes on the way, the loss for example
            if stage not in tasks:
                for earlier, _ in tasks.values():
                    bars.remove_task(earlier)
                tasks.clear()
                tasks[stage] = (bars.add_task(stage, total=total, amount=""), quiet_since)
            task, started = tasks[stage]
            quiet_since = time.monotonic()
            bars.update(
                task,
                description=said,
                completed=done,
                total=total,
                amount=_amount(stage, done, total, time.monotonic() - started),
            )

        yield report


def _amount(stage: str, done: int, total: int, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    if stage.split()[-1] in _BYTES:
        return f"{done / 1e6:.1f} / {total / 1e6:.1f} MB  {rate / 1e6:.0f} MB/s"
    return f"{done} / {total}  {rate:.3g}/s"


def _lines() -> Report:
    started: dict[str, float] = {}
    quiet_since = time.monotonic()
    cells = 0

    def report(said: str, done: int, total: int) -> None:
        nonlocal quiet_since, cells
        stage = said.partition(" (")[0]
        begin = started.setdefault(stage, quiet_since)
        if stage == _SLOW and done > cells:
            cells = done
            print(f"{said}: {_amount(stage, done, total, time.monotonic() - begin)}", file=sys.stderr)
        elif done == total:
            quiet_since = time.monotonic()
            print(f"{said}: {_amount(stage, done, total, quiet_since - begin)}", file=sys.stderr)
            started.pop(stage)

    return report


def table(headings: list[str], rows: list[list[str]]) -> None:
    """Plain columns, the first to the left, the others to the right; as wide as they need to be, one line a row."""
    cells = [[_shown(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    for number, row in enumerate(cells):
        line = "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        click.echo(click.style(line.rstrip(), bold=True) if number == 0 else line.rstrip())


def _shown(path: object) -> str:
    """A path or a name on one line, whatever characters it has: nothing in it is obeyed by the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))


def _json(value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a narrow terminal encoding, or a path that is not UTF-8
        text = json.dumps(value, indent=2, default=str)
    click.echo(_NOT_SHOWN.sub(_escaped, text))


def _escaped(found: re.Match[str]) -> str:
    """What JSON may hold as it is, and a terminal obeys: DEL, C1 controls, marks that turn the direction of writing."""
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def show_inspection(found: Inspection, form: str, tensors: bool) -> None:
    if form == "json":
        _json(dataclasses.asdict(found))
        return
    kind = f"{found.kind}, {found.architecture or 'unknown architecture'}"
    click.echo(_shown(f"{found.label}: {kind}{_commit(found.revision)}"))
    click.echo(f"{found.parameters:,} parameters in {len(found.tensors)} tensors, {found.nbytes / 1e6:,.1f} MB")
    click.echo(_shown(f"dtypes: {_counted(found.counts('dtype'))}"))
    click.echo(_shown(f"roles:  {_counted(found.role_counts()) or 'none known'}"))
    click.echo(_shown(f"tied:   {', '.join(found.tied) or 'nothing'}") + "\n")
    rows = [
        [n, str(f["tensors"]), f"{f['bytes'] / 1e6:.1f}", f.get("sha256", "not read")] for n, f in found.files.items()
    ]
    table(["shard", "tensors", "MB", "sha256"], rows)
    if tensors:
        click.echo()
        rows = [[t.name, t.dtype, str(list(t.shape)), t.role or "", (t.sha256 or "")[:16]] for t in found.tensors]
        table(["tensor", "dtype", "shape", "role", "sha256"], rows)
    click.echo("\nproblems: " + ("none found" if not found.problems else ""))
    for problem in found.problems:
        click.echo(_shown(f"  ! {problem}"))


def _commit(revision: str | None) -> str:
    return f", commit {revision}" if revision else ""


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{key} x {number}" for key, number in counts.items())


def show_statistics(found: InputNorms, out: str, form: str) -> None:
    if form == "json":
        _json(
            {
                "out": out,
                "counted_tokens": found.tokens,
                "linears": len(found.sums),
                "unseen": list(found.unseen),
                "sha256": found.digest(),
                **found.facts,
            }
        )
        return
    data = found.facts["data"]
    click.echo(f"{len(found.sums)} linears, {found.tokens} tokens counted in {data['rows']} rows of {data['source']}")
    if found.unseen:
        first = next(iter(found.unseen))
        click.echo(
            f"no counted token reached {len(found.unseen)} of them, experts of which nothing is known (first: {first})"
        )
    click.echo(f"tokens: {found.facts['tokens']}, template: {found.facts['template']}, dtype: {found.facts['dtype']}")
    click.echo(f"wrote {_shown(out)}")


def show_neurons(result: Located, form: str) -> None:
    found = result.neurons
    if form == "json":
        shown = {"kind": found.kind, "options": dict(found.options), "facts": found.facts, "notes": result.notes}
        _json({"out": str(result.out), "sha256": found.digest(), "tensors": result.summary(), **shown})
        return
    for note in result.notes:
        click.echo(_shown(f"* {note}"), err=True)
    click.echo(f"kind {found.kind} ({found.paper})")
    click.echo("options: " + ", ".join(f"{key} {value}" for key, value in found.options.items()) + "\n")
    marked = {"rank": "directions", "rate": "slow tensors"}.get(result.form, "marked")
    rows = [
        [role, str(row["tensors"]), f"{row['entries']:,}", f"{row['marked']:,}", f"{100 * row['share']:.3g} %"]
        for role, row in result.summary().items()
    ]
    table(["role", "tensors", "entries", marked, "share"], rows)
    click.echo(f"\nwrote {_shown(result.out)}; again by:\n  {result.command}")


def show_repair(result: Repair, form: str) -> None:
    report = result.report
    if form == "json":
        _json(_repair_json(result))
        return
    for note in report.notes:
        click.echo(_shown(f"* {note}"), err=True)
    click.echo(f"method {result.plan.method} ({result.plan.paper}), target {result.plan.target}")
    click.echo("options: " + ", ".join(f"{key} {value}" for key, value in result.plan.options.items()))
    if report.aligned:
        click.echo(f"aligned: {report.aligned}")
    if report.calibration is not None:
        _show_calibration(report.calibration)
    for category, (refused, of) in report.refusals.items():
        click.echo(f"refuses {refused} of {of} safety prompts of category {category or '(none given)'}")
    click.echo()
    _show_modules(result.plan)
    if result.manifest is None:
        _show_plan(result.plan)
        click.echo(f"\ndry run, nothing was written; again by:\n  {report.command}")
        return
    if result.plan.target == "adapter":
        click.echo(f"{len(result.plan.edits)} linears as a LoRA adapter over the aligned model")
    else:
        _show_changes(report.changes)
    click.echo(f"\nwrote {_shown(result.out)}; again by:\n  {report.command}")
    if result.validation is not None:
        click.echo(f"\n{render(result.validation, 'human')}")


def _repair_json(result: Repair) -> dict[str, Any]:
    report = result.report
    said: dict[str, Any] = {"method": result.plan.method, "target": result.plan.target, "options": dict(result.plan.options),
                            "notes": report.notes, "aligned": report.aligned, "command": report.command}  # fmt: skip
    if report.calibration is not None:
        said["calibration"] = {"strength": str(report.calibration.strength), **report.calibration.facts}
    if report.refusals:
        said["refusals"] = {name: {"refused": refused, "of": of} for name, (refused, of) in report.refusals.items()}
    if result.manifest is None:
        return {**said, "plan": {"sha256": result.plan.digest(), "evidence": result.plan.evidence}}
    changes = [dataclasses.asdict(change) for change in report.changes]
    if result.validation is not None:
        said["validation"] = result.validation.as_dict()
    return {**said, "out": str(result.out), "changes": changes, "manifest": result.manifest.data}


def _show_calibration(calibration: Calibration) -> None:
    walked = "  ".join(f"{s}: {refused}/{judged}" for s, refused, judged in calibration.steps)
    click.echo(
        f"strength {calibration.strength}: the weakest that reaches {calibration.facts['target_refusal']} refusals"
    )
    click.echo(f"refused / judged on the way (a failing step stops early): {walked}")


def _show_modules(plan: Plan) -> None:
    """How each module lies to the alignment direction, lowest cosine first; JSON has all of them."""
    seen = sorted((e for e in plan.evidence.values() if "cosine" in e), key=lambda e: (e["cosine"], e["module"]))
    if not seen:
        return
    rows = [
        [e["module"], f"{e['cosine']:.4f}", f"{e['kept']:.4g}", "all" if e["rank"] is None else str(e["rank"]),
         f"{e['update_left']:.3f}", "projected" if e["projected"] else ""]
        for e in seen[:MODULES]
    ]  # fmt: skip
    table(["module", "cosine", "|C*update| / |update|", "rank", "update left", ""], rows)
    more = f", {len(seen) - MODULES} more in --format json" if len(seen) > MODULES else ""
    before = math.hypot(*(e["update_norm"] for e in seen))
    after = math.hypot(*(e["update_norm"] * e["update_left"] for e in seen))
    done = sum(e["projected"] for e in seen)
    click.echo(f"projected {done} of {len(seen)} modules{more}; of the whole update {after / before:.3f} is left\n")


def _show_plan(plan: Plan) -> None:
    rows: dict[str, list[int]] = {}
    for said in (plan.evidence[name] for name in plan.edits if name in plan.evidence):
        size = said["shape"][0] * said["shape"][1]
        row = rows.setdefault(said["role"], [0, 0, 0])
        for i, value in enumerate((1, size, said.get("selected", said.get("selected_at_most", size)))):
            row[i] += value
    table(["role", "tensors", "entries", "selected"], [[role, *(f"{v:,}" for v in row)] for role, row in rows.items()])


def _show_changes(changes: Sequence[RoleChange]) -> None:
    if not changes:
        click.echo("nothing was edited: the output holds the input's weights")
        return
    rows = []
    for c in changes:
        counts = [f"{v:,}" for v in (c.tensors, c.entries, c.selected, c.changed)]
        left = "-" if c.update_left is None else f"{c.update_left:.3f}"
        rows.append([c.role, *counts, f"{100 * c.change_share:.3g} %", f"{c.change_over_weight:.3g}", left])
    table(["role", "tensors", "entries", "selected", "changed", "share", "change/weight", "update left"], rows)


def show_apply(result: Applied, form: str) -> None:
    if form == "json":
        _json({"out": str(result.out), "manifest": result.manifest.data})
        return
    _show_changes(result.changes)
    click.echo(f"\nwrote {_shown(result.out)}")


def show_verification(result: Verification, form: str) -> None:
    checked = result.verified
    if form == "json":
        _json({"ok": True, "against": result.against, **dataclasses.asdict(checked)})
        return
    click.echo(f"{checked.files} files and {checked.tensors} tensors have the digests of the manifest")
    click.echo(f"{checked.edited} edited tensors, all finite")
    if checked.untouched_identical is not None:
        click.echo(f"{checked.untouched_identical} untouched tensors are identical to {result.against}")
        click.echo(f"{checked.changed_recounted:,} changed entries recounted, as the manifest says")
    if checked.factors_recounted is not None:
        click.echo(f"{checked.factors_recounted} linears recounted: as far from aligned and tuned as the manifest says")
    click.echo("verified")


def show_finetune(result: Finetuned, form: str) -> None:
    if form == "json":
        _json({"out": str(result.out), "notes": result.notes, "command": result.command, "trained": result.trained,
               "losses": result.losses, "salora": result.starts, "manifest": result.manifest.data})  # fmt: skip
        return
    for note in result.notes:
        click.echo(_shown(f"* {note}"), err=True)
    data = result.manifest.data
    click.echo("options: " + ", ".join(f"{key} {value}" for key, value in data["options"].items()))
    last = result.losses[-10:]
    click.echo(f"{result.trained:,} entries trained in {len(result.losses)} steps; loss {result.losses[0]:.4f} at first, "
               f"{sum(last) / len(last):.4f} over the last {len(last)} steps")  # fmt: skip
    if result.starts:
        _show_starts(result.starts)
    click.echo(f"\nwrote {_shown(result.out)}; again by:\n  {result.command}")


def _show_starts(starts: Mapping[str, Mapping[str, float]]) -> None:
    """Least, median and most over the modules of what SaLoRA measured."""
    words = {"spectral_gap": "spectral gap at the safety rank", "safety_energy": "share of the safety outputs held",
             "smallest_angle": "smallest angle of safety and task, degrees", "mean_angle": "mean angle, degrees",
             "initialisation_kept": "share of the start left by C"}  # fmt: skip
    click.echo()
    rows = []
    for key, text in words.items():
        values = sorted(start[key] for start in starts.values())
        rows.append([text, *(f"{v:.3g}" for v in (values[0], values[len(values) // 2], values[-1]))])
    table([f"salora, {len(starts)} modules", "least", "median", "most"], rows)


def show_report(text: str, out: str, form: str) -> None:
    click.echo(text)
    if form == "human":
        click.echo(f"\nwrote {_shown(out)}")


def show_verified_verdict(verdict: Verdict, form: str) -> None:
    if form == "json":
        _json({"ok": True, "verdict": verdict.verdict, "files": len(verdict.model.files)})
        return
    click.echo(f"{len(verdict.model.files)} files, the policy and the verdict are what they were")
    click.echo(f"verified; the verdict is: {verdict.verdict}")


def show_demo(result: Demo, form: str) -> None:
    if form == "json":
        _json(result.as_dict())
        return
    for line in result.opening:
        click.echo(line)
    click.echo()
    table(result.headings, result.rows())
    click.echo()
    for line in result.closing:
        click.echo(line)
