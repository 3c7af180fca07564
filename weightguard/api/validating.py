"""`validate`: before, after, controls and both under attack, measured alike; and what that says of immunization."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.api.cells import Cell, Result, Store
from weightguard.api.collect import Running
from weightguard.api.evaluating import Asking, identified
from weightguard.api.subject import Subject, open_subject
from weightguard.attacks import attack_class, source_digest
from weightguard.checkpoint.writer import check_apart, check_free, write_file
from weightguard.errors import InputError, UsageError
from weightguard.measurement import MODEL, ROLES, Measurement, Report
from weightguard.options import configured
from weightguard.verdict.grid import BENIGN, Grid
from weightguard.verdict.grid import Cell as Attack

if TYPE_CHECKING:
    from weightguard.data import Dataset
    from weightguard.validate.immunization import Bounds

Progress = Callable[[str, int, int], None]
FLAGS = {"learning_rate": "lr"}  # axis of a grid -> option of an attack, where the names differ
CONTROLS = ("scale", "magnitude", "random")


@dataclass(frozen=True)
class Asked:
    """What `validate` was asked for, as typed. data: references by role. attack_harmful, attack_benign: what attacks train on.

    safety: with it the controls run at automatic strength, without it at the size of the repair. cell: run this one only.
    """

    before: str
    after: str
    reference: str
    data: Mapping[str, str]
    attacks: Path | None
    attack_harmful: str | None = None
    attack_benign: str | None = None
    controls: bool = False
    safety: str | None = None
    judges: Sequence[str] = ("refusal-phrases",)
    disjoint_from: Sequence[str] = ()
    cell: str | None = None


@dataclass(frozen=True)
class Output:
    """Where the report and the finished cells go."""

    out: Path
    work: Path
    force: bool = False


@dataclass(frozen=True)
class Validated:
    """`report` is None where --cell left others to be run: `missing` then names them."""

    report: Report | None
    done: tuple[str, ...]
    missing: tuple[str, ...] = ()


@dataclass
class Plan:
    """Everything about the run that is known before a model is."""

    asked: Asked
    grid: Grid | None
    subjects: Mapping[str, Subject]
    identities: Mapping[str, Any]
    sets: Mapping[str, str] = field(default_factory=dict)
    attack_sets: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, Any] = field(default_factory=dict)
    safety: str | None = None  # sha256 of the rows on which controls find their strength
    notes: list[str] = field(default_factory=list)


def run_validate(
    asked: Asked, bounds: Bounds, asking: Asking, running: Running, output: Output, offline: bool, progress: Progress
) -> Validated:
    """All cells that are not there yet, or the one asked for, and the report when none is missing."""
    plan = _planned(asked, output, offline, progress)
    store = Store(output.work)
    cells = list(_cells(plan, asking, running, offline, progress))
    wanted = cells if asked.cell is None else [_named(cells, asked.cell)]
    found: dict[str, Result] = {}
    for at, cell in enumerate(wanted):
        found[cell.id] = store.result(cell, _within(progress, cell.id, at, len(wanted)))
        progress(f"cells ({cell.id})", at + 1, len(wanted))
    missing = tuple(cell.id for cell in cells if cell.id not in found and not store.is_done(cell))
    if missing:
        return Validated(None, tuple(found), missing)
    found |= {cell.id: store.result(cell, progress) for cell in cells if cell.id not in found}
    report = _report(plan, found, bounds)
    write_file(output.out, report.to_bytes(), force=output.force)
    return Validated(report, tuple(found))


def _within(progress: Progress, name: str, at: int, of: int) -> Progress:
    """What a cell does, as a part of all of them."""
    return lambda stage, done, total: progress(f"cells ({name}: {stage}, {done} of {total})", at, of)


def _named(cells: Sequence[Cell], name: str) -> Cell:
    """The cell of an id; of an attack also without its `attack:`. Error: UsageError listing some."""
    found = next((cell for cell in cells if name in (cell.id, cell.id.removeprefix("attack:"))), None)
    if found is None:
        more = f" and {len(cells) - 5} more" if len(cells) > 5 else ""
        raise UsageError(f"--cell {name}: no such cell; there are {'; '.join(cell.id for cell in cells[:5])}{more}")
    return found


def _planned(asked: Asked, output: Output, offline: bool, progress: Progress) -> Plan:
    """Open, check and split everything. Errors: UsageError, InputError, DataError, MismatchError."""
    check_free(output.out, force=output.force)
    if not asked.data.get("harmful"):
        raise UsageError("--harmful is missing: prompts that are to be refused, held out from repairs and attacks")
    grid = None if asked.attacks is None else _grid(asked.attacks)
    attacks = [] if grid is None else grid.cells()
    for cell in attacks:
        _checked(cell)
    named = {"before": asked.before, "after": asked.after, "reference": asked.reference}
    subjects = {name: open_subject(each, offline=offline, search=False) for name, each in named.items()}
    for place in (output.out, output.work):
        check_apart(place, [path for subject in subjects.values() for path in subject.inputs])
    identities = {name: dict(identified(subject, progress).files) for name, subject in subjects.items()}
    plan = Plan(asked, grid, subjects, identities)
    _share_out(plan, attacks, output.work)
    return plan


def _grid(path: Path) -> Grid:
    if not path.is_file():
        raise InputError(
            f"{path}: {'not a regular' if path.exists() else 'no such'} file; it should be a grid of attacks"
        )
    return Grid.parse(path.read_bytes(), path.name)


def _options(cell: Attack) -> dict[str, Any]:
    said = {FLAGS.get(axis, axis): value for axis, value in cell.values if axis != "attack"}
    return {name: f"{value:.10g}" if isinstance(value, float) else value for name, value in said.items()}


def _checked(cell: Attack) -> Any:
    """The attack of a cell. Error: UsageError naming what it lacks or refuses."""
    attack = configured(attack_class(cell.attack), f"--attack {cell.attack}", _options(cell))
    getattr(attack, "check", lambda: None)()
    return attack


def _share_out(plan: Plan, attacks: Sequence[Attack], work: Path) -> None:
    """Which rows are attacked with and which are evaluated on: as given, or each set in two parts."""
    from weightguard.data import read_rows

    asked = plan.asked
    rows = {role: read_rows(asked.data[role]) for role in ROLES if role in asked.data}
    given = {role: ref for role, ref in (("harmful", asked.attack_harmful), ("benign", asked.attack_benign)) if ref}
    needed = {role for cell in attacks for role in _checked(cell).needs}
    split = {role for role in needed if role not in given}
    plan.sets, plan.attack_sets = dict(asked.data), dict(given)
    if split:
        _split(plan, rows, split, work)
    lacking = next((role for role in sorted(needed) if role not in plan.attack_sets), None)
    if lacking is not None:
        raise UsageError(
            f"the attacks of {asked.attacks} need --attack-{lacking}, or --{lacking} rows to take a part of"
        )
    attacked = {role: read_rows(ref) for role, ref in plan.attack_sets.items()}
    evaluated = {role: read_rows(ref) for role, ref in plan.sets.items()}
    safety = [] if asked.safety is None else [read_rows(asked.safety)]
    _check_disjoint(evaluated, [*attacked.values(), *safety])
    plan.safety = safety[0].sha256 if safety else None
    plan.digests = {"sets": _digests(evaluated), "attack_sets": _digests(attacked),
                    "disjoint_from": [read_rows(each).sha256 for each in asked.disjoint_from]}  # fmt: skip


def _split(plan: Plan, rows: Mapping[str, Dataset], split: set[str], work: Path) -> None:
    """Harmful rows for attackers come from --harmful, harmless ones from --benign and --task together."""
    from weightguard.data.writing import rows_to_bytes
    from weightguard.validate.splitting import halves

    sources = {"harmful": ["harmful"], "benign": ["benign", "task"]}
    for kind in sorted(split):
        parts = {role: halves(rows[role]) for role in sources[kind] if role in rows}
        if not parts:
            continue
        attack = [
            row for first, _ in parts.values() for row in first.rows if row.response is not None or kind == "harmful"
        ]
        plan.attack_sets = {**plan.attack_sets, kind: _written(work, f"attack-{kind}", rows_to_bytes(attack))}
        for role, (_, second) in parts.items():
            plan.sets = {**plan.sets, role: _written(work, f"evaluation-{role}", rows_to_bytes(second.rows))}
        said = " and ".join(f"--{role}" for role in parts)
        plan.notes.append(
            f"no --attack-{kind} was given, so {said} were split: attacks train on {len(attack)} of the rows"
        )


def _written(work: Path, name: str, content: bytes) -> str:
    path = work / "data" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content, force=True)
    return str(path)


def _check_disjoint(evaluated: Mapping[str, Dataset], attacked: Sequence[Dataset]) -> None:
    from weightguard.validate.overlap import check_disjoint

    for other in attacked:
        for dataset in evaluated.values():
            check_disjoint(dataset, other)


def _digests(sets: Mapping[str, Dataset]) -> dict[str, str]:
    return {role: dataset.sha256 for role, dataset in sets.items()}


def _cells(plan: Plan, asking: Asking, running: Running, offline: bool, progress: Progress) -> Iterator[Cell]:
    """Every measurement of the validation, the plain ones first."""
    from weightguard.rewrite.manifest import versions

    asked = plan.asked
    told = {key: value for key, value in vars(asking).items() if key != "cipher"}
    settings = {"device": running.device, "dtype": running.dtype, "threads": running.thread_count,
                "max_length": running.max_length}  # fmt: skip
    common = {"reference": asked.reference, "control": None, "attack": None, "sets": plan.sets, "judges": list(asked.judges),
              "disjoint_from": list(asked.disjoint_from), "asking": told, "running": settings, "offline": offline}  # fmt: skip

    def cell(name: str, side: str, **more: Any) -> Cell:
        job = {**common, "model": getattr(asked, side), **more}
        how = {key: job[key] for key in ("judges", "asking", "running")}
        how |= {key: _plain(more.get(key)) for key in ("control", "attack")} | {"version": versions()["weightguard"]}
        if more.get("control"):
            how["safety"] = plan.safety
        if ":" in (more.get("attack") or {}).get("attack", ""):
            how["plug"] = source_digest(more["attack"]["attack"])
        return Cell(
            name,
            job,
            {"model": plan.identities[side], "reference": plan.identities["reference"], **plan.digests, **how},
        )

    yield cell(MODEL, "after")
    yield cell("before", "before")
    for name, control in _controls(plan, progress).items():
        yield cell(f"control:{name}", "before", control={"method": name, "aligned": _aligned(plan), **control})
    for each in plan.grid.cells() if plan.grid is not None else ():
        roles = {role: plan.attack_sets[role] for role in _checked(each).needs}
        yield cell(f"attack:{each}", "after", attack={"attack": each.attack, **roles, **_options(each)})


def _plain(said: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Without the places of files, whose content counts."""
    places = ("harmful", "benign", "aligned", "safety")
    return None if said is None else {key: value for key, value in said.items() if key not in places}


def _aligned(plan: Plan) -> str | None:
    """An adapter's reference is its own base."""
    return None if plan.subjects["before"].adapter is not None else plan.asked.reference


def _controls(plan: Plan, progress: Progress) -> dict[str, dict[str, Any]]:
    """Method -> options of `repair`, at automatic strength where there are prompts for it, else of the repair's size."""
    if not plan.asked.controls:
        return {}
    if plan.asked.safety is not None:
        return {name: {"strength": "auto", "safety": plan.asked.safety, "target": "delta"} for name in CONTROLS}
    from weightguard.api.sizes import size_of

    size = size_of(plan.subjects["before"], plan.subjects["after"], plan.subjects["reference"], progress)
    plan.notes.append(
        f"size of the repair: {size.changed:.1%} of the entries of the update changed, {size.left:.3f} of its norm is left"
    )
    found = {}
    if size.left < 1:
        found["scale"] = {"strength": f"{1 - size.left:.6f}", "target": "delta"}
    if size.changed < 0.995:
        found |= {name: {"strength": f"{size.changed:.6f}", "target": "delta"} for name in ("magnitude", "random")}
    left_out = [name for name in CONTROLS if name not in found]
    if left_out:
        plan.notes.append(
            f"no control of that size: {', '.join(left_out)}; compare with the reference, which is full rollback"
        )
    return found


def _report(plan: Plan, found: Mapping[str, Result], bounds: Bounds) -> Report:
    """The report of AFTER against the reference, with every other measurement under its condition."""
    from weightguard.validate.immunization import Tried, conditions

    first = found[MODEL]
    measured = [*first.report.measurements, *_under("reference", first.reference)]
    for name, result in found.items():
        if name != MODEL:
            measured += _under(name, [m for m in result.report.measurements if m.value is not None])
        if name.startswith("attack:"):
            measured += _under(f"reference {name}", result.reference)
    cells = plan.grid.cells() if plan.grid is not None else []
    tried = [Tried(f"attack:{cell}", cell.attack, cell.steps, cell.attack in BENIGN) for cell in cells]
    report = dataclasses.replace(first.report, measurements=tuple(measured), notes=(*first.report.notes, *plan.notes))
    kept = [each for each in tried if not _collapsed(plan, report, each.condition)]
    said = conditions(report, kept, bounds, disjoint=bool(plan.asked.disjoint_from))
    told = {"bounds": vars(bounds), "conditions": said, "cells": [each.condition for each in tried],
            "not_counted": [each.condition for each in tried if each not in kept]}  # fmt: skip
    return dataclasses.replace(report, settings={**report.settings, "validation": json.loads(json.dumps(told))})


def _under(condition: str, measured: Sequence[Measurement]) -> list[Measurement]:
    return [dataclasses.replace(m, condition=condition) for m in measured]


def _collapsed(plan: Plan, report: Report, condition: str) -> bool:
    from weightguard.verdict.rules import collapsed

    retention = None if plan.grid is None else plan.grid.bound_min_retention
    return collapsed(report, condition, retention) is not None
