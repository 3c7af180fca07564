"""Nothing changed: every value is the base's, in the same files."""

from __future__ import annotations

from weightguard.comparison.case import Case
from weightguard.comparison.finding import Check, Finding

NAME = "identical"


def look(case: Case) -> Finding | None:
    if case.changed or not case.is_complete or not same_layout(case):
        return None
    return Finding(NAME, (Check(f"all {len(case.changes)} tensors hold the same values, in the same files", 1.0),))


def same_layout(case: Case) -> bool:
    """The same tensors with the same dtypes in the same files, and no adapter over them."""
    sides = [(info.name, info.file, info.dtype) for info in case.model.files.tensors.values()]
    return sides == [(i.name, i.file, i.dtype) for i in case.base.files.tensors.values()] and not case.model.pairs
