"""The kind of change: the first of KINDS whose every check holds, with a confidence calibrated on generated cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weightguard.comparison.calibration import confidence
from weightguard.comparison.case import Case, middle
from weightguard.comparison.finding import Finding
from weightguard.comparison.kinds import KINDS
from weightguard.comparison.kinds.identical import REASONS
from weightguard.comparison.places import ROLES

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verdict:
    """confidence: how often a verdict of this margin was right among the generated cases, see `calibration`.

    evidence: the checks in words. nearest: for "unknown", the kind that came nearest and what it failed on.
    """

    kind: str
    confidence: float
    margin: float
    evidence: tuple[str, ...]
    details: dict[str, Any]
    nearest: str | None = None


def judge(case: Case) -> Verdict:
    """The verdict on one case. Kinds are asked in order, and those after the first that holds are not."""
    failed: list[Finding] = []
    for kind in KINDS:
        found = kind.look(case)
        if found is not None and found.holds:
            said = tuple(check.said for check in found.checks)
            return Verdict(found.kind, confidence(found.kind, found.margin), found.margin, said, dict(found.details))
        failed += [] if found is None else [found]
    return _unknown(case, failed)


def _unknown(case: Case, failed: list[Finding]) -> Verdict:
    if not failed:
        return Verdict(
            UNKNOWN,
            confidence(UNKNOWN, 1.0),
            1.0,
            (_seen(case), *(("no kind is about changes of these alone",) if case.changes else ())),
            {},
        )
    best = max(failed, key=lambda f: (f.margin, sum(c.margin >= 0 for c in f.checks)))
    lost = "; ".join(c.said for c in best.checks if c.margin < 0)
    margin = min(1.0, -best.margin)
    said = (_seen(case), f"no kind fits; the nearest, {best.kind}, fails on: {lost}")
    return Verdict(UNKNOWN, confidence(UNKNOWN, margin), margin, said, {}, best.kind)


def _seen(case: Case) -> str:
    """What changed, where no kind says it."""
    changed = case.changed
    if not case.changes:
        lost = ", ".join(f"{len(names)} {REASONS[key]}" for key, names in case.gaps.items() if names)
        return f"nothing could be compared: {lost or 'there are no tensors'}"
    if not changed:
        return f"none of {len(case.changes)} tensors that could be compared changed"
    roles = ", ".join(role for role in ROLES if any(c.role == role for c in changed))
    entries, size = middle([c.changed_share for c in changed]), middle([c.relative for c in changed])
    return (
        f"{len(changed)} of {len(case.changes)} tensors changed ({roles}): {100 * entries:.3g} % of the entries of the "
        f"middle one, by {size:.3g} of the size of its weights"
    )
