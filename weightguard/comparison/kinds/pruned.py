"""Pruning: entries became zero, scattered, n of every m, or whole rows and columns."""

from __future__ import annotations

from weightguard.comparison.case import Case, middle
from weightguard.comparison.finding import Check, Finding, check

NAME = "pruning"


def look(case: Case) -> Finding | None:
    cut = [c for c in case.linears if c.zeroed > 0.01 * c.entries]
    if not cut:
        return None
    share = middle([c.zeroed / c.entries for c in cut])
    moved = middle([(c.changed - c.zeroed) / max(1, c.entries - c.zeroed) for c in cut])
    checks = [
        check("{share} of the entries became zero", share, 0.02, 0.1),
        check("in {share} of the changed linears", len(cut) / len(case.linears), 0.5, 0.8),
    ]
    if moved > 0.01:  # the rest was updated to make up for it, as SparseGPT does, or trained on
        checks.append(check("the other entries moved too", share, 0.15, 0.3))
    else:
        checks.append(Check("all other entries are the base's", 1.0))
    details = {"share": share, "pattern": _pattern(cut), "matrices": len(cut), "others_changed": moved > 0.01}
    return Finding(NAME, tuple(checks), details)


def _pattern(cut: list) -> str:
    if all(c.zeroed == c.entries for c in cut):
        return "whole matrices"
    samples = [c.sample for c in cut if c.sample is not None]
    patterns = [s.pattern for s in samples if s.pattern]
    if len(patterns) >= 0.9 * len(samples):
        return max(set(patterns), key=patterns.count)
    for name in ("rows", "columns"):
        share = [getattr(s, f"zero_{name}") / max(s.zero_share, 1e-12) for s in samples]
        if middle(share) > 0.8:
            return f"whole {name}"
    return "unstructured"
