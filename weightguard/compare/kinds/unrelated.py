"""Another model: tensors of the same names and shapes that have nothing to do with each other."""

from __future__ import annotations

from weightguard.compare.case import Case, middle
from weightguard.compare.finding import Check, Finding, check

NAME = "unrelated model"


def look(case: Case) -> Finding | None:
    if case.matching.relation == "nothing in common":
        return Finding(NAME, (Check("no tensor of one has the name and shape of one of the other", 1.0),))
    cosines = [abs(c.cosine or 0.0) for c in case.changes if c.is_matrix]
    embeds = [abs(c.cosine or 0.0) for c in case.changes if c.role == "embed"]
    if not cosines:
        return None
    checks = [
        check("cosine of the matrices {value} at the median", middle(cosines), 0.12, 0.02),
        check(
            "{value} of them changed", sum(c.changed > 0 for c in case.changes if c.is_matrix) / len(cosines), 0.95, 1
        ),
    ]
    if embeds:
        checks.append(check("of the embedding {value}", max(embeds), 0.3, 0.05))
    return Finding(NAME, tuple(checks))
