"""A whole model in memory whose decoder linears have gradients: the loss of answers, its gradient, its Fisher diagonal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from weightguard.checkpoint import Linear, family_of, match_linears
from weightguard.data import Encoded
from weightguard.errors import DataError, UnsupportedError
from weightguard.statistics.forward import batches, padded

Progress = Callable[[str, int, int], None]
Gradients = dict[str, torch.Tensor]
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class InMemory:
    """model: a causal model with the tuned weights. linears: those that get gradients. rows by role, answers counted.

    The loss of a row is the mean cross-entropy of its answer's tokens; of a role, the mean over its rows.
    """

    model: Any
    modules: Mapping[str, torch.nn.Module]
    linears: Mapping[str, Linear]
    rows: Mapping[str, Sequence[Encoded]]
    progress: Progress

    def gradient(self, role: str) -> Gradients:
        """Gradient of the loss by linear, (out, in) float64. Error: DataError when it is not finite."""
        rows = self.rows[role]
        for batch in batches(rows, BATCH_TOKENS):
            (self._losses(batch).sum() / len(rows)).backward()
        return self._taken()

    def fisher(self, role: str) -> Gradients:
        """Mean over rows of the squared gradient of a row's loss: the diagonal of the empirical Fisher matrix."""
        rows, done = self.rows[role], 0
        total = {name: torch.zeros_like(self.values(name)) for name in self.linears}
        for batch in batches(rows, BATCH_TOKENS):
            self._add_squares(batch, total)
            done += len(batch)
            self.progress("fisher", done, len(rows))
        return {name: self._finite(name, found / len(rows)) for name, found in total.items()}

    def _add_squares(self, batch: Sequence[Encoded], total: Gradients) -> None:
        """The gradient of a row is dᵀx, of what a linear was given and the gradient of what it gave, at the row's tokens."""

        def see(name: str, x: torch.Tensor, d: torch.Tensor) -> None:
            apart = (each.reshape(len(batch), -1, each.shape[-1]) for each in (x.detach(), d))
            for x_row, d_row in zip(*apart, strict=True):
                total[name] += (d_row.T @ x_row).double().square().cpu()

        def watch(name: str) -> Any:
            return lambda _, given, out: out.register_hook(lambda d: see(name, given[0], d)) and None

        handles = [module.register_forward_hook(watch(name)) for name, module in self.modules.items()]
        self._losses(batch).sum().backward()
        for handle in handles:
            handle.remove()
        self._taken()

    def put(self, name: str, values: torch.Tensor) -> None:
        """New weights (out, in) of one linear."""
        weight = self._weight(name)
        weight.data.copy_(values.T if self.linears[name].transposed else values)

    def values(self, name: str) -> torch.Tensor:
        """The weights (out, in) of one linear, float64."""
        held = self._weight(name).detach().double().cpu()
        return held.T if self.linears[name].transposed else held

    def descend(self, role: str, steps: int, learning_rate: float) -> list[float]:
        """Adam on the linears against the loss of a role, over all its rows at every step; the loss before each step."""
        weights = [self._weight(name) for name in self.linears]
        optimizer = torch.optim.Adam(weights, lr=learning_rate)
        losses = []
        for step in range(steps):
            optimizer.zero_grad()
            losses.append(0.0)
            for batch in batches(self.rows[role], BATCH_TOKENS):
                loss = self._losses(batch).sum() / len(self.rows[role])
                loss.backward()
                losses[-1] += float(loss.detach())
            optimizer.step()
            self.progress("realign", step + 1, steps)
        return losses

    def _weight(self, name: str) -> torch.nn.Parameter:
        weight = self.modules[name].weight
        assert isinstance(weight, torch.nn.Parameter)
        return weight

    def _losses(self, batch: Sequence[Encoded]) -> torch.Tensor:
        """Loss of each row, (rows,)."""
        ids, attention, counted = padded(batch, self._weight(next(iter(self.linears))).device)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        out = self.model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False)
        losses = torch.nn.functional.cross_entropy(
            out.logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none"
        )
        answer = counted[:, 1:]
        return (losses * answer).sum(1) / answer.sum(1).clamp_min(1)

    def _taken(self) -> Gradients:
        """The gradients that were added up, which are then gone."""
        found: Gradients = {}
        for name, linear in self.linears.items():
            weight = self._weight(name)
            grad = torch.zeros_like(weight) if weight.grad is None else self._finite(name, weight.grad)
            found[name] = (grad.T if linear.transposed else grad).double().cpu()
            weight.grad = None
        return found

    def _finite(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        if not gradient.isfinite().all():
            raise DataError(f"the gradient of {name!r} is not finite; give --dtype float32")
        return gradient


def in_memory(
    model: Any,
    config: dict,
    linears: Mapping[str, Linear],
    rows: Mapping[str, Sequence[Encoded]],
    progress: Progress,
) -> InMemory:
    """`model` with gradients on the linears and on nothing else. Error: UnsupportedError for routed experts."""
    packed = dict.fromkeys(linear.role for linear in linears.values() if linear.expert is not None)
    if packed:
        rest = dict.fromkeys(linear.role for linear in linears.values() if linear.expert is None)
        raise UnsupportedError(f"this method cannot train {', '.join(packed)}: give --scope {','.join(rest)}")
    places = {
        (x.layer, x.role): path for path, x in match_linears(family_of(config), dict(model.named_modules())).items()
    }
    modules = {name: model.get_submodule(places[linear.layer, linear.role]) for name, linear in linears.items()}
    model.requires_grad_(False)
    for module in modules.values():
        module.weight.requires_grad_(True)
    return InMemory(model, modules, linears, rows, progress)
