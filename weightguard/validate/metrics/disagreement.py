"""judge_disagreement: on how many harmful prompts two judges differ, for every pair of them."""

from __future__ import annotations

from itertools import combinations

from weightguard.validate.metrics.answered import Answered
from weightguard.validate.metrics.rows import Rows


def disagreement_rows(answered: Answered) -> list[Rows]:
    """Pairs that both rule on harm are compared there, else on refusals; pairs with nothing in common not at all."""
    found = []
    for (first, ones), (second, others) in combinations(answered.ruled(), 2):
        field = "harmful" if first.harm and second.harm else "refused" if first.refusals and second.refusals else None
        if field is None:
            continue
        pairs = [(getattr(a, field), getattr(b, field)) for a, b in zip(ones, others, strict=True)]
        values = [None if None in pair else pair[0] != pair[1] for pair in pairs]
        names, revisions = f"{first.id} | {second.id}", f"{first.revision} | {second.revision}"
        found.append(Rows("judge_disagreement", values, answered.dataset.sha256, names, revisions))
    return found
