"""The same weights in other files or another dtype: every tensor is the base's, rounded once or not at all."""

from __future__ import annotations

from weightguard.comparison.case import Case
from weightguard.comparison.finding import Check, Finding
from weightguard.comparison.kinds.identical import IN_PART, part, same_layout

NAME = "re-sharded or re-typed only"


def look(case: Case) -> Finding | None:
    if not case.changes or (not case.changed and same_layout(case)) or any(not c.casts for c in case.changed):
        return None
    ours, theirs = (sorted({side.dtype(c.name) for c in case.changes}) for side in (case.model, case.base))
    details = {"dtypes": "/".join(ours), "base_dtypes": "/".join(theirs), "rounded_tensors": len(case.changed)}
    how = f"rounded once to {case.changed[0].casts[-1]}" if case.changed else "value for value"
    if not case.is_complete:
        return Finding(NAME + IN_PART, part(case, f"are the base's, {how}"), details)
    said = f"every one of {len(case.changes)} tensors is the base's, {how}"
    return Finding(NAME, (Check(said, 1.0),), details)
