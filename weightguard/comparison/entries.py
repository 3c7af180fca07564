"""The entries of all updates together, each over the root mean square of its matrix, beside a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch

from weightguard.comparison.pairs import TensorChange

REACH, BINS = 5.0, 41


@dataclass(frozen=True)
class Entries:
    """Shares of entries in BINS bins over −REACH..REACH, the mean over `matrices`; what lies beyond is in the last bins.

    gaussian: the shares that a Gaussian would have.
    """

    shares: tuple[float, ...]
    gaussian: tuple[float, ...]
    matrices: int


def entries_of(changes: Iterable[TensorChange]) -> Entries | None:
    """Of the first rows of every changed matrix, which the pass kept; None where no matrix changed."""
    seen = [found for c in changes if c.corner is not None and (found := _shares(*c.corner)) is not None]
    if not seen:
        return None
    shares = tuple(math.fsum(column) / len(seen) for column in zip(*seen, strict=True))
    edges = [-REACH + 2 * REACH * at / BINS for at in range(BINS + 1)]
    gaussian = tuple(0.5 * (math.erf(b / 2**0.5) - math.erf(a / 2**0.5)) for a, b in pairwise(edges))
    return Entries(shares, gaussian, len(seen))


def _shares(ours: torch.Tensor, theirs: torch.Tensor) -> list[float] | None:
    """Of D from rows of both sides; None where these rows are the base's."""
    d = ours.float() - theirs.float()
    spread = d.square().mean().sqrt()
    if not spread > 0:
        return None
    counts = torch.histc((d / spread).clamp(-REACH, REACH), BINS, -REACH, REACH)
    return (counts / d.numel()).tolist()
