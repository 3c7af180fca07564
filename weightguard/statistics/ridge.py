"""Least squares with a ridge in closed form, in float64: the small end of the normal equations is solved, never both."""

from __future__ import annotations

import torch

from weightguard.errors import DataError


class Ridge:
    """argmin_M Σ_i w_i ‖x_i M − e_i‖² + penalty ‖M‖²_F over samples x_i (in,), e_i (out,), taken block by block.

    With fewer samples than inputs the dual is solved, M = Zᵀ(ZZᵀ + penalty·I)⁻¹E with rows z_i = √w_i x_i, else the
    primal, (ZᵀZ + penalty·I)⁻¹ZᵀE: cost min(n, in)³, the same M. `dual`: which of them; None decides by shape.
    """

    def __init__(self, width: int, samples: int, *, dual: bool | None = None) -> None:
        self.dual = samples < width if dual is None else dual
        self._rows: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._gram: torch.Tensor | None = None
        self._right: torch.Tensor | None = None

    def add(self, x: torch.Tensor, e: torch.Tensor, weight: float) -> None:
        """Samples x (n, in) and e (n, out), each of the weight `weight`."""
        z, f = x.double() * weight**0.5, e.double() * weight**0.5
        if self.dual:
            self._rows.append((z, f))
            return
        gram, right = z.T @ z, z.T @ f
        self._gram = gram if self._gram is None else self._gram + gram
        self._right = right if self._right is None else self._right + right

    def solve(self, penalty: float) -> torch.Tensor:
        """M (in, out), float64. Error: DataError when the penalty is too small for samples as dependent as these."""
        if not self.dual:
            assert self._gram is not None and self._right is not None
            return _solved(self._gram, self._right, penalty)
        z, f = (torch.cat(parts) for parts in zip(*self._rows, strict=True))
        return z.T @ _solved(z @ z.T, f, penalty)


def _solved(gram: torch.Tensor, right: torch.Tensor, penalty: float) -> torch.Tensor:
    gram.diagonal().add_(penalty)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        raise DataError(
            f"a layer's inputs are too dependent to be solved for with a ridge of {penalty:.3g}; give a larger --rho"
        )
    return torch.cholesky_solve(right, factor)
