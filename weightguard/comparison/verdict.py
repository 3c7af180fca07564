"""The kind of change: the first of KINDS whose every check holds, with a confidence calibrated on generated cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weightguard.comparison.calibration import confidence
from weightguard.comparison.case import Case
from weightguard.comparison.finding import Finding
from weightguard.comparison.kinds import KINDS

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
    return _unknown(failed)


def _unknown(failed: list[Finding]) -> Verdict:
    if not failed:
        return Verdict(UNKNOWN, confidence(UNKNOWN, 1.0), 1.0, ("no kind could be asked about",), {})
    best = max(failed, key=lambda f: (f.margin, sum(c.margin >= 0 for c in f.checks)))
    lost = "; ".join(c.said for c in best.checks if c.margin < 0)
    margin = min(1.0, -best.margin)
    return Verdict(
        UNKNOWN, confidence(UNKNOWN, margin), margin, (f"no kind fits; the nearest, {best.kind}, fails on: {lost}",), {}, best.kind
    )  # fmt: skip
