"""A direction that was taken out of what writes to the residual stream (abliteration): finding it, and what it took.

Removing a unit vector u from a matrix that writes to the residual stream is D = −c·u·uᵀ·W_base with c = 1, or another
strength. The same u in many matrices is what tells it from any training. Sketch, then least squares over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from weightguard.statistics.subspace import Direction

PROBES = 32
BLOCK = 1 << 19  # entries of a row block; a few of them are held, in float64
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
    """The unit vector u (out,) whose removal explains most of all the updates together; None where all D are zero, or
    W_base where they are not, so that nothing can have been removed.

    deltas: D = W − W_base of matrices with one output space, `aligned` giving W and `unaligned` W_base. refinements: steps
    of least squares that leave the span of the sketch; a direction that is only to be recognised needs none.
    """
    basis = _shared_basis(deltas, seed)
    if basis is None:
        return None
    least = _least_left([seen_through(delta, basis) for delta in deltas])
    if least is None:
        return None
    direction = basis @ least
    direction = direction / direction.norm()
    for _ in range(refinements):
        direction = _refined(deltas, direction)
    return direction


def own_direction(delta: Direction, seed: int = 0) -> torch.Tensor:
    """The leading left singular vector (out,) of one update, from a sketch with one power step. D is not zero."""
    basis = _shared_basis([delta], seed)
    assert basis is not None
    left = torch.linalg.svd(seen_through(delta, basis).update.T, full_matrices=False)[0]
    return basis @ left[:, 0]


def removed(delta: Direction, direction: torch.Tensor) -> Removed:
    """How much of `direction` is gone from one matrix, and whether that is what the update is."""
    seen = seen_through(delta, direction.reshape(-1, 1))
    ours, base = seen.update[:, 0], seen.base[:, 0]
    dot, square = float(ours @ base), float(base @ base)
    size = float(ours.norm()) * math.sqrt(square)
    share = -dot / square if square else 0.0
    mean = seen.base_square / delta.shape[0]
    return Removed(
        share,
        -dot / size if size else 0.0,
        -seen.dot / seen.base_square if seen.base_square else 0.0,
        share * share * square / seen.square if seen.square else 0.0,
        float(ours @ ours) * delta.shape[0] / seen.square if seen.square else 0.0,
        square / mean if mean else 0.0,
        base,
    )


@dataclass(frozen=True)
class Seen:
    """One matrix seen from the left through x (out, n). update, base: Dᵀx and W_baseᵀx (in, n).

    square, base_square, dot: ‖D‖², ‖W_base‖², <D, W_base> of the whole matrix.
    """

    update: torch.Tensor
    base: torch.Tensor
    square: float
    base_square: float
    dot: float


def seen_through(delta: Direction, x: torch.Tensor) -> Seen:
    """One pass over both sides."""
    ours, theirs = (torch.zeros(delta.shape[1], x.shape[1], dtype=torch.float64) for _ in range(2))
    sums = []
    for start, stop, rows, base in _sides(delta):
        ours.addmm_(rows.T, x[start:stop])
        theirs.addmm_(base.T, x[start:stop])
        sums.append((_dot(rows, rows), _dot(base, base), _dot(rows, base)))
    return Seen(ours, theirs, *(math.fsum(column) for column in zip(*sums, strict=True)))


def _sides(delta: Direction) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """(start, stop, rows of D, rows of W_base) in float64."""
    step = max(1, BLOCK // delta.shape[1])
    for start in range(0, delta.shape[0], step):
        stop = min(start + step, delta.shape[0])
        base = delta.unaligned(start, stop).double()
        yield start, stop, delta.aligned(start, stop).double() - base, base


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.dot(a.reshape(-1), b.reshape(-1)))


def _shared_basis(deltas: Sequence[Direction], seed: int) -> torch.Tensor | None:
    """An orthonormal (out, PROBES) basis near the leading left directions of all updates together, each of unit norm."""
    generator = torch.Generator().manual_seed(seed)
    count = min(PROBES, deltas[0].shape[0])
    drawn = [torch.randn(d.shape[1], count, generator=generator, dtype=torch.float64) for d in deltas]
    started = [_times(delta, x) for delta, x in zip(deltas, drawn, strict=True)]
    sizes = [size for _, size in started]
    if not any(sizes):
        return None
    basis = _basis_of([product for product, _ in started], sizes)
    again = [_times(delta, seen_through(delta, basis).update)[0] for delta in deltas]
    return _basis_of(again, [size * size for size in sizes])


def _basis_of(products: Sequence[torch.Tensor], sizes: Sequence[float]) -> torch.Tensor:
    parts = (product / size for product, size in zip(products, sizes, strict=True) if size)
    return torch.linalg.qr(torch.stack(list(parts)).sum(0))[0]


def _times(delta: Direction, x: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(D·x (out, n), ‖D‖) in one pass."""
    found = [(rows @ x, _dot(rows, rows)) for _, _, rows, _ in _sides(delta)]
    return torch.cat([product for product, _ in found]), math.sqrt(math.fsum(square for _, square in found))


def _least_left(seen: Sequence[Seen]) -> torch.Tensor | None:
    """The combination (n,) of the basis of which least is left: min ‖uᵀW‖²/‖uᵀW_base‖² over all matrices that changed."""
    from scipy.linalg import eigh

    left, before = (torch.zeros(seen[0].base.shape[1], seen[0].base.shape[1], dtype=torch.float64) for _ in range(2))
    for each in (s for s in seen if s.square):
        for total, side in ((left, each.base + each.update), (before, each.base)):
            total += side.T @ side
    if before.trace() == 0:
        return None
    ridge = torch.eye(len(before), dtype=torch.float64) * float(before.trace()) * 1e-12
    return torch.from_numpy(eigh(left.numpy(), (before + ridge).numpy())[1][:, 0].copy())


def _refined(deltas: Sequence[Direction], direction: torch.Tensor) -> torch.Tensor:
    """One step of alternating least squares for D ≈ −u·(W_baseᵀu)ᵀ over all matrices."""
    total = torch.zeros_like(direction)
    for delta in deltas:
        right = seen_through(delta, direction.reshape(-1, 1)).base
        total -= _times(delta, right)[0][:, 0]
    size = total.norm()
    return total / size if size > 0 else direction
