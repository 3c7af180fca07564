"""A merged LoRA: matrices changed by updates of one small rank, above the floor that rounding leaves."""

from __future__ import annotations

from collections import Counter

from weightguard.comparison.case import Case, middle
from weightguard.comparison.finding import Finding, check

NAME = "LoRA merge"


def look(case: Case) -> Finding | None:
    found = list(case.spectra.values())
    if not found:
        return None
    rank = Counter(s.rank for s in found).most_common(1)[0][0]
    near = [s for s in found if abs(s.rank - rank) <= max(1, 0.1 * rank)]
    vectors = [c for c in case.changed if not c.is_matrix]
    checks = (
        check("{share} of the changed linears have an update of one rank", len(near) / len(found), 0.7, 1.0),
        check("it is {share} of the directions seen", middle([rank / len(s.values) for s in found]), 0.55, 0.2),
        check(f"rank {rank} holds {{share}} of the update", middle([s.captured(rank) for s in found]), 0.4, 0.95),
        check("cosine of update and base {value}", middle([abs(c.along_base or 0) for c in case.linears]), 0.15, 0.0),
        check("{value} changed tensors are norms or biases", len(vectors), 0.5, 0.0),
        check("rank at least {value}", rank, 0.5, 1.0),
    )
    others = sorted({c.role for c in case.changed if c.is_matrix} - {c.role for c in case.linears})
    details = {
        "rank": rank, "target_modules": list(dict.fromkeys(c.role for c in case.linears)),
        "layers": len({c.layer for c in case.linears}), "also_changed": others,
        "alpha": _alpha(case),
    }  # fmt: skip
    return Finding(NAME, checks, details)


def _alpha(case: Case) -> str:
    """Known of an adapter; of a merged one it is lost."""
    scales = sorted({pair.scaling for pair in case.model.pairs.values()})
    if scales and case.model.files is case.base.files:
        return f"the adapter scales by {', '.join(f'{s:g}' for s in scales)}"
    return "cannot be read off s*B*A: every alpha fits, with B scaled"
