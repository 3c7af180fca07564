"""The specification of every kernel in pure torch, tile by tile: no full float32 copy of a score is ever made.

A key is the bit pattern of fp32(|x|)·norm read as int32: non-negative floats order like integers, so selection is exact
and ties are decided by index alone, row-major in logical (out, in) order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import prod

import torch

TILE = 1 << 18  # entries of a tile: a few float64 temporaries of it stay inside a core's cache
Keys = Callable[[int, int], torch.Tensor]
Mask = tuple[int, int, torch.Tensor]


def tiles(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Row blocks (start, stop) of about TILE entries."""
    step = max(1, TILE // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def score_keys(values: torch.Tensor, norms: torch.Tensor | None) -> torch.Tensor:
    """Keys of a tile (rows, in): |values| in float32, times norms (in,) float32 where given. int32, never negative."""
    score = values.float().abs()
    if norms is not None:
        score = score * norms
    return score.contiguous().view(torch.int32)


def random_keys(seed: int, start: int, stop: int, columns: int) -> torch.Tensor:
    """Keys that depend on the seed and the entry's index only: a counter run through a 32-bit mixing function."""
    index = torch.arange(start * columns, stop * columns, dtype=torch.int64)
    mixed = _mix(_mix((index >> 32) ^ seed) ^ (index & 0xFFFFFFFF))
    return (mixed >> 1).to(torch.int32).reshape(stop - start, columns)


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
    return x ^ (x >> 16)


def threshold(blocks: Callable[[], Iterable[torch.Tensor]], k: int) -> tuple[int, int]:
    """(value, ties): of all keys the k largest are those above `value` and the first `ties` equal to it.

    Two counting passes over the high and the low 16 bits: exact, in memory that does not grow. k must be positive.
    """
    high, above = _bin_of(_histogram((keys >> 16 for keys in blocks()), 1 << 15), k)
    low_counts = _histogram((keys[keys >> 16 == high] & 0xFFFF for keys in blocks()), 1 << 16)
    low, above_low = _bin_of(low_counts, k - above)
    return high << 16 | low, k - above - above_low


def _histogram(blocks: Iterable[torch.Tensor], bins: int) -> torch.Tensor:
    counts = torch.zeros(bins, dtype=torch.int64)
    for block in blocks:
        counts += torch.bincount(block.reshape(-1), minlength=bins)
    return counts


def _bin_of(counts: torch.Tensor, k: int) -> tuple[int, int]:
    """The bin in which the k-th largest lies, and how many lie in the bins above it."""
    from_top = counts.flip(0).cumsum(0)
    position = int((from_top < k).sum())
    index = counts.numel() - 1 - position
    return index, int(from_top[position] - counts[index])


def matrix_masks(keys: Keys, shape: tuple[int, int], k: int) -> Iterator[Mask]:
    """(start, stop, mask) tiles with exactly k of all entries set, ties by lowest row-major index."""
    value, ties = threshold(lambda: (keys(*tile) for tile in tiles(shape)), k) if k else (2**31, 0)
    for start, stop in tiles(shape):
        block = keys(start, stop)
        tied = (block == value).reshape(-1)
        first = tied & (tied.cumsum(0) <= ties)
        ties -= int(first.sum())
        yield start, stop, (block > value) | first.reshape(block.shape)


def row_masks(keys: Keys, shape: tuple[int, int], k: int) -> Iterator[Mask]:
    """(start, stop, mask) tiles with exactly k entries of every row set, ties by lowest column."""
    for start, stop in tiles(shape):
        block = keys(start, stop)
        if k == 0:
            yield start, stop, torch.zeros_like(block, dtype=torch.bool)
            continue
        value = block.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
        above, tied = block > value, block == value
        left = k - above.sum(1, keepdim=True)
        yield start, stop, above | (tied & (tied.cumsum(1) <= left))


def row_sums(values: torch.Tensor) -> torch.Tensor:
    """Sum of each row of a float64 tile (rows, in) as a fixed tree of pairwise adds: the same bits on every machine."""
    width = 1 << max(0, (values.shape[1] - 1).bit_length())
    work = torch.nn.functional.pad(values, (0, width - values.shape[1]))
    while width > 1:
        width //= 2
        work = work[:, :width] + work[:, width : 2 * width]
    return work[:, 0]


def square_sums(inputs: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Column sums of squares of `inputs` (..., in) over the positions where `counted` (...) is true; float64 (in,)."""
    rows = inputs.reshape(-1, inputs.shape[-1])[counted.reshape(-1)]
    total = torch.zeros(inputs.shape[-1], dtype=torch.float64, device=inputs.device)
    for start, stop in tiles((rows.shape[0], rows.shape[1])):
        total += rows[start:stop].double().square_().sum(0)
    return total


def is_finite(tensor: torch.Tensor) -> bool:
    """True when no entry is NaN or infinite. The exponent bits decide, so no float copy is made."""
    flat = tensor.reshape(-1)
    return all(bool(torch.isfinite(flat[start : start + TILE]).all()) for start in range(0, prod(tensor.shape), TILE))
