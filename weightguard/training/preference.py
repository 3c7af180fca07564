"""Direct preference optimisation (arXiv:2305.18290): the chosen answer of a pair rises over the rejected one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from weightguard.data import Encoded
from weightguard.statistics.forward import padded
from weightguard.training.loop import Loss


@dataclass(frozen=True, eq=False)
class Pair:
    """Two answers to one prompt. margin: log p(chosen) − log p(rejected) of the model before training, in nats.

    It stands where a row does: ids, counted and number are those of the longer answer.
    """

    chosen: Encoded
    rejected: Encoded
    margin: float = 0.0

    @property
    def longer(self) -> Encoded:
        return max(self.chosen, self.rejected, key=lambda row: len(row.ids))

    @property
    def ids(self) -> numpy.ndarray:
        return self.longer.ids

    @property
    def counted(self) -> numpy.ndarray:
        return self.longer.counted

    @property
    def number(self) -> int:
        return self.chosen.number


def answer_log_probabilities(model: Any, rows: Sequence[Encoded]) -> torch.Tensor:
    """log p(answer | prompt) of every row, summed over its counted tokens: float32 (rows,)."""
    ids, attention, counted = padded(rows, next(model.parameters()).device)
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    out = model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False)
    spread = out.logits[:, :-1].float().log_softmax(-1)
    chosen = spread.gather(-1, ids[:, 1:, None])[..., 0]
    return (chosen * counted[:, 1:]).sum(1)


@torch.no_grad()
def with_margins(model: Any, pairs: Sequence[Pair], batch: int = 8) -> list[Pair]:
    """The pairs with the margins of `model` as it is now."""
    found: list[Pair] = []
    for at in range(0, len(pairs), batch):
        some = pairs[at : at + batch]
        margins = _margins(model, some).tolist()
        found += [Pair(pair.chosen, pair.rejected, margin) for pair, margin in zip(some, margins, strict=True)]
    return found


def preference_loss(beta: float) -> Loss:
    """−log σ(beta·(margin of the model − margin before training)), mean over the batch of pairs."""

    def loss(model: Any, batch: Sequence[Pair]) -> torch.Tensor:
        before = torch.tensor([pair.margin for pair in batch], device=next(model.parameters()).device)
        return -torch.nn.functional.logsigmoid(beta * (_margins(model, batch) - before)).mean()

    return loss


def _margins(model: Any, pairs: Sequence[Pair]) -> torch.Tensor:
    chosen = answer_log_probabilities(model, [pair.chosen for pair in pairs])
    return chosen - answer_log_probabilities(model, [pair.rejected for pair in pairs])
