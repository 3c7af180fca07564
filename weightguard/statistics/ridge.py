"""Least squares with a ridge in closed form, in float64: the small end of the normal equations is solved, never both."""

from __future__ import annotations

import torch

from weightguard.errors import DataError

STRIPE = 512  # columns of a Gram matrix that are summed at a time


class Ridge:
    """argmin_M Σ_i w_i ‖x_i M − y_i‖² + penalty ‖M − M₀‖²_F over samples x_i (in,), y_i (out,), taken block by block.

    With fewer samples than inputs the dual is solved, M = M₀ + Zᵀ(ZZᵀ + penalty·I)⁻¹(F − ZM₀) with rows z_i = √w_i x_i
    and f_i = √w_i y_i, else the primal, (ZᵀZ + penalty·I)⁻¹(ZᵀF + penalty·M₀): cost min(n, in)³, the same M. `dual`: which
    of them; None decides by shape. The primal never multiplies samples by M₀.
    """

    def __init__(self, width: int, samples: int, *, dual: bool | None = None) -> None:
        self.dual = samples < width if dual is None else dual
        self._width = width
        self._rows: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._gram: torch.Tensor | None = None
        self._right: torch.Tensor | None = None

    def add(self, x: torch.Tensor, y: torch.Tensor, weight: float) -> None:
        """Samples x (n, in) and y (n, out), each of the weight `weight`."""
        z, f = (each.to(torch.float64, copy=True).mul_(weight**0.5) for each in (x, y))
        if self.dual:
            self._rows.append((z, f))
            return
        if self._gram is None or self._right is None:
            self._gram = z.new_zeros(self._width, self._width)
            self._right = z.new_zeros(self._width, f.shape[1])
        _add_gram(self._gram, z)
        self._right.addmm_(z.T, f)

    def solve(self, penalty: float, toward: torch.Tensor) -> torch.Tensor:
        """M (in, out), float64; `toward`: M₀ of the same shape. To be called once: sums are used up.

        Error: DataError when the penalty is too small for samples as dependent as these.
        """
        if self.dual:
            z, f = (torch.cat(parts) for parts in zip(*self._rows, strict=True))
            gram = z.new_zeros(len(z), len(z))
            _add_gram(gram, z.T)
            return toward + z.T @ torch.cholesky_solve(f - z @ toward, _factor(gram, penalty))
        assert self._gram is not None and self._right is not None
        factor, self._gram = _factor(self._gram, penalty), None
        return torch.cholesky_solve(self._right.add_(toward, alpha=penalty), factor)


def _add_gram(gram: torch.Tensor, z: torch.Tensor) -> None:
    """gram += zᵀz (in, in) of z (n, in), its lower triangle alone and a little more: a Cholesky factor looks at no other."""
    for first in range(0, len(gram), STRIPE):
        gram[first:, first : first + STRIPE].addmm_(z[:, first:].T, z[:, first : first + STRIPE])


def _factor(gram: torch.Tensor, penalty: float) -> torch.Tensor:
    gram.diagonal().add_(penalty)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        raise DataError(
            f"a layer's inputs are too dependent to be solved for with a ridge of {penalty:.3g}; give a larger --rho"
        )
    return factor
