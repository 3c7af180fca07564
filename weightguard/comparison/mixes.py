"""Is W a mixture of two known models? Per tensor the share t of W = W_base + t·(R − W_base) that fits best."""

from __future__ import annotations

import math
from dataclasses import dataclass

from weightguard.comparison.pairs import TensorChange, blocks
from weightguard.errors import CheckpointError
from weightguard.statistics.subspace import rounding_of
from weightguard.weights import Rows


@dataclass(frozen=True)
class Mix:
    """share: t by least squares. residual: ‖D − t·V‖²/‖D‖² with V = R − W_base; rounding: what storing W makes of that."""

    name: str
    share: float
    residual: float
    rounding: float


def mix_of(change: TensorChange, model: Rows, base: Rows, reference: Rows, other: str) -> Mix:
    """One streamed pass over the three sides of one tensor. other: the label of the reference, for errors."""
    sums: list[tuple[float, float, float]] = []
    for start, stop in blocks(change.shape):
        origin = base(start, stop).double()
        d, v = model(start, stop).double() - origin, reference(start, stop).double() - origin
        sums.append((float((d * d).sum()), float((d * v).sum()), float((v * v).sum())))
    dd, dv, vv = (math.fsum(part) for part in zip(*sums, strict=True))
    if not math.isfinite(vv):
        raise CheckpointError(f"tensor {change.name!r} of {other} holds NaN or infinity")
    share = dv / vv if vv else 0.0
    rounding = (rounding_of(change.precision) * 0.82 * change.weight_norm) ** 2
    return Mix(change.name, share, max(0.0, 1 - share * dv / dd) if dd else 0.0, rounding / dd if dd else 0.0)
