"""The share of prompts a model refuses, which decides automatic strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightguard.validate.generation import greedy_answers
from weightguard.validate.intervals import wilson
from weightguard.validate.judges import JUDGE, is_refusal


@dataclass(frozen=True)
class Refusals:
    """`refused` of `judged` prompts; `of` were there. Judging stops once `limit` answers are no refusals."""

    refused: int
    judged: int
    of: int
    judge: str = JUDGE

    @property
    def share(self) -> float:
        return self.refused / self.judged

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        return wilson(self.refused, self.judged)


def count_refusals(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    allowed: int | None = None,
    max_new_tokens: int = 32,
) -> Refusals:
    """Greedy answers judged by their opening; with `allowed`, stop when more than that many are no refusals."""
    refused = judged = 0
    for _, answer in greedy_answers(model, tokenizer, prompts, max_new_tokens=max_new_tokens):
        judged += 1
        refused += is_refusal(answer)
        if allowed is not None and judged - refused > allowed:
            break
    return Refusals(refused, judged, len(prompts))
