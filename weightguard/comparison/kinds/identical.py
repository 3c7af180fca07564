"""Nothing changed: every value is the base's, in the same files."""

from __future__ import annotations

from weightguard.comparison.case import Case
from weightguard.comparison.finding import Check, Finding

NAME = "identical"
REASONS = {
    "reshaped": "of other shapes", "unread": "stored as packed or 8 bit numbers", "only_model": "in MODEL only",
    "only_base": "in BASE only", "not_finite": "with NaN or infinity",
}  # fmt: skip
IN_PART = " in what was compared"  # a kind of its own: of the rest nothing is known


def look(case: Case) -> Finding | None:
    if case.changed or not case.changes:
        return None
    if not case.is_complete:
        return Finding(NAME + IN_PART, part(case, "hold the same values"))
    if not same_layout(case):
        return None
    return Finding(NAME, (Check(f"all {len(case.changes)} tensors hold the same values, in the same files", 1.0),))


def part(case: Case, said: str) -> tuple[Check, ...]:
    """That all that could be compared is so, how much it is, and why not more."""
    lost = ", ".join(f"{len(names)} {REASONS[key]}" for key, names in case.gaps.items() if names)
    cut = sum(c.rows_left_out > 0 for c in case.changes)
    missing = ", ".join(each for each in (lost, f"rows of {cut} (another vocabulary)" if cut else "") if each)
    whole = f"{len(case.changes)} tensors that could be compared, {100 * case.compared_share:.3g} % of MODEL's numbers"
    return Check(f"all {whole}, {said}", 1.0), Check(f"not compared: {missing}", 1.0)


def same_layout(case: Case) -> bool:
    """The same tensors with the same dtypes in the same files, and no adapter over them."""
    sides = [(info.name, info.file, info.dtype) for info in case.model.files.tensors.values()]
    return sides == [(i.name, i.file, i.dtype) for i in case.base.files.tensors.values()] and not case.model.pairs
