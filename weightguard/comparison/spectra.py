"""Singular values of D = W − W_base: all of them from a Gram matrix, or the leading ones from a randomised sketch.

Squaring in the Gram loses what is below 1e-8 of the largest value, and storing W in few bits adds a full-rank error, so
ranks count what lies above both. A sketch's values are lower bounds of the true ones (Halko et al., arXiv:0909.4061).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from weightguard.comparison.edges import margins
from weightguard.comparison.pairs import BLOCK, blocks
from weightguard.comparison.sides import exact_rows
from weightguard.statistics.subspace import Direction
from weightguard.weights import LowRank

SHOWN = 16  # leading values in reports
STEPS = 4
SKETCH = 160  # directions of a sketch: ranks up to here are told apart
HUGE = 2.0**30
ABOVE = 1.2  # of the floor
EDGE_BIAS = 0.95  # the edge of large matrices over what noise_level finds of them, on which all limits were set
GRAM_LOSS, SKETCH_LOSS = 3e-8, 1e-6  # of the largest value: what computing leaves, float64 squared and float32


@dataclass(frozen=True)
class Spectrum:
    """values: singular values, largest first; all of them when `exact`, else lower bounds of the leading ones.

    norm: ‖D‖. floor: the largest singular value that storing W alone explains. noise: that of D with random signs, so
    of independent entries of the sizes that D's entries have. loss: of σ₁, below which values are rounding of ours.
    """

    values: tuple[float, ...]
    norm: float
    floor: float
    noise: float
    exact: bool
    loss: float = GRAM_LOSS

    @property
    def rank(self) -> int:
        """Numerical rank: values above 1.2 times the floor. A lower bound when not exact."""
        return len(self.above)

    @property
    def above(self) -> tuple[float, ...]:
        """The values that neither storing W nor computing them explains."""
        if not self.values:
            return ()
        limit = max(ABOVE * self.floor, self.loss * self.values[0] * math.sqrt(len(self.values)))
        return tuple(value for value in self.values if value > limit)

    @property
    def is_full(self) -> bool:
        """As many directions as could be seen at all, so the rank says nothing."""
        return self.rank >= 0.75 * len(self.values)

    @property
    def effective_rank(self) -> float | None:
        """Of the values above the floor that storing W leaves; None where only leading values are known, or none is above."""
        return _effective(self.above) if self.exact else None

    @property
    def effective_rank_of_all(self) -> float | None:
        """Of all values, what storing W left among them; None where only leading values are known."""
        return _effective(self.values) if self.exact else None

    @property
    def stable_rank(self) -> float | None:
        """‖D‖²/σ₁²; an upper bound when not exact."""
        return (self.norm / self.values[0]) ** 2 if self.values and self.values[0] else None

    @property
    def over_noise(self) -> float:
        """σ₁ over that of noise: about 1 for independent entries, more for structure."""
        return self.values[0] / self.noise if self.values and self.noise else 0.0

    def captured(self, rank: int) -> float:
        """Share of ‖D‖² in the leading `rank` directions."""
        return math.fsum((v / self.norm) ** 2 for v in self.values[:rank]) if self.norm else 0.0

    def times(self, unit: float) -> Spectrum:
        """The spectrum of unit·D."""
        values = tuple(value * unit for value in self.values)
        sizes = {key: getattr(self, key) * unit for key in ("norm", "floor", "noise")}
        return dataclasses.replace(self, values=values, **sizes)

    def as_dict(self) -> dict:
        return {
            "exact": self.exact, "values": list(self.values[:SHOWN]), "norm": self.norm, "floor": self.floor,
            "noise": self.noise, "rank": self.rank, "effective_rank": self.effective_rank,
            "effective_rank_of_all": self.effective_rank_of_all, "stable_rank": self.stable_rank,
        }  # fmt: skip


def _effective(values: tuple[float, ...]) -> float | None:
    """exp of the entropy of σ/Σσ (Roy and Vetterli 2007); None where all are zero."""
    total = math.fsum(values)
    if total == 0:
        return None
    shares = [v / total for v in values if v > 0]
    return math.exp(-math.fsum(p * math.log(p) for p in shares))


def unit_of(largest: float) -> float:
    """A power of two to divide both sides by, whose squares would else leave float32; 1 for weights as they mostly are."""
    return 2.0 ** math.floor(math.log2(largest)) if largest > HUGE else 1.0


def over(delta: Direction, unit: float) -> Direction:
    """D/unit, both sides divided."""
    if unit == 1:
        return delta
    return dataclasses.replace(
        delta, aligned=lambda i, j: delta.aligned(i, j) / unit, unaligned=lambda i, j: delta.unaligned(i, j) / unit
    )


def gram_spectrum(delta: Direction, levels: Levels) -> Spectrum:
    """Every singular value of D, by eigenvalues of the smaller Gram matrix; O(out·in·min(out, in))."""
    squares = torch.linalg.eigvalsh(delta.gram()).flip(0).clamp(min=0)
    norm = math.sqrt(float(squares.sum()))
    return Spectrum(tuple(squares.sqrt().tolist()), norm, levels.floor, levels.noise, exact=True)


def sketched_spectrum(delta: Direction, norm: float, levels: Levels, seed: int = 0) -> Spectrum:
    """The leading singular values of D from SKETCH random directions and one power step, in float32; O(out·in·SKETCH).

    Three passes over row blocks; (out + in)·SKETCH values are held. norm: ‖D‖.
    """
    (out, into), k = delta.shape, min(SKETCH, *delta.shape)
    generator = torch.Generator().manual_seed(seed)
    right = torch.linalg.qr(_through(delta, torch.randn(into, k, generator=generator)))[0]
    left = torch.linalg.qr(torch.cat([rows @ right for _, _, rows in floats(delta)]))[0]
    product = torch.zeros(into, k)
    for start, stop, rows in floats(delta):
        product.addmm_(rows.T, left[start:stop])
    values = torch.linalg.svdvals(torch.linalg.qr(product.double())[1])
    return Spectrum(tuple(values.tolist()), norm, levels.floor, levels.noise, k == min(out, into), SKETCH_LOSS)


def _through(delta: Direction, x: torch.Tensor) -> torch.Tensor:
    """DᵀD·x (in, k) in one pass."""
    product = torch.zeros_like(x)
    for _, _, rows in floats(delta):
        product.addmm_(rows.T, rows @ x)
    return product


def floats(delta: Direction) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(start, stop, rows of D) in float32, whatever either side is stored in."""
    for start, stop in blocks(delta.shape):
        ours, theirs = delta.aligned(start, stop), delta.unaligned(start, stop)
        wide = torch.float64 in (ours.dtype, theirs.dtype)  # an adapter's update is lost in float32 beside its base
        rows = ours.double() - theirs.double() if wide else ours.float() - theirs.float()
        yield start, stop, rows.float()


def factored_spectrum(update: LowRank, noise: float) -> Spectrum:
    """The singular values of s·B·A, exact: those of R_B·R_Aᵀ from the QR factors of B and Aᵀ, (r, r), and then zeros.

    noise: that of s·B·A with random signs, as of any other D.
    """
    small = torch.linalg.qr(update.b)[1] @ torch.linalg.qr(update.a.T)[1].T
    out, into = update.b.shape[0], update.a.shape[1]
    values = torch.zeros(min(out, into), dtype=torch.float64)
    values[: min(small.shape)] = torch.linalg.svdvals(small) * abs(update.scaling)
    norm = float(values.norm())
    return Spectrum(tuple(values.tolist()), norm, 0.0, noise, exact=True)


@dataclass(frozen=True)
class Levels:
    """Largest singular values that D is held against. floor: that storing W alone explains; noise: of D with random signs."""

    floor: float
    noise: float


def levels_of(delta: Direction, rounding: float) -> Levels:
    """rounding: what storing moves an entry of W by, as a share of it. D is `aligned` less `unaligned`, W is `aligned`."""
    if delta.shape[0] * delta.shape[1] <= BLOCK:
        weights = noise_level(delta.aligned(0, delta.shape[0]).float())
    else:
        weights = EDGE_BIAS * margins(delta.aligned(*block).float() for block in blocks(delta.shape)).edge
    return Levels(rounding * weights, noise_of(delta))


def noise_of(delta: Direction) -> float:
    """The largest singular value of D with random signs."""
    if delta.shape[0] * delta.shape[1] <= BLOCK:
        return noise_level(delta.rows(0, delta.shape[0]).float())
    return EDGE_BIAS * margins(rows for _, _, rows in floats(delta)).edge


def alone(update: LowRank, shape: tuple[int, int]) -> Direction:
    """s·B·A as the D of weights that were zero."""
    return Direction(
        lambda i, j: exact_rows(update, i, j), lambda i, j: torch.zeros(j - i, shape[1], dtype=torch.float64), shape
    )


def noise_level(matrix: torch.Tensor, seed: int = 0) -> float:
    """The largest singular value of a matrix with random signs, from 16 directions and 4 power steps; a few % low."""
    generator = torch.Generator().manual_seed(seed)
    whole = matrix * (torch.randint(0, 2, matrix.shape, generator=generator, dtype=torch.int8) * 2 - 1)
    basis = torch.randn(whole.shape[1], min(16, *whole.shape), generator=generator)
    for _ in range(STEPS):
        basis = torch.linalg.qr(whole.T @ (whole @ basis))[0]
    return float(torch.linalg.svdvals(whole @ basis)[0])
