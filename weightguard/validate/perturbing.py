"""Directions in the space of a model's parameters, and a model that is moved along them and put back to the bit.

random: Gaussian per tensor, scaled to the Frobenius norm of that tensor (arXiv:2405.17374), so that a = 0.5 moves every
tensor by half of its size; what belongs to a norm layer stays. The paper's code finds norm layers by "norm" in the name;
here the class of the layer counts as well, since GPT-2 and others name theirs otherwise. towards: the other model minus
this one, not scaled, so that the other model lies at 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy
import torch

from weightguard.errors import MismatchError

Direction = dict[str, torch.Tensor]  # by parameter name; what is not named stays


def parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Every parameter by name, tied ones once."""
    return dict(model.named_parameters())


def random_direction(model: Any, seed: int, number: int, across: Direction | None = None) -> Direction:
    """The `number`-th direction of a seed, the same on every machine. across: a direction it is made orthogonal to,
    tensor by tensor, before it is scaled."""
    norms = _of_norm_layers(model)
    found = {}
    for name, held in parameters(model).items():
        if name not in norms:
            drawn = _orthogonal(_drawn(name, held, seed, number), None if across is None else across.get(name))
            size, own = (float(t.double().norm()) for t in (held.detach(), drawn))
            if size and own:
                found[name] = (drawn * (size / own)).to(held)
    return found


def direction_to(model: Any, other: Any, said: str) -> Direction:
    """`other` minus `model`. Error: MismatchError naming a tensor that only one has, or when all are the same."""
    ours, theirs = parameters(model), parameters(other)
    for name in sorted({*ours, *theirs}):
        shapes = [list(side[name].shape) if name in side else None for side in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise MismatchError(
                f"{said} has another architecture: {name!r} is {shapes[1]} there and {shapes[0]} in the model"
            )
    found = {name: theirs[name].detach() - held.detach() for name, held in ours.items()}
    moved = {name: each for name, each in found.items() if each.any()}
    if not moved:
        raise MismatchError(f"{said} has the weights of the model; there is no way from one to the other")
    return moved


class Moved:
    """A model that can be put anywhere in the span of directions; `originals` are kept, never computed back."""

    def __init__(self, model: Any, directions: Sequence[Direction]) -> None:
        self._held = {name: held for name, held in parameters(model).items() if any(name in d for d in directions)}
        self._originals = {name: held.detach().clone() for name, held in self._held.items()}
        self._directions = directions

    @torch.no_grad()
    def to(self, at: Sequence[float]) -> None:
        """Weights = originals + sum of at[i]·directions[i]; float64 sums would cost a copy of the model, so in its dtype."""
        for name, held in self._held.items():
            held.copy_(self._originals[name])
            for share, direction in zip(at, self._directions, strict=True):
                if share and name in direction:
                    held.add_(direction[name], alpha=share)


@contextmanager
def moved(model: Any, directions: Sequence[Direction]) -> Iterator[Moved]:
    """The model for as long as it is moved; its weights are the originals, bit for bit, when this ends in any way."""
    found = Moved(model, directions)
    try:
        yield found
    finally:
        found.to([0.0] * len(directions))


def _drawn(name: str, held: torch.Tensor, seed: int, number: int) -> torch.Tensor:
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    drawn = numpy.random.default_rng([seed, number, key]).standard_normal(tuple(held.shape), numpy.float32)
    return torch.from_numpy(numpy.asarray(drawn)).to(held.device)


def _orthogonal(drawn: torch.Tensor, across: torch.Tensor | None) -> torch.Tensor:
    if across is None or not across.any():
        return drawn
    axis = across.double().flatten()
    flat = drawn.double().flatten()
    rest = flat - (flat @ axis) / (axis @ axis) * axis
    # A tensor of one entry has no room for a second direction: what is left there is rounding.
    return rest.reshape(drawn.shape) if rest.norm() > 1e-6 * flat.norm() else torch.zeros_like(drawn)


def _of_norm_layers(model: Any) -> set[str]:
    """Parameters of layers that normalise, by the name of the parameter or of the layer's class."""
    layers: Mapping[str, Any] = dict(model.named_modules())
    return {
        name
        for name in parameters(model)
        if "norm" in name.casefold() or "norm" in type(layers[name.rpartition(".")[0]]).__name__.casefold()
    }
