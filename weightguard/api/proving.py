"""`repair --validate`: what a repair did, before and after, on prompts that it was not calibrated on."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.api.collect import Running, rows_of
from weightguard.api.evaluating import Asking, Sets, evaluated
from weightguard.api.needs import Data
from weightguard.api.strength import PROMPTS
from weightguard.api.subject import open_subject
from weightguard.data import read_rows
from weightguard.data.writing import rows_to_bytes
from weightguard.errors import UsageError
from weightguard.measurement import ROLES
from weightguard.validate.overlap import check_disjoint, plain_prompt
from weightguard.validate.splitting import halves, unseen

if TYPE_CHECKING:
    from weightguard.data import Dataset
    from weightguard.measurement import Report

Progress = Callable[[str, int, int], None]


def read_evaluation(said: Sequence[str]) -> dict[str, str]:
    """Role -> file from `harmful=FILE` and the like. Error: UsageError."""
    found: dict[str, str] = {}
    for each in said:
        role, equals, place = each.partition("=")
        role = role.replace("-", "_")
        if not equals or role not in ROLES or not place:
            raise UsageError(f"--evaluation {each}: give ROLE=FILE with one of {', '.join(ROLES)}")
        if role in found:
            raise UsageError(f"--evaluation {role}: given twice")
        found[role] = place
    return found


@contextlib.contextmanager
def shared_out(
    data: Data, sets: Mapping[str, str], *, uses_safety: bool
) -> Iterator[tuple[Data, dict[str, str], tuple[str, ...]]]:
    """(what to repair with, what to evaluate on, notes on a split): as given, or the safety prompts for one or for both.

    No prompt that the repair sees is evaluated on. Parts are files for as long as this lasts. Errors: UsageError, DataError.
    """
    others = [read_rows(each) for each in _seen(dataclasses.replace(data, safety=None))]
    if "harmful" in sets:
        _check_disjoint(sets, [*others, *([read_rows(str(data.safety))] if _is_rows(data.safety) else [])])
        yield data, dict(sets), ()
        return
    if data.safety is None:
        raise UsageError(
            "--validate needs prompts to evaluate on: --evaluation harmful=FILE, or --safety to take a part of"
        )
    prompts = {plain_prompt(row.prompt) for other in others for row in other.rows}
    rows, _ = rows_of(data.safety, data.limit, "safety")
    used, kept = halves(rows, PROMPTS, prompts) if uses_safety else (None, unseen(rows, prompts))
    with tempfile.TemporaryDirectory(prefix="weightguard-") as folder:
        sets = {**sets, "harmful": _written(kept, Path(folder), "evaluation")}
        _check_disjoint(sets, others)
        if used is None:
            yield dataclasses.replace(data, safety=None), sets, ()
            return
        note = f"--safety was split: {len(used.rows)} prompts to repair with, {len(kept.rows)} to evaluate on"
        safety = _written(used, Path(folder), "calibration")
        yield (
            dataclasses.replace(data, safety=safety, limit=None),
            sets,
            (f"{note}; --evaluation harmful=FILE keeps it whole",),
        )


def _is_rows(reference: str | None) -> bool:
    return reference is not None and not reference.endswith(".safetensors")


def _seen(data: Data) -> list[str]:
    """References of the rows that a repair looks at."""
    return [
        each for each in (data.harmful, data.safety, data.benign, data.utility) if each is not None and _is_rows(each)
    ]


def _check_disjoint(sets: Mapping[str, str], others: Sequence[Dataset]) -> None:
    for place in sets.values():
        rows = read_rows(place)
        for other in others:
            check_disjoint(rows, other)


def _written(rows: Dataset, folder: Path, name: str) -> str:
    place = folder / f"{Path(rows.source).stem}-{name}.jsonl"
    place.write_bytes(rows_to_bytes(rows.rows))
    return str(place)


def before_and_after(
    model: str,
    out: str,
    aligned: str | None,
    data: Data,
    sets: Mapping[str, str],
    running: Running,
    offline: bool,
    progress: Progress,
) -> Report:
    """The report of the repaired model against the aligned one, with the model before it under `before`."""
    subject = open_subject(model, aligned, offline=offline)
    reference = None if subject.aligned is None else str(subject.aligned.directory)
    asked = Sets(sets, disjoint_from=_seen(data))
    before, after = (evaluated(each, reference, asked, Asking(), running, offline, progress) for each in (model, out))
    under = {"before": before.report.measurements, "reference": after.reference}
    more = [dataclasses.replace(m, condition=name) for name, each in under.items() for m in each if m.value is not None]
    told: dict[str, Any] = {"bounds": {}, "conditions": [], "cells": [], "not_counted": []}
    return dataclasses.replace(
        after.report,
        measurements=(*after.report.measurements, *more),
        settings={**after.report.settings, "validation": told},
    )
