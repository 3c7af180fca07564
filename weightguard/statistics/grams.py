"""Gram matrices of layer inputs, and the directions they single out in a layer's output (ActSVD, arXiv:2402.05162).

The top right singular vectors of Y = X Wᵀ, X (tokens, in), are the top eigenvectors of YᵀY = W (XᵀX) Wᵀ. One (in, in)
matrix per input site holds all that is needed of the tokens, so the cost does not grow with their number, and nothing is
randomised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from weightguard.checkpoint import Linear
from weightguard.data import Encoded
from weightguard.errors import DataError, UsageError
from weightguard.statistics.forward import BATCH_TOKENS, Progress, run_hooked, site_key, site_modules


@dataclass(frozen=True, eq=False)
class Grams:
    """G = Σ_t x_t x_tᵀ over the `tokens` counted positions. sums: site -> float64 (in, in); keys: tensor -> its site."""

    sums: Mapping[str, torch.Tensor]
    keys: Mapping[str, str]
    tokens: int

    def gram(self, tensor: str) -> torch.Tensor:
        """G of the inputs of a linear, by on-disk tensor name; float64 (in, in). Error: DataError."""
        if tensor not in self.keys:
            raise DataError(f"no Gram matrix was collected for tensor {tensor!r}")
        found = self.sums[self.keys[tensor]]
        if not torch.isfinite(found).all():
            raise DataError(f"the Gram matrix of tensor {tensor!r} is not finite; the forward pass broke down")
        return found


def collect_grams(
    model: Any,
    config: dict,
    linears: Mapping[str, Linear],
    rows: Sequence[Encoded],
    progress: Progress,
    batch_tokens: int = BATCH_TOKENS,
) -> Grams:
    """Grams of the inputs of `linears` (on-disk tensor name -> Linear) over the counted tokens, one forward pass.

    They take 8·in² bytes a site: for a large model give a few layers at a time. Rows with `tokens="response"` count the
    response only, as published. Errors: DataError (a row too long for the model, no token counted).
    """
    tokens = sum(int(row.counted.sum()) for row in rows)
    if not tokens:
        raise DataError("no token of the data counts; give rows with responses")
    sums: dict[str, torch.Tensor] = {}
    wanted = {site_key(linear) for linear in linears.values()}
    sites = {key: module for key, module in site_modules(model, config).items() if key in wanted}
    run_hooked(model, config, sites, rows, lambda *seen: _add(sums, *seen), progress, batch_tokens)
    keys = {name: site_key(linear) for name, linear in linears.items()}
    return Grams({key: total.cpu() for key, total in sums.items()}, keys, tokens)


def _add(sums: dict[str, torch.Tensor], key: str, inputs: torch.Tensor, counted: torch.Tensor) -> None:
    chosen = inputs.detach()[counted].double()
    if key in sums:
        sums[key].addmm_(chosen.T, chosen)
    else:
        sums[key] = chosen.T @ chosen


def spectrum(weight: torch.Tensor, gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The m = min(out, in) largest eigenvalues (m,), descending and >= 0, and their eigenvectors (out, m) of W G Wᵀ.

    weight (out, in), any float dtype; gram float64 (in, in); all float64. The largest entry of every vector is positive.
    """
    wide = weight.detach().cpu().double()
    values, vectors = _tall(wide, gram) if wide.shape[0] > wide.shape[1] else torch.linalg.eigh(wide @ gram @ wide.T)
    return values.flip(0).clamp(min=0), with_fixed_signs(vectors.flip(1))


def _tall(weight: torch.Tensor, gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, ascending, by way of (in, in): with G = R Rᵀ the eigenvectors are the left singular vectors of W R."""
    values, vectors = torch.linalg.eigh(gram)
    half = weight @ (vectors * values.clamp(min=0).sqrt())
    values, vectors = torch.linalg.eigh(half.T @ half)
    # The columns of `half @ vectors` are orthogonal but for rounding, where they are as good as zero too.
    units, _ = torch.linalg.qr((half @ vectors).flip(1))
    return values, units.flip(1)


def top_directions(weight: torch.Tensor, gram: torch.Tensor, k: int) -> torch.Tensor:
    """The k orthonormal output directions that hold most of ‖X Wᵀ‖²: float64 (out, k). Error: UsageError.

    arXiv:2402.05162, ActSVD: the top-k right singular vectors of the outputs.
    """
    most = min(weight.shape)
    if not 0 < k <= most:
        raise UsageError(f"rank {k} of a weight of shape {list(weight.shape)}: must be 1 to {most}")
    return spectrum(weight, gram)[1][:, :k].contiguous()


def with_fixed_signs(vectors: torch.Tensor) -> torch.Tensor:
    """Columns turned so that the entry of largest size, the first one of equals, is positive."""
    at = vectors.abs().argmax(dim=0)
    signs = vectors.gather(0, at[None]).sign()
    return vectors * torch.where(signs == 0, torch.ones_like(signs), signs)
