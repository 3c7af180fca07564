"""What a few rows of a changed tensor show that sums do not: grids of quantisation, patterns of zeros, scaled rows.

The sample is the first rows of the tensor, so the same on every run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch

ROWS = 16
COLUMNS = 1024
GROUPS = (32, 64, 128, 0)  # entries along the input that share a scale; 0: the whole row
CASTS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PATTERNS = ((2, 4), (1, 4), (4, 8), (2, 8))  # n of every m entries along the input are kept


@dataclass(frozen=True)
class Grid:
    """Values of W in groups of `group` entries. levels: distinct values of a group on average.

    repeats: share of the values other than 0 that stand in the group already, and base_repeats of W_base. bits: the
    coarsest symmetric integer grid (2 to 8 bits) on which the groups lie, None where they lie on none.
    """

    group: int
    levels: float
    repeats: float
    base_repeats: float
    bits: int | None


@dataclass(frozen=True)
class Sample:
    """What the first rows hold. grids: by group size, the row last.

    whole: the sample as one group. zero_share: zero entries. pattern: "n:m"
    where every m entries along the input hold at least m − n zeros. zero_rows, zero_columns: shares of the sample that
    became all zero. row_parallel: mean |cos| of rows of D to rows of W_base, column_parallel likewise.
    """

    grids: tuple[Grid, ...]
    whole: Grid
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
    grids = _grids(a, b)
    return Sample(
        grids[:-1], grids[-1], float((a == 0).double().mean()), _pattern(a),
        float(((a == 0).all(1) & (b != 0).any(1)).double().mean()),
        float(((a == 0).all(0) & (b != 0).any(0)).double().mean()),
        _parallel(d, b, 1), _parallel(d, b, 0),
    )  # fmt: skip


def _grids(a: torch.Tensor, b: torch.Tensor) -> tuple[Grid, ...]:
    """The grids by group size and of the sample as one group, last.

    On any of them values repeat in the smallest groups already; where they do not, that is all there is to see.
    """
    sizes = sorted({min(group or a.shape[1], a.shape[1]) for group in GROUPS})
    first = _grid(a, b, sizes[0])
    if first.repeats - first.base_repeats < 0.02:
        return (first, first)
    return (first, *(_grid(a, b, size) for size in sizes[1:]), _grid(a.reshape(1, -1), b.reshape(1, -1), a.numel()))


def _grid(a: torch.Tensor, b: torch.Tensor, group: int) -> Grid:
    ours, theirs = _grouped(a, group), _grouped(b, group)
    (levels, repeats), (_, before) = _repeats(ours), _repeats(theirs)
    bits = _bits(ours, theirs) if repeats - before > 0.03 else None
    return Grid(group, levels, repeats, before, bits)


def _grouped(x: torch.Tensor, group: int) -> torch.Tensor:
    columns = x.shape[1] // group * group
    return x[:, :columns].reshape(-1, group)


def _repeats(groups: torch.Tensor) -> tuple[float, float]:
    """(distinct values of a group on average, share of repeated ones). A repeated 0 does not count: pruned rows repeat
    nothing else."""
    ordered = numpy.sort(groups.numpy(), axis=1)  # ten times as fast as torch's for rows this short
    same = ordered[:, 1:] == ordered[:, :-1]
    again = numpy.count_nonzero(same & (ordered[:, 1:] != 0))
    values = int(numpy.count_nonzero(ordered))
    return float(ordered.shape[1] - same.sum(1).mean()), int(again) / max(1, values)


def _bits(ours: torch.Tensor, theirs: torch.Tensor) -> int | None:
    """Off the grid by a uniform error would be 0.29 of a step; what rounding to bf16 adds stays below 0.2."""
    for bits in range(2, 9):
        if _off_grid(ours, bits) < 0.2 and _off_grid(theirs, bits) > 0.25:
            return bits
    return None


def _off_grid(groups: torch.Tensor, bits: int) -> float:
    """Root mean square distance to the nearest point of the better of two grids of so many bits, in steps."""
    top, bottom = groups.max(1, keepdim=True).values, groups.min(1, keepdim=True).values
    symmetric = groups.abs().max(1, keepdim=True).values / (2 ** (bits - 1) - 1)
    ranged = (top - bottom) / (2**bits - 1)
    return min(_distance(groups, step) for step in (symmetric, ranged))


def _distance(groups: torch.Tensor, step: torch.Tensor) -> float:
    steps = (groups / step.clamp(min=1e-300))[groups != 0]  # zeros lie on every grid
    return float((steps - steps.round()).square().mean().sqrt()) if steps.numel() else 1.0


def _pattern(a: torch.Tensor) -> str | None:
    zero = a == 0
    for kept, size in PATTERNS:
        if a.shape[1] >= size and bool((_grouped(zero, size).sum(1) >= size - kept).all()):
            return f"{kept}:{size}"
    return None


def _parallel(d: torch.Tensor, b: torch.Tensor, dim: int) -> float:
    """Mean |cos| of the rows (dim 1) or columns (dim 0) that changed."""
    sizes = ((d * d).sum(dim) * (b * b).sum(dim)).sqrt()
    some = sizes > 0
    return float(((d * b).sum(dim)[some].abs() / sizes[some]).mean()) if bool(some.any()) else 0.0
