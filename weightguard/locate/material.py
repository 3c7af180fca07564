"""What a kind may look at: the weights on disk, the running model, and the rows of each role as token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from weightguard.parts import Neurons, Part

if TYPE_CHECKING:
    import torch

    from weightguard.checkpoint import Checkpoint, Linear
    from weightguard.data import EncodedSet
    from weightguard.statistics.norms import InputNorms
    from weightguard.weights import Weights

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Found:
    """The parts by on-disk tensor name, what is worth knowing about them, and what a user should be told."""

    parts: Mapping[str, Part]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Material:
    """`linears`: the decoder linears in scope. `data`: by role, the roles the kind needs. `model`: None where it needs none.

    `like`: other neurons, which a random control imitates.
    """

    checkpoint: Checkpoint
    linears: Mapping[str, Linear]
    data: Mapping[str, EncodedSet]
    model: Any
    progress: Progress
    like: Neurons | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Logical shape (out, in) of every linear."""
        return {name: self.shape(name) for name in self.linears}

    def shape(self, name: str) -> tuple[int, int]:
        first, second = self.checkpoint.info(name).shape
        return (second, first) if self.linears[name].transposed else (first, second)

    def weights(self, name: str) -> Weights:
        """One tensor in logical order, read now. Error: CheckpointError when it holds NaN or infinity."""
        from weightguard.weights import Sources, open_weights

        return open_weights(Sources(self.checkpoint, None, None, self.linears), name, with_aligned=False)

    def norms(self, role: str) -> InputNorms:
        """Input norms of every linear on the rows of a role."""
        from weightguard.statistics.forward import input_square_sums
        from weightguard.statistics.norms import InputNorms

        data = self.data[role]
        sums = input_square_sums(self.model, self.checkpoint.config, self.linears, data.rows, self.step("calibrate"))
        return InputNorms(sums, data.counted_tokens, {})

    def weight(self, name: str) -> torch.Tensor:
        """The parameter of the running model behind a tensor, as it is stored; change it only to put it back."""
        from weightguard.statistics.gradients import running_weights

        return running_weights(self.model, self.checkpoint.config, {name: self.linears[name]})[name].weight

    def step(self, what: str) -> Callable[[int, int], None]:
        """Progress under one name."""
        return lambda done, total: self.progress(what, done, total)
