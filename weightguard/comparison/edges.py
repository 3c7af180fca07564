"""Where the singular values of independent entries end, from the sizes of rows and columns alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy
import torch


@dataclass(frozen=True)
class Margins:
    """Sums of squares of a matrix by row (out,) and by column (in,), float64."""

    rows: numpy.ndarray
    columns: numpy.ndarray

    @property
    def edge(self) -> float:
        """The largest singular value of independent entries of random sign, with variances r_i·c_j/Σr.

        The edge of the separable covariance model (Couillet and Hachem, arXiv:1307.0610) by its two fixed points
        a·Σ r/(1 − r·a) = s = b·Σ c/(1 − c·b), r and c as shares: σ² is Σr times the least s/(a·b). Rows and columns of
        one size give Marchenko and Pastur's rms·(√out + √in). Finite matrices end about out^(-2/3) below it.
        """
        from scipy.optimize import minimize_scalar

        whole = float(self.rows.sum())
        if whole <= 0:
            return 0.0
        sides = [part[part > 0] / whole for part in (self.rows, self.columns)]

        def height(log_s: float) -> float:
            return log_s - sum(math.log(_fixed_point(shares, math.exp(log_s))) for shares in sides)

        top = math.log(100 * math.sqrt(len(sides[0]) * len(sides[1])))
        found = minimize_scalar(height, bounds=(-5.0, top), method="bounded", options={"xatol": 1e-3})
        return math.sqrt(whole * math.exp(found.fun))


def _fixed_point(shares: numpy.ndarray, s: float) -> float:
    """The a below 1/max(shares) with a·Σ shares/(1 − shares·a) = s, by Newton kept inside a bracket."""
    most = float(shares.max())
    high, low = 1 / most, 0.0
    a = s / (1 + s * most)  # exact for shares of one size, and otherwise not above the root
    for _ in range(60):
        rest = 1 - shares * a
        value, slope = float((shares * a / rest).sum()) - s, float((shares / (rest * rest)).sum())
        low, high = (a, high) if value < 0 else (low, a)
        following = a - value / slope
        following = following if low < following < high else (low + high) / 2
        if abs(following - a) <= 1e-9 * a:
            return following
        a = following
    return a


def margins(blocks: Iterable[torch.Tensor]) -> Margins:
    """Of a matrix that comes in row blocks (rows, in)."""
    rows, columns = [], None
    for block in blocks:
        squares = block * block
        rows.append(squares.sum(1, dtype=torch.float64))
        columns = squares.sum(0, dtype=torch.float64) + (0 if columns is None else columns)
    assert columns is not None
    return Margins(torch.cat(rows).numpy(), columns.numpy())
