"""Several reports about one model as one: what `evaluate` measured and what `landscape` did, under one policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from weightguard.errors import MismatchError
from weightguard.measurement import Measurement, Report

# Settings that a policy may ask about; where two reports both have one, it must be the same.
_ASKED = ("seed", "match", "max_new_tokens", "template_sha256", "dtype")


def joined(reports: Sequence[tuple[str, Report]]) -> Report:
    """(name, report) pairs as one report with the settings of the first. Error: MismatchError where two do not fit."""
    (first, whole), *others = reports
    for name, report in others:
        _check(first, whole, name, report)
        better = _keys(m for m in report.measurements if m.value is not None)
        known = [m for m in whole.measurements if _key(m) not in better]  # what was unknown gives way to a value
        whole = dataclasses.replace(
            whole,
            reference=whole.reference or report.reference,
            measurements=(*known, *(m for m in report.measurements if _key(m) not in _keys(known))),
            data={**report.data, **whole.data},
            settings={**report.settings, **whole.settings},
            notes=tuple(dict.fromkeys((*whole.notes, *report.notes))),
            examples=(*whole.examples, *report.examples),
            landscape=whole.landscape or report.landscape,
        )
    return whole


def _check(first: str, whole: Report, name: str, report: Report) -> None:
    differing = report.model.differing(whole.model)
    if differing:
        raise MismatchError(f"{name}: is about another model than {first}: {differing[0]} differs")
    if report.reference and whole.reference and report.reference.differing(whole.reference):
        raise MismatchError(f"{name}: compares with another reference than {first}")
    role = next((r for r in report.data if r in whole.data and report.data[r] != whole.data[r]), None)
    if role is not None:
        raise MismatchError(f"{name}: was measured on other {role} rows than {first}")
    both = [key for key in _ASKED if key in report.settings and key in whole.settings]
    other = next((key for key in both if report.settings[key] != whole.settings[key]), None)
    if other is not None:
        values = report.settings[other], whole.settings[other]
        raise MismatchError(
            f"{name}: was made with {other} {values[0]}, {first} with {values[1]}; make one of them again"
        )
    twice = _keys(m for m in report.measurements if m.value is not None) & _keys(
        m for m in whole.measurements if m.value is not None
    )
    if twice:
        raise MismatchError(f"{name}: measures {min(twice)[0]} again, which {first} has; give one of them")


def _key(m: Measurement) -> tuple[str, str, str]:
    return m.name, m.judge or "", m.condition


def _keys(measurements: Iterable[Measurement]) -> set[tuple[str, str, str]]:
    return {_key(m) for m in measurements}
