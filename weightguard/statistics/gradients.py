"""Gradients of the loss of one sample after the other: one backward pass a sample serves every linear.

L_n is the mean cross entropy over the counted tokens of sample n, each predicted from what stands before it; a sample
without such a token is left out. A gradient is reduced in the hook that receives it, so that no model-sized copy is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from weightguard.checkpoint import Linear, family_of, match_linears
from weightguard.data import Encoded
from weightguard.errors import DataError
from weightguard.statistics.experts import expert_modules, expert_weight
from weightguard.statistics.forward import Progress, check_lengths

# What is kept of one gradient: (tensor, weight (out, in), gradient (out, in)) -> anything.
Reduce = Callable[[str, torch.Tensor, torch.Tensor], Any]


def absolute_gradients(
    model: Any, config: dict, linears: Mapping[str, Linear], rows: Sequence[Encoded], progress: Progress
) -> dict[str, torch.Tensor]:
    """Σ_n |∂L_n/∂W|: on-disk tensor name -> float32 (out, in). With |W| it makes SNIP's score as arXiv:2402.05162 has it.

    Summed in float32 whatever the model runs in. Takes four bytes an entry of the linears. Errors: DataError.
    """
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, _weight: torch.Tensor, gradient: torch.Tensor) -> None:
        found = gradient.float().abs()
        sums[name] = sums[name].add_(found) if name in sums else found

    for _ in row_gradients(model, config, linears, rows, add, progress):
        pass
    return {name: sums[name].cpu() for name in linears}


def row_gradients(
    model: Any,
    config: dict,
    linears: Mapping[str, Linear],
    rows: Sequence[Encoded],
    reduce: Reduce,
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """One backward pass a row; yields tensor name -> what `reduce` made of that tensor's weight and gradient.

    Errors: DataError when no row has a token to predict, when a row is too long, or a loss is not finite.
    """
    check_lengths(rows, config, model)
    scored = [row for row in rows if predicted(row)]
    if not scored:
        raise DataError("no token of the data is an answer to what stands before it; give rows with responses")
    for done, row in enumerate(scored, 1):
        kept: dict[str, Any] = {}
        with _reduced(model, config, linears, reduce, kept):
            _loss(model, row).backward()
        progress(done, len(scored))
        yield kept


def predicted(row: Encoded) -> list[int]:
    """The counted positions that have something before them."""
    return [at for at in range(1, len(row.ids)) if row.counted[at]]


def _loss(model: Any, row: Encoded) -> torch.Tensor:
    device = model.get_input_embeddings().weight.device
    ids, at = torch.tensor(row.ids, device=device)[None], torch.tensor(predicted(row), device=device)
    positions = torch.arange(ids.shape[1], device=device)[None]
    # logits_to_keep: the head runs at the positions that predict a counted token, and nowhere else.
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=False,
                  logits_to_keep=at - 1)  # fmt: skip
    logits = found.logits[0]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = torch.nn.functional.cross_entropy(logits, ids[0, at])
    if not torch.isfinite(loss):
        raise DataError(f"row {row.number} of the data: its loss is not finite; give --dtype float32 or float64")
    return loss


@contextlib.contextmanager
def _reduced(
    model: Any, config: dict, linears: Mapping[str, Linear], reduce: Reduce, kept: dict[str, Any]
) -> Iterator[None]:
    """Inside, every gradient of a linear that a backward pass leaves is reduced into `kept` and freed at once."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    handles = []
    with torch.enable_grad():
        for parameter, held in _by_parameter(running_weights(model, config, linears)).items():
            parameter.requires_grad_(True)
            take = _taker(held, linears, reduce, kept)
            handles.append(parameter.register_post_accumulate_grad_hook(take))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _by_parameter(weights: Mapping[str, Running]) -> dict[torch.nn.Parameter, dict[str, Running]]:
    found: dict[torch.nn.Parameter, dict[str, Running]] = {}
    for name, weight in weights.items():
        found.setdefault(weight.parameter, {})[name] = weight
    return found


def _taker(
    held: Mapping[str, Running], linears: Mapping[str, Linear], reduce: Reduce, kept: dict[str, Any]
) -> Callable[[torch.Tensor], None]:
    def take(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        for name, weight in held.items():
            pair = (weight.of(parameter.detach()), weight.of(parameter.grad))
            kept[name] = reduce(name, *((each.T for each in pair) if linears[name].transposed else pair))
        parameter.grad = None

    return take


@dataclass(frozen=True, eq=False)
class Running:
    """The parameter of the running model that holds an on-disk tensor, and `of`: the tensor's part of it, as a view."""

    parameter: torch.nn.Parameter
    of: Callable[[torch.Tensor], torch.Tensor]

    @property
    def weight(self) -> torch.Tensor:
        """The tensor as it is stored, a view of the parameter."""
        return self.of(self.parameter)


def running_weights(model: Any, config: dict, linears: Mapping[str, Linear]) -> dict[str, Running]:
    """On-disk tensor name -> where the running model has it."""
    modules = dict(model.named_modules())
    family = family_of(config)
    dense = {(it.layer, it.role): modules[p].weight for p, it in match_linears(family, modules).items()}
    experts = expert_modules(family, modules)
    return {
        name: Running(dense[linear.layer, linear.role], lambda tensor: tensor)
        if linear.expert is None
        else Running(*expert_weight(experts[linear.layer], linear.role, linear.expert))
        for name, linear in linears.items()
    }
