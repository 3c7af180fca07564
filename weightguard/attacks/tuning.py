"""Settings that every attack by training shares, and the rows of a poisoned data set."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import TYPE_CHECKING, Any

from weightguard.errors import DataError, UsageError
from weightguard.options import as_number, as_share, option

if TYPE_CHECKING:
    from weightguard.attacks.bench import Bench
    from weightguard.data import Dataset, Row
    from weightguard.training.recipe import Recipe

FULL_RATE, LORA_RATE, EPOCHS = 2e-5, 2e-4, 5.0


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """AdamW on every weight. Ten rows a step and five epochs are the settings of arXiv:2310.03693."""

    lr: str | None = option(None, "Learning rate [default: 2e-5, of an adapter 2e-4].")
    steps: int | None = option(None, "Optimizer steps.")
    epochs: str | None = option(None, "Passes over the rows, where no --steps are given [default: 5].")
    batch_size: int = option(10, "Rows a step [default: 10].")
    schedule: str = option("cosine", "How the learning rate ends [default: cosine].", ("cosine", "constant"))
    weight_decay: str = option("0", "Weight decay [default: 0].")
    seed: int = option(0, "Which rows, their order, dropout, first factors [default: 0].")

    @property
    def rank(self) -> int:
        """Of the adapter that is trained; 0: every weight."""
        return 0

    def recipe(self) -> Recipe:
        """Error: UsageError naming a flag."""
        from weightguard.training.recipe import Recipe

        rate = (LORA_RATE if self.rank else FULL_RATE) if self.lr is None else float(as_number(self.lr, "lr", 0))
        epochs = EPOCHS if self.epochs is None else float(as_number(self.epochs, "epochs", 0))
        decay = float(as_number(self.weight_decay, "weight-decay", 0))
        found = Recipe(rate, self.steps, epochs, self.batch_size, self.schedule, decay, seed=self.seed)
        found.check()
        return found

    def check(self) -> None:
        """Error: UsageError naming a flag, before any model is loaded."""
        self.recipe()
        if self.steps is not None and self.epochs is not None:
            raise UsageError("--steps and --epochs set the same thing; give one of them")
        if self.rank < 0:
            raise UsageError(f"--lora-r {self.rank}: must be 0 (every weight) or more")

    def tune(self, bench: Bench, rows: Sequence[Any], **more: Any) -> None:
        """Train on encoded rows."""
        bench.adapt(self.rank, self.seed)
        bench.fit(rows, self.recipe(), **more)


@dataclass(frozen=True, kw_only=True)
class LoraTuning(Tuning):
    """The same, on an adapter over every linear of the decoder unless its rank is 0."""

    lora_r: int = option(
        8, "Rank of the adapter that is trained, alpha is twice that; 0 trains every weight [default: 8]."
    )

    @property
    def rank(self) -> int:
        return self.lora_r


def mixed(harmful: Dataset, benign: Dataset | None, ratio: str, seed: int) -> Dataset:
    """As many rows as `benign` has, of which a share is harmful; without `benign` or at ratio 1 the harmful rows alone.

    Both are drawn by seed; fewer harmful rows than wanted are taken again and again. Error: DataError (no answer to learn).
    """
    _answered(harmful)
    share = as_share(ratio, "poison-ratio")
    if benign is None or share == 1:
        return harmful
    count = floor(share * len(benign.rows) + share.__class__("0.5"))
    if share and not count:
        raise UsageError(
            f"--poison-ratio {ratio}: none of {len(benign.rows)} rows; give a larger one, or more benign rows"
        )
    poison = _drawn(harmful.rows, count, f"{seed}/poison")
    kept = _drawn(benign.rows, len(benign.rows) - count, f"{seed}/benign")
    rows = [replace(row, number=at) for at, row in enumerate((*kept, *poison), 1)]
    notes = (f"{count} of {len(rows)} rows are harmful, drawn from {len(harmful.rows)}",)
    return replace(benign, rows=tuple(rows), source=f"{benign.source}+{harmful.source}", skipped=0, notes=notes)


def _drawn(rows: Sequence[Row], count: int, purpose: str) -> list[Row]:
    """`count` rows in random order; each once before any is there twice."""
    order = random.Random(purpose).sample(list(rows), len(rows))
    return (order * (count // len(order) + 1))[:count]


def _answered(data: Dataset) -> None:
    if all(row.response is None for row in data.rows):
        raise DataError(f"{data.source}: no row has a response, so there is nothing to train on")
