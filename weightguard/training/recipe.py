"""How long, how fast and in which order."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

from weightguard.errors import UsageError

SCHEDULES = ("cosine", "constant")
WARM = 20  # the learning rate rises over one step in this many


@dataclass(frozen=True)
class Recipe:
    """AdamW with these settings. `steps` or `epochs` (steps win) over batches of `batch_size` rows; `clip`: gradient norm."""

    learning_rate: float = 2e-4
    steps: int | None = None
    epochs: float = 1.0
    batch_size: int = 8
    schedule: str = "cosine"
    weight_decay: float = 0.01
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    seed: int = 0

    def check(self) -> None:
        """Error: UsageError naming the flag."""
        positive = {"lr": self.learning_rate, "epochs": self.epochs, "batch-size": self.batch_size, "clip": self.clip}
        for flag, value in positive.items():
            if not 0 < value < math.inf:
                raise UsageError(f"--{flag} {value}: must be a number above 0")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"--steps {self.steps}: must be at least 1")
        if not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"--weight-decay {self.weight_decay}: must be a number, 0 or above")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"--schedule {self.schedule}: must be one of {', '.join(SCHEDULES)}")
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"--seed {self.seed}: must be 0 to {2**31 - 1}")

    def step_count(self, rows: int) -> int:
        return self.steps if self.steps is not None else max(1, math.ceil(self.epochs * rows / self.batch_size))

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step (from 0): a linear start, then constant, or half a cosine down towards 0."""
        warm = max(1, steps // WARM)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))

    def batch(self, step: int, rows: int) -> list[int]:
        """Indices of the rows of a step: epoch after epoch, each a permutation of its own, cut into batches."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [_permutation(self.seed, place // rows, rows)[place % rows] for place in places]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, rows: int) -> tuple[int, ...]:
    order = list(range(rows))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return tuple(order)
