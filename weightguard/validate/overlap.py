"""Evaluation rows must not be rows that a repair was calibrated on, or an attack trained with."""

from __future__ import annotations

from collections.abc import Sequence

from weightguard.data import Dataset
from weightguard.errors import DataError

_NAMED = 5


def check_disjoint(evaluation: Dataset, other: Dataset) -> None:
    """Refuse sets that share a prompt, but for case and spacing. Error: DataError naming the rows of both."""
    seen = {plain_prompt(row.prompt): row.number for row in reversed(other.rows)}
    shared = [
        (row.number, seen[plain_prompt(row.prompt)]) for row in evaluation.rows if plain_prompt(row.prompt) in seen
    ]
    if shared:
        named = ", ".join(f"{ours} (there {theirs})" for ours, theirs in shared[:_NAMED])
        more = f" and {len(shared) - _NAMED} more" if len(shared) > _NAMED else ""
        raise DataError(
            f"{evaluation.source}: {len(shared)} of {len(evaluation.rows)} rows are also in {other.source}: rows {named}{more}; "
            f"an evaluation on data the model was made with says nothing, remove them"
        )


def check_judges(judges: Sequence[str]) -> None:
    """Refuse two judges of one name, whose measurements could not be told apart. Error: DataError."""
    twice = sorted({judge for judge in judges if judges.count(judge) > 1})
    if twice:
        raise DataError(f"--judge {twice[0]}: given twice, or two judges of that name; rename a file or leave one out")


def plain_prompt(text: str) -> str:
    """A prompt without what case and spacing make of it."""
    return " ".join(text.casefold().split())
