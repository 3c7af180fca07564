"""How many entries a ratio takes, and by which keys they are ordered: the core under every entry-selecting method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import floor

import numpy
import torch

from weightguard.kernels import ops
from weightguard.kernels.reference import Keys
from weightguard.weights import Weights


@dataclass(frozen=True, eq=False)
class Score:
    """kind "wanda" |x|·norms with norms (in,) float32, "magnitude" |x|, "random" a counter hash of `seed`."""

    kind: str
    norms: numpy.ndarray | None = None
    seed: int | None = None


def count(ratio: Decimal, size: int, rounding: str) -> int:
    """Entries taken from a group of `size`.

    "exact": floor(ratio·size + 1/2) with the ratio as the decimal typed. "reference": size − int(size·(1 − ratio)) in
    float64, the published code's rule, which takes at least one entry of every group at any positive ratio.
    """
    if rounding == "reference":
        return size - int(size * (1 - float(ratio)))
    return floor(Fraction(ratio) * size + Fraction(1, 2))


def keys(weights: Weights, of: str, score: Score) -> Keys:
    """int32 keys of a tensor's entries by row block; `of` "weight" scores W, "delta" scores W − W_aligned."""
    if score.kind == "random":
        seed, columns, first = score.seed or 0, weights.shape[1], weights.first
        return lambda i, j: ops.random_keys(seed, first + i, first + j, columns)
    norms = None if score.norms is None else torch.tensor(score.norms)
    return lambda i, j: ops.score_keys(_scored(weights, of, i, j), norms)


def _scored(weights: Weights, of: str, start: int, stop: int) -> torch.Tensor:
    return weights.tuned(start, stop) if of == "weight" else weights.delta(start, stop)


def key_blocks(rows: Keys, shape: tuple[int, int]) -> Iterator[torch.Tensor]:
    """The keys of a tensor of this shape, tile by tile."""
    for tile in ops.tiles(shape):
        yield rows(*tile)


def global_counts(tensors: Mapping[str, Callable[[], Iterator[torch.Tensor]]], k: int) -> dict[str, int]:
    """How many of the k highest keys over all tensors fall into each; ties go to tensors in bytewise order of names.

    `tensors`: name -> a function that opens the tensor and gives its keys block by block; one is open at a time.
    """
    names = sorted(tensors, key=str.encode)

    def blocks() -> Iterator[torch.Tensor]:
        for name in names:
            yield from tensors[name]()

    value, ties = ops.threshold(blocks, k)
    counts = {}
    for name in names:
        above = tied = 0
        for block in tensors[name]():
            above += int((block > value).sum())
            tied += int((block == value).sum())
        taken = min(tied, ties)
        ties -= taken
        counts[name] = above + taken
    return counts
