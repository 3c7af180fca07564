"""A merge of two known models: the same linear relation between base, second reference and model in every tensor."""

from __future__ import annotations

from weightguard.comparison.case import Case, middle
from weightguard.comparison.finding import Finding, check
from weightguard.comparison.mixes import Mix

NAME = "model merge or interpolation"


def look(case: Case) -> Finding | None:
    findings = [_fits(case, label, found) for label, found in case.mixes.items() if found]
    return max(findings, key=lambda f: f.margin, default=None)


def _fits(case: Case, label: str, found: list[Mix]) -> Finding:
    # What is left beyond the rounding of the stored dtype.
    excess = [max(0.0, m.residual - 2 * m.rounding) for m in found]
    shares = sorted(m.share for m in found)
    spread = shares[int(0.95 * (len(shares) - 1))] - shares[int(0.05 * (len(shares) - 1))]
    share = middle(shares)
    how = "one share for all tensors" if spread < 0.02 else f"shares from {shares[0]:.2f} to {shares[-1]:.2f}"
    away = min(abs(share), abs(share - 1))
    checks = (
        check(f"base + t·({label} − base) leaves {{share}} of the update unexplained", middle(excess), 0.05, 0.0),
        check("and {share} of the worst tensor", max(excess), 0.3, 0.0),
        check("t is {value} away from either end", away, 0.02, 0.1),
        check("rounding alone is {share} of the update", middle([m.rounding for m in found]), 0.4, 0.0),
    )
    ends = [case.base.label, case.others[label].label]
    return Finding(NAME, checks, {"between": ends, "reference": label, "share": share, "how": how})
