"""finetune_accuracy on the rows of the user's task, utility on benign rows: answers matched with the rows' own."""

from __future__ import annotations

from weightguard.validate.judges.matching import REVISION, matcher
from weightguard.validate.metrics.answered import Answered
from weightguard.validate.metrics.rows import Rows


def accuracy_rows(name: str, answered: Answered, match: str) -> Rows:
    """Rows without a response cannot be right or wrong; they are left out on both sides of a comparison."""
    fits = matcher(match)
    pairs = zip(answered.dataset.rows, answered.answers, strict=True)
    values = [fits(answer, row.response) for row, answer in pairs if row.response is not None]
    return Rows(name, values, answered.dataset.sha256, f"match:{match}", REVISION, missing="no row has a response")
