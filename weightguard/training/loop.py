"""The training loop: AdamW, a loss over batches of rows (by default that of their response tokens), clipped gradients."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from weightguard.data import Encoded
from weightguard.errors import DataError, UsageError
from weightguard.statistics.forward import check_lengths, padded
from weightguard.training.recipe import Recipe
from weightguard.training.state import Moment, StateFile

Progress = Callable[[int, int, float], None]  # steps done, steps in all, loss
Loss = Callable[[Any, Sequence[Any]], torch.Tensor]  # model and a batch of rows -> a scalar


def answer_loss(model: Any, batch: Sequence[Encoded]) -> torch.Tensor:
    """Mean cross entropy of the batch's counted tokens."""
    return response_loss(model, *padded(batch, next(model.parameters()).device))


class Attaching(Protocol):
    """A guard: `attach` constrains the training until `detach` of what it returns."""

    def attach(self, model: Any, optimizer: Any) -> Any: ...


def train(
    model: Any,
    config: dict,
    rows: Sequence[Encoded],
    recipe: Recipe,
    progress: Progress,
    *,
    loss: Loss = answer_loss,
    guard: Attaching | None = None,
    autocast: torch.dtype | None = None,
    state: StateFile | None = None,
    resume: bool = False,
) -> tuple[float, ...]:
    """Train what requires a gradient in place; returns the loss of every step.

    rows: only counted tokens bear loss; `loss` may want rows of another kind that have ids, counted and number as well,
    such as `preference.Pair`. The same rows, recipe, torch and thread count give the same weights on a CPU,
    also when a killed run goes on with `resume`. autocast: dtype of the forward pass over weights in float32.
    Errors: DataError (nothing to learn from, a row too long), UsageError (settings, a loss that is not finite).
    """
    recipe.check()
    check_lengths(rows, config, model)
    found = [row for row in rows if row.counted[1:].any()]  # nothing comes before a first token
    if not found:
        raise DataError("no row of the data has a response token to learn; give rows with responses")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = _optimizer(list(trained.values()), recipe)
    moment = state.load(trained, optimizer) if state is not None and resume else Moment()
    with _training(model), _attached(guard, model, optimizer):
        return _run(model, found, recipe, progress, loss, optimizer, trained, autocast, state, moment)


def _run(
    model: Any,
    rows: Sequence[Any],
    recipe: Recipe,
    progress: Progress,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    trained: dict[str, torch.nn.Parameter],
    autocast: torch.dtype | None,
    state: StateFile | None,
    moment: Moment,
) -> tuple[float, ...]:
    steps, losses = recipe.step_count(len(rows)), list(moment.losses)
    for step in range(moment.step, steps):
        # Seeded anew for every step: what dropout draws depends on the step, not on the run that got there.
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        optimizer.param_groups[0]["lr"] = recipe.rate(step, steps)
        batch = [rows[at] for at in recipe.batch(step, len(rows))]
        losses.append(_step(model, loss, optimizer, list(trained.values()), batch, recipe, autocast))
        if not math.isfinite(losses[-1]):
            if state is not None:
                state.discard()  # whoever went on from it would end here again
            raise UsageError(f"the loss of step {step + 1} is {losses[-1]}; give a smaller --lr, or --dtype float32")
        if state is not None and (step + 1) % state.every == 0 and step + 1 < steps:
            state.save(Moment(step + 1, tuple(losses)), trained, optimizer)
        progress(step + 1, steps, losses[-1])
    return tuple(losses)


def _optimizer(parameters: list[torch.nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    if not parameters:
        raise UsageError("nothing to train: no parameter requires a gradient")
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=fused
    )


def _step(
    model: Any,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    parameters: list[torch.nn.Parameter],
    batch: Sequence[Any],
    recipe: Recipe,
    autocast: torch.dtype | None,
) -> float:
    with torch.autocast(parameters[0].device.type, dtype=autocast, enabled=autocast is not None):
        found = loss(model, batch)
    optimizer.zero_grad(set_to_none=True)
    found.backward()
    torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
    optimizer.step()
    return float(found.detach())


def response_loss(model: Any, ids: torch.Tensor, attention: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the counted tokens given all before them; ids, attention and counted (rows, longest)."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    first = int(counted[:, 1:].any(0).nonzero()[0])  # the earliest position that predicts a counted token
    out = model(
        input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False,
        logits_to_keep=ids.shape[1] - first,
    )  # fmt: skip
    wanted = counted[:, first + 1 :]
    return torch.nn.functional.cross_entropy(out.logits[:, :-1][wanted].float(), ids[:, first + 1 :][wanted])


@contextlib.contextmanager
def _training(model: Any) -> Iterator[None]:
    """Dropout on inside, and torch's generators as they were outside."""
    was, device = model.training, next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model.train()
        try:
            yield
        finally:
            model.train(was)


@contextlib.contextmanager
def _attached(guard: Attaching | None, model: Any, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    handle = None if guard is None else guard.attach(model, optimizer)
    try:
        yield
    finally:
        if handle is not None:
            handle.detach()
