"""Kept values: put back after every optimizer step.

A gradient of zero does not keep a weight: under AdamW weight decay and the moments of earlier steps still move it. What
is put back is what stood there when the guard was attached, to the bit. A gradient norm that is clipped still counts the
gradients of kept entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from weightguard.errors import UsageError
from weightguard.guards.attaching import Handle, bare, trained
from weightguard.statistics.parameters import Target, targets

if TYPE_CHECKING:
    from weightguard.parts import Neurons, Part

MASKS = ("entries", "rows", "columns")
Restore = Callable[[], object]


def keep(neurons: Neurons, model: torch.nn.Module, optimizer: Any, guard: str, *, others: bool = False) -> Handle:
    """Keep the marked entries of every named tensor, or with `others` all that is trained but them.

    Errors: UsageError (forms without a mask, entries under LoRA factors, nothing trained), MismatchError.
    """
    _check_forms(neurons, guard)
    inner = bare(optimizer)
    learning = trained(inner)
    found = targets(model, neurons.parts)
    _check_trained(found, learning, guard)
    restores = [
        each for name, target in found.items() for each in _restores(target, neurons.parts[name], learning, others)
    ]
    if others:
        named = {id(target.parameter) for target in found.values()}
        restores += [whole(parameter) for key, parameter in learning.items() if key not in named]
    return after_each_step(inner, restores)


def after_each_step(optimizer: torch.optim.Optimizer, works: Sequence[Restore]) -> Handle:
    """Run all of them, without gradients, after every step of the optimizer."""

    @torch.no_grad()
    def hook(_optimizer: object, _args: object, _kwargs: object) -> None:
        for work in works:
            work()

    return Handle(optimizer.register_step_post_hook(hook).remove)


def whole(parameter: torch.Tensor) -> Restore:
    """Puts the parameter back as it is now."""
    before = parameter.detach().clone()
    return lambda: parameter.copy_(before)


def entries(parameter: torch.Tensor, mask: torch.Tensor) -> Restore:
    """Puts back the entries where `mask`, bool of the parameter's shape, is set. The shorter side is held by its indices.

    Takes 12 bytes a kept float32 entry where less than half is kept, else 4 bytes an entry and 8 for each that learns.
    Error: UsageError where the parameter is not contiguous.
    """
    if not parameter.is_contiguous():
        raise UsageError("a guard keeps entries of contiguous parameters only; make them contiguous before it attaches")
    kept, learning = (side.reshape(-1).nonzero()[:, 0] for side in (mask, ~mask))
    if len(kept) <= len(learning):
        before = parameter.detach().reshape(-1)[kept]
        return lambda: _flat(parameter).scatter_(0, kept, before)
    start = parameter.detach().clone()

    def restore() -> None:
        learnt = _flat(parameter)[learning]
        parameter.copy_(start)
        _flat(parameter).scatter_(0, learning, learnt)

    return restore


def _flat(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.view(-1)


def slices(parameter: torch.Tensor, dim: int, index: torch.Tensor) -> Restore:
    """Puts back whole rows (dim 0) or columns (dim 1); index int64."""
    before = parameter.detach().index_select(dim, index)
    return lambda: parameter.index_copy_(dim, index, before)


def _restores(target: Target, part: Part, learning: Mapping[int, torch.Tensor], others: bool) -> Iterator[Restore]:
    target.check_shape(part.shape)
    if id(target.parameter) in learning:
        yield _restore(target, part, others)
    # A row is an output unit: were its bias to learn, the unit would not be kept.
    bias = getattr(target.module, "bias", None)
    if part.form == "rows" and not others and bias is not None and id(bias) in learning:
        yield slices(bias, 0, _units(part, False).to(bias.device))


def _restore(target: Target, part: Part, others: bool) -> Restore:
    if part.form == "entries":
        mask = torch.from_numpy(part.entries())
        return entries(target.parameter, target.oriented(~mask if others else mask).contiguous())
    dim = (part.form == "columns") != target.transposed
    return slices(target.parameter, int(dim), _units(part, others).to(target.parameter.device))


def _units(part: Part, others: bool) -> torch.Tensor:
    """Indices of the marked rows or columns, or of the others."""
    marked = torch.from_numpy(part.entries())
    units = marked[:, 0] if part.form == "rows" else marked[0]
    return (units != others).nonzero()[:, 0]


def _check_forms(neurons: Neurons, guard: str) -> None:
    for name, part in neurons.parts.items():
        if part.form not in MASKS:
            raise UsageError(
                f"--guard {guard} keeps entries, rows or columns; the neurons of tensor {name!r} have the form "
                f"{part.form!r}{' (for --guard ml-lr)' if part.form == 'rate' else ''}"
            )


def _check_trained(found: Mapping[str, Target], learning: Mapping[int, torch.Tensor], guard: str) -> None:
    for target in found.values():
        if target.adapted:
            raise UsageError(
                f"--guard {guard} keeps entries of {target.tensor!r}, but LoRA factors over it move all of W + s·B·A; "
                f"fine-tune in full, without --lora, or take --guard salora"
            )
    if not any(id(target.parameter) in learning for target in found.values()):
        raise UsageError(f"--guard {guard}: the optimizer trains none of the tensors it would keep")
