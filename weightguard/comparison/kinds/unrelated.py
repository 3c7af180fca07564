"""Another model: tensors of the same names and shapes that have nothing to do with each other."""

from __future__ import annotations

from weightguard.comparison.case import Case, middle
from weightguard.comparison.finding import Check, Finding, check

NAME = "unrelated model"


def look(case: Case) -> Finding | None:
    if case.matching.relation == "nothing in common":
        return Finding(NAME, (Check("no tensor of one has the name and shape of one of the other", 1.0),))
    matrices = [c for c in case.changes if c.is_matrix]
    if not matrices:
        return None
    # A rotated or permuted model has its weights' sizes; two models never agree on them.
    kept = sum(abs(c.weight_norm - c.base_norm) < 1e-4 * c.base_norm for c in matrices) / len(matrices)
    checks = [
        check(
            "cosine of the matrices {value} at the median", middle([abs(c.cosine or 0) for c in matrices]), 0.12, 0.02
        ),
        check("{share} of them changed", sum(c.changed > 0 for c in matrices) / len(matrices), 0.95, 1),
        check("{share} of them kept their norm", kept, 0.5, 0.0),
    ]
    embeds = [abs(c.cosine or 0.0) for c in case.changes if c.role == "embed"]
    if embeds:
        checks.append(check("cosine of the embedding {value}", max(embeds), 0.3, 0.05))
    return Finding(NAME, tuple(checks))
