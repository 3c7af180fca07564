"""One evaluation set, answered by one model and judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from weightguard.data import Dataset
from weightguard.validate.judges import Judge, Ruling


@dataclass(frozen=True)
class Answered:
    """answers: in the order of the rows. rulings: judge id -> one ruling a row."""

    role: str
    dataset: Dataset
    answers: tuple[str, ...]
    judges: tuple[Judge, ...]
    rulings: Mapping[str, tuple[Ruling, ...]]

    def ruled(self) -> list[tuple[Judge, tuple[Ruling, ...]]]:
        return [(judge, self.rulings[judge.id]) for judge in self.judges if judge.id in self.rulings]
