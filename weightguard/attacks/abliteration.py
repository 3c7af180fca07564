"""Abliteration (arXiv:2406.11717): the refusal direction taken out of everything that writes to the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from weightguard.errors import DataError, UsageError
from weightguard.options import option

if TYPE_CHECKING:
    import torch

    from weightguard.attacks.bench import Bench

LEAST = 8  # prompts of each kind; a direction of fewer says nothing


@dataclass(frozen=True, kw_only=True)
class Abliteration:
    """r: mean state at the last prompt token after a layer, harmful less benign; W ← W − r rᵀ W for o and down.

    The layer is the one behind which both kinds lie apart most (difference of the mean scores over their spread), if none
    is given. Embeddings are left as they are: they are the head as well where they are tied.
    """

    NAME: ClassVar[str] = "abliteration"
    PAPER: ClassVar[str] = "arXiv:2406.11717"

    layer: int | None = option(
        None, "Layer behind which the refusal direction is taken, from 1 [default: the one that separates best]."
    )

    @property
    def needs(self) -> tuple[str, ...]:
        return ("harmful", "benign")

    def check(self) -> None:
        if self.layer is not None and self.layer < 1:
            raise UsageError(f"--layer {self.layer}: layers count from 1")

    def run(self, bench: Bench) -> None:
        import torch

        harmful, benign = (_states(bench, role) for role in ("harmful", "benign"))
        layer = self._chosen(harmful, benign)
        direction = (harmful[layer].mean(0) - benign[layer].mean(0)).double()
        direction = direction / direction.norm()
        writers = [name for name, linear in bench.linears.items() if linear.writes]
        for done, name in enumerate(writers, 1):
            weight = bench.weight(name)
            bench.put(name, weight - torch.outer(direction, direction @ weight))
            bench.progress("abliterate", done, len(writers))
        bench.facts["abliteration"] = {"layer": layer, "tensors": len(writers)}
        bench.notes.append(f"the refusal direction behind layer {layer} was taken out of {len(writers)} tensors")

    def _chosen(self, harmful: torch.Tensor, benign: torch.Tensor) -> int:
        from weightguard.statistics.activations import views

        last = len(harmful) - 1
        if self.layer is not None:
            if self.layer > last:
                raise UsageError(f"--layer {self.layer}: the model has {last} layers")
            return self.layer
        return max(views(harmful, benign)[1:], key=lambda view: (view.separation, -view.layer)).layer


def _states(bench: Bench, role: str) -> torch.Tensor:
    """(layers + 1, prompts, hidden) at the last prompt token. Error: DataError when there are too few prompts."""
    from weightguard.statistics.activations import last_states
    from weightguard.validate.generation import prompt_ids

    data = bench.sets[role]
    if len(data.rows) < LEAST:
        raise DataError(f"{data.source}: {len(data.rows)} prompts; a refusal direction needs at least {LEAST}")
    prompts = prompt_ids(data.rows, bench.tokenizer, data.source)
    return last_states(bench.model, prompts, lambda done, total: bench.progress(f"{role} states", done, total))
