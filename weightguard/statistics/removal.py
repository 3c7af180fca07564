"""A direction that was taken out of what writes to the residual stream (abliteration): finding it, and what it took.

Removing a unit vector u from a matrix that writes to the residual stream is D = −c·u·uᵀ·W_base with c = 1, or another
strength. The same u in many matrices is what tells it from any training. Sketch, then least squares over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from weightguard.statistics.subspace import Direction

PROBES = 32
REFINEMENTS = 4


@dataclass(frozen=True)
class Removed:
    """What lies along u in one matrix. share: c, of uᵀ·W_base that is gone. coherence: −cos(uᵀD, uᵀW_base).

    everywhere: −<D, W_base>/‖W_base‖², the same over all directions, which a removed one stands out from. explained:
    share of ‖D‖² that −c·u·uᵀ·W_base is. stands_out: ‖uᵀD‖² over its mean over directions, and ordinary: ‖uᵀW_base‖².
    right: uᵀ·W_base (in,), float64.
    """

    share: float
    coherence: float
    everywhere: float
    explained: float
    stands_out: float
    ordinary: float
    right: torch.Tensor


def common_direction(deltas: Sequence[Direction], seed: int = 0, refinements: int = REFINEMENTS) -> torch.Tensor | None:
    """The unit vector u (out,) whose removal explains most of all the updates together; None where all D are zero.

    deltas: D = W − W_base of matrices with one output space, `aligned` giving W and `unaligned` W_base. refinements: steps
    of least squares that leave the span of the sketch; a direction that is only to be recognised needs none.
    """
    changed = [delta for delta in deltas if delta.square() > 0]
    if not changed:
        return None
    basis = _shared_basis(changed, seed)
    direction = _least_left(changed, basis)
    for _ in range(refinements):
        direction = _refined(changed, direction)
    return direction


def own_direction(delta: Direction, seed: int = 0) -> torch.Tensor:
    """The leading left singular vector (out,) of one update, from a sketch with one power step."""
    basis = _shared_basis([delta], seed)
    left = torch.linalg.svd(delta.transposed_times(basis).T, full_matrices=False)[0]
    return basis @ left[:, 0]


def removed(delta: Direction, direction: torch.Tensor) -> Removed:
    """How much of `direction` is gone from one matrix, and whether that is what the update is."""
    column = direction.reshape(-1, 1)
    ours, base = delta.transposed_times(column)[:, 0], of_base(delta).transposed_times(column)[:, 0]
    dot, square = float(ours @ base), float(base @ base)
    size, whole = float(ours.norm()) * math.sqrt(square), delta.square()
    share = -dot / square if square else 0.0
    total, along = of_base(delta).square(), _along_base(delta)
    mean = total / delta.shape[0]
    return Removed(
        share,
        -dot / size if size else 0.0,
        -along / total if total else 0.0,
        share * share * square / whole if whole else 0.0,
        float(ours @ ours) * delta.shape[0] / whole if whole else 0.0,
        square / mean if mean else 0.0,
        base,
    )


def _along_base(delta: Direction) -> float:
    """<D, W_base>."""
    parts = ((rows, delta.unaligned(start, stop)) for start, stop, rows in delta.blocks())
    return math.fsum(float((rows * base).sum()) for rows, base in parts)


def of_base(delta: Direction) -> Direction:
    """W_base alone, as a difference to zero."""
    return Direction(delta.unaligned, _zeros(delta), delta.shape)


def of_model(delta: Direction) -> Direction:
    """W alone, as a difference to zero."""
    return Direction(delta.aligned, _zeros(delta), delta.shape)


def _zeros(delta: Direction):
    return lambda i, j: torch.zeros(j - i, delta.shape[1], dtype=torch.float64)


def _shared_basis(deltas: Sequence[Direction], seed: int) -> torch.Tensor:
    """An orthonormal (out, PROBES) basis near the leading left directions of all updates together, each of unit norm."""
    generator = torch.Generator().manual_seed(seed)
    count = min(PROBES, deltas[0].shape[0])
    sizes = [math.sqrt(delta.square()) for delta in deltas]
    start = torch.zeros(deltas[0].shape[0], count, dtype=torch.float64)
    for delta, size in zip(deltas, sizes, strict=True):
        start += delta.times(torch.randn(delta.shape[1], count, generator=generator, dtype=torch.float64)) / size
    basis = torch.linalg.qr(start)[0]
    again = torch.zeros_like(start)
    for delta, size in zip(deltas, sizes, strict=True):
        again += delta.times(delta.transposed_times(basis)) / (size * size)
    return torch.linalg.qr(again)[0]


def _least_left(deltas: Sequence[Direction], basis: torch.Tensor) -> torch.Tensor:
    """Of the span of `basis` the direction of which least is left: min ‖uᵀW‖²/‖uᵀW_base‖² over all matrices."""
    from scipy.linalg import eigh

    left, before = (torch.zeros(basis.shape[1], basis.shape[1], dtype=torch.float64) for _ in range(2))
    for delta in deltas:
        for total, side in ((left, of_model(delta)), (before, of_base(delta))):
            through = side.transposed_times(basis)
            total += through.T @ through
    ridge = torch.eye(len(before), dtype=torch.float64) * float(before.trace()) * 1e-12
    vectors = eigh(left.numpy(), (before + ridge).numpy())[1]
    found = basis @ torch.from_numpy(vectors[:, 0].copy())
    return found / found.norm()


def _refined(deltas: Sequence[Direction], direction: torch.Tensor) -> torch.Tensor:
    """One step of alternating least squares for D ≈ −u·(W_baseᵀu)ᵀ over all matrices."""
    total = torch.zeros_like(direction)
    for delta in deltas:
        right = of_base(delta).transposed_times(direction.reshape(-1, 1))
        total -= delta.times(right)[:, 0]
    size = total.norm()
    return total / size if size > 0 else direction
