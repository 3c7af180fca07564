"""What a few rows of a changed tensor show that sums do not: grids of quantisation, patterns of zeros, parallel rows.

The sample is the first rows of the tensor, so the same on every run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

ROWS = 16
COLUMNS = 1024
CASTS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PATTERNS = ((2, 4), (1, 4), (4, 8), (2, 8))  # n of every m entries along the input are kept


@dataclass(frozen=True)
class Sample:
    """What the first rows hold. zero_share: zero entries. pattern: "n:m"
    where every m entries along the input hold at least m − n zeros. zero_rows, zero_columns: shares of the sample that
    became all zero. row_parallel: mean |cos| of rows of D to rows of W_base, column_parallel likewise.
    """

    zero_share: float
    pattern: str | None
    zero_rows: float
    zero_columns: float
    row_parallel: float
    column_parallel: float


def still_cast(casts: tuple[str, ...], ours: torch.Tensor, stored: torch.Tensor) -> tuple[str, ...]:
    """The dtypes among `casts` to which rounding the base's block gives ours."""
    return tuple(c for c in casts if _is_cast(stored, CASTS[c], ours))


def still_held(dtypes: tuple[str, ...], block: torch.Tensor) -> tuple[str, ...]:
    """The dtypes among `dtypes`, narrower than the block's own, that hold every value of it."""
    return tuple(d for d in dtypes if CASTS[d].itemsize < block.dtype.itemsize and _is_cast(block, CASTS[d], block))


def name_of(dtype: torch.dtype) -> str:
    """The safetensors name of a float dtype."""
    return next((name for name, each in CASTS.items() if each == dtype), "F64")


def _is_cast(block: torch.Tensor, dtype: torch.dtype, expected: torch.Tensor) -> bool:
    """The first row says no for almost every tensor, and saves the rest of the block."""
    parts = ((block[:1], expected[:1]), (block, expected))
    return all(torch.equal(part.to(dtype).to(wanted.dtype), wanted) for part, wanted in parts)


def corner_of(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The first rows of both sides of a matrix, in memory of their own. None for a vector."""
    return None if min(a.shape) < 2 else (a[:ROWS, :COLUMNS].clone(), b[:ROWS, :COLUMNS].clone())


def sampled(a: torch.Tensor, b: torch.Tensor) -> Sample:
    """What the first rows of W and W_base show."""
    a, b = a.float(), b.float()
    d = a - b
    return Sample(
        float((a == 0).double().mean()), _pattern(a),
        float(((a == 0).all(1) & (b != 0).any(1)).double().mean()),
        float(((a == 0).all(0) & (b != 0).any(0)).double().mean()),
        _parallel(d, b, 1), _parallel(d, b, 0),
    )  # fmt: skip


def _pattern(a: torch.Tensor) -> str | None:
    """The n:m that holds in every group and is all of the zeros: what is emptier has every pattern."""
    zero = a == 0
    share = float(zero.double().mean())
    for kept, size in PATTERNS:
        columns = a.shape[1] // size * size
        groups = zero[:, :columns].reshape(-1, size)
        if columns and share < 1 - kept / size + 0.05 and bool((groups.sum(1) >= size - kept).all()):
            return f"{kept}:{size}"
    return None


def _parallel(d: torch.Tensor, b: torch.Tensor, dim: int) -> float:
    """Mean |cos| of the rows (dim 1) or columns (dim 0) that changed."""
    sizes = ((d * d).sum(dim) * (b * b).sum(dim)).sqrt()
    some = sizes > 0
    return float(((d * b).sum(dim)[some].abs() / sizes[some]).mean()) if bool(some.any()) else 0.0
