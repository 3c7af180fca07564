"""The alignment direction V = W_aligned − W_unaligned of a linear, and what projects on it (Safe LoRA, arXiv:2405.16833).

V is streamed by row blocks and never stored; the (out, out) matrix V·Vᵀ is formed only where it is the smaller side of
a full update. Everything is summed in float64; an adapter's factor meets two stored matrices in a kernel that adds 64
products in float32 before that, about 1e-7 of the norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy
import torch

from weightguard.errors import UsageError
from weightguard.kernels import ops
from weightguard.weights import Rows, Whole

PANEL = 1 << 21  # entries of a row block that is multiplied with another: 16 MB in float64
DENSE = 512  # sides up to which all eigenvectors cost no more than the leading ones
Project = Callable[[torch.Tensor], torch.Tensor]
# Rounding to a stored dtype moves a value by u of its size at most, half of that on average: half the unit roundoff.
_ROUNDING = {"BF16": 2.0**-9, "F16": 2.0**-12, "F32": 2.0**-25, "F64": 2.0**-54}


@dataclass(frozen=True)
class Direction:
    """V of one linear, logical shape (out, in). aligned(i, j) and unaligned(i, j) give rows of either side.

    `rounding`: relative error that storing left in either side, see `rounding_of`.
    """

    aligned: Rows
    unaligned: Rows
    shape: tuple[int, int]
    rounding: float = 0.0

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows of V, float64."""
        return self.aligned(start, stop).double() - self.unaligned(start, stop).double()

    def blocks(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(start, stop, rows) over the whole of V."""
        for start, stop in ops.tiles(self.shape):
            yield start, stop, self.rows(start, stop)

    def square(self) -> float:
        """‖V‖², Frobenius."""
        sides = self._stored()
        if sides is not None:
            return ops.pair_statistics(*sides).dd
        return math.fsum(float((rows * rows).sum()) for _, _, rows in self.blocks())

    def transposed_times(self, x: torch.Tensor) -> torch.Tensor:
        """Vᵀ·x: (out, n) to (in, n)."""
        turned = x.double().T.contiguous()  # (n, out): BLAS takes three times as long for Vᵀ·x than for xᵀ·V
        product = torch.zeros(x.shape[1], self.shape[1], dtype=torch.float64)
        for start, stop, rows in self.blocks():
            product.addmm_(turned[:, start:stop], rows)
        return product.T

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """V·x: (in, n) to (out, n)."""
        return torch.cat([rows @ x for _, _, rows in self.blocks()])

    def panels(self) -> list[tuple[int, int]]:
        """Row blocks (start, stop) of about PANEL entries, for products of two of them."""
        step = max(1, PANEL // max(1, self.shape[1]))
        return [(start, min(start + step, self.shape[0])) for start in range(0, self.shape[0], step)]

    def gram(self) -> torch.Tensor:
        """V·Vᵀ (out, out) where out <= in, else Vᵀ·V (in, in). Beside it two panels of V are held."""
        if self.shape[0] > self.shape[1]:
            product = torch.zeros(self.shape[1], self.shape[1], dtype=torch.float64)
            for panel in self.panels():
                rows = self.rows(*panel)
                product += rows.T @ rows
            return product
        product = torch.empty(self.shape[0], self.shape[0], dtype=torch.float64)
        panels = self.panels()
        for at, (start, stop) in enumerate(panels):
            rows = self.rows(start, stop)
            product[start:stop, start:stop] = rows @ rows.T
            for i, j in panels[at + 1 :]:
                product[start:stop, i:j] = rows @ self.rows(i, j).T
                product[i:j, start:stop] = product[start:stop, i:j].T
        return product

    def _stored(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Both sides as tensors, where they are there as a whole and in at most float32."""
        sides = (self.aligned, self.unaligned)
        whole = [side.tensor for side in sides if isinstance(side, Whole) and side.work == torch.float32]
        return (whole[0], whole[1]) if len(whole) == 2 else None

    def times_gram(self, x: torch.Tensor) -> torch.Tensor:
        """V·Vᵀ·x for x (out, n), by the cheaper side."""
        sides = self._stored()
        if sides is not None and 2 * x.shape[1] <= self.shape[1]:  # a factor; a full update is a matter for BLAS
            return ops.difference_products(*sides, x)[1]
        if self.shape[0] < min(self.shape[1], x.shape[1]):
            return self.gram() @ x.double()
        return self.times(self.transposed_times(x))


def rounding_of(*dtypes: str) -> float:
    """The largest relative rounding error among safetensors dtypes."""
    return max(_ROUNDING[dtype] for dtype in dtypes)


@dataclass(frozen=True)
class Projector:
    """C as a function (out, n) to (out, n), never a matrix. `rank`: directions it keeps; None means all that V has.

    keeps_all: it keeps every direction of the output, and so changes nothing.
    """

    project: Project
    rank: int | None = None
    keeps_all: bool = False


def projector(
    direction: Direction, kind: str, rank: int | None = None, energy: float | None = None
) -> Projector | None:
    """The projector of a kind, or None where V is zero. Error: UsageError for a rank beyond the smaller side of V.

    paper: V·Vᵀ/‖V‖, as published: no projector in the strict sense, it scales with V. normalized: V·Vᵀ/σ₁², never
    longer than what it is given. exact: U·Uᵀ with the first directions of V: `rank` of them, or as many as hold the
    share `energy` of ‖V‖², or all above the floor that rounding to the stored dtype leaves.
    """
    if rank is not None and not 0 < rank <= min(direction.shape):
        raise UsageError(
            f"--projector-rank {rank}: a tensor of shape {list(direction.shape)} has {min(direction.shape)} directions; "
            f"give 1 to {min(direction.shape)}"
        )
    square = direction.square()
    if square == 0:
        return None
    if kind == "exact":
        return _exact(direction, rank, energy)
    divisor = math.sqrt(square) if kind == "paper" else largest_square(direction)
    return Projector(lambda x: direction.times_gram(x) / divisor)


def _exact(direction: Direction, rank: int | None, energy: float | None) -> Projector:
    squares, vectors = torch.linalg.eigh(direction.gram())
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    k = rank or _enough(squares, energy) or _above_floor(squares, direction)
    k = max(1, min(k, int((squares > squares[0] * 1e-14).sum())))  # beyond it a direction is only rounding of the Gram
    basis = vectors[:, :k]
    if direction.shape[0] > direction.shape[1]:
        basis = torch.linalg.qr(direction.times(basis))[0]
    return Projector(lambda x: basis @ (basis.T @ x.double()), k, k == direction.shape[0])


def _enough(squares: torch.Tensor, energy: float | None) -> int:
    """Directions that hold the share `energy` of ‖V‖²; 0 where no share is asked for."""
    if energy is None:
        return 0
    held = torch.cumsum(squares, 0) / squares.sum()
    return min(int((held < energy).sum()) + 1, len(squares))


def _above_floor(squares: torch.Tensor, direction: Direction) -> int:
    return int((squares.sqrt() > 1.2 * rounding_floor(direction)).sum())


def rounding_floor(direction: Direction) -> float:
    """The largest singular value that rounding both sides to their stored dtype gives to V all by itself.

    u·0.82·(√out + √in)·√(var W_aligned + var W_unaligned): the edge of a random matrix whose entries are rounding errors.
    """
    spread = math.sqrt(_variance(direction.aligned, direction.shape) + _variance(direction.unaligned, direction.shape))
    return direction.rounding * 0.82 * spread * (math.sqrt(direction.shape[0]) + math.sqrt(direction.shape[1]))


def _variance(side: Rows, shape: tuple[int, int]) -> float:
    blocks = (side(start, stop).double() for start, stop in ops.tiles(shape))
    sums = [(float(w.sum()), float((w * w).sum())) for w in blocks]
    count = shape[0] * shape[1]
    mean = math.fsum(s for s, _ in sums) / count
    return max(0.0, math.fsum(q for _, q in sums) / count - mean * mean)


def largest_square(direction: Direction) -> float:
    """σ₁² of V by Lanczos from a fixed start, to the last bits of float64."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    size = direction.shape[0]
    if size == 1:
        return direction.square()

    def through(x):
        column = torch.from_numpy(x.reshape(-1, 1).copy())
        return direction.times(direction.transposed_times(column)).numpy().reshape(-1)

    operator = LinearOperator((size, size), matvec=through, dtype="float64")
    return float(eigsh(operator, k=1, v0=_start(size), tol=0, return_eigenvectors=False)[0])


def _start(size: int) -> numpy.ndarray:
    """Where Lanczos begins. A constant could be orthogonal to the first direction of a structured V; this has no structure."""
    return torch.frac(torch.arange(1, size + 1, dtype=torch.float64) * 0.6180339887498949).numpy() - 0.25


def leading_left(direction: Direction, count: int, gram: torch.Tensor | None = None) -> torch.Tensor:
    """The first `count` left singular vectors (out, count) of V, from the smaller Gram matrix, float64."""
    first = _leading(direction.gram() if gram is None else gram, count)
    return torch.linalg.qr(direction.times(first))[0] if direction.shape[0] > direction.shape[1] else first


def _leading(gram: torch.Tensor, count: int) -> torch.Tensor:
    """The eigenvectors (n, count) of the largest eigenvalues; of a large matrix by Lanczos, which holds no second one."""
    from scipy.sparse.linalg import eigsh

    if len(gram) <= DENSE:
        return torch.linalg.eigh(gram)[1].flip(1)[:, :count]
    values, vectors = eigsh(gram.numpy(), k=count, v0=_start(len(gram)), tol=0)
    return torch.from_numpy(vectors[:, values.argsort()[::-1]].copy())


@dataclass(frozen=True)
class Along:
    """How an update lies to the alignment direction. cosine: <C·x, x> / (‖C·x‖·‖x‖), 0 where C·x is zero.

    kept: ‖C·x‖/‖x‖. norm: ‖x‖. For an adapter x is B·A (its scaling cancels out of both shares).
    """

    cosine: float
    kept: float
    norm: float


def along(x: torch.Tensor, projected: torch.Tensor, gram: torch.Tensor | None = None) -> Along | None:
    """Cosine and share of x·A from x (out, n), C·x and A·Aᵀ (n, n); without a Gram A is the identity. None for x = 0."""

    def dot(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a * b).sum() if gram is None else ((a.T @ b) * gram).sum())

    x = x.double()
    square, kept = dot(x, x), max(0.0, dot(projected, projected))
    if square <= 0:
        return None
    cosine = dot(projected, x) / math.sqrt(kept * square) if kept else 0.0
    return Along(max(-1.0, min(1.0, cosine)), math.sqrt(kept / square), math.sqrt(square))
