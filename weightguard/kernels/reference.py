"""The specification of every kernel in pure torch, tile by tile: no full float32 copy of a score is ever made.

A key is the bit pattern of fp32(|x|)·norm read as int32: non-negative floats order like integers, so selection is exact
and ties are decided by index alone, row-major in logical (out, in) order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import frexp, fsum, nan, prod

import torch

LANES = 32  # lanes of a row sum
NOTHING = (2**31 - 1, 0)  # a threshold that takes no key
INFINITE = 0x7F800000  # the key of infinity; every finite key is below
PRODUCT_BLOCK = 64  # terms of a sum of products that are added in float32
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
        score.mul_(norms.to(score.device))  # in its place: fresh memory costs more than the product
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


def threshold(
    blocks: Callable[[], Iterable[torch.Tensor]], k: int, counts_of: Callable[..., torch.Tensor] | None = None
) -> tuple[int, int]:
    """(value, ties): of all keys the k largest are those above `value` and the first `ties` equal to it.

    Two counting passes over the high and the low 16 bits: exact, in memory that does not grow. k must be positive.
    """
    found = counts_of or key_counts
    high, above = _bin_of(sum((found(keys, 16, 0, 1 << 15) for keys in blocks()), _NONE), k)
    low_counts = sum((found(keys, 0, high << 16, 1 << 16) for keys in blocks()), _NONE)
    low, above_low = _bin_of(low_counts, k - above)
    return high << 16 | low, k - above - above_low


_NONE = torch.zeros((), dtype=torch.int64)


def key_counts(keys: torch.Tensor, shift: int, first: int, bins: int) -> torch.Tensor:
    """int64 (bins,): how many keys have (key >> shift) − first equal to each number below `bins`, a power of two."""
    index = (keys.reshape(-1) >> shift).sub_(first)
    if not _within(index, 0, bins):  # to pick out is dearer than to look, and than to count
        index = index[_compared(torch.eq, index >> (bins.bit_length() - 1), 0)]
    return torch.bincount(index, minlength=bins)


def _compared(compare: Callable[..., torch.Tensor], x: torch.Tensor, y: torch.Tensor | int) -> torch.Tensor:
    """compare(x, y) as bool, by way of the dtype of x: only a comparison that keeps the dtype is vectorised."""
    return compare(x, y, out=torch.empty_like(x)).bool()


def _within(values: torch.Tensor, low: int, end: int) -> bool:
    """All of them at least `low` and below `end`."""
    if not values.numel():
        return True
    smallest, largest = values.aminmax()
    return low <= int(smallest) and int(largest) < end


def _bin_of(counts: torch.Tensor, k: int) -> tuple[int, int]:
    """The bin in which the k-th largest lies, and how many lie in the bins above it."""
    from_top = counts.flip(0).cumsum(0)
    position = int((from_top < k).sum())
    index = counts.numel() - 1 - position
    return index, int(from_top[position] - counts[index])


def matrix_masks(keys: Keys, shape: tuple[int, int], value: int, ties: int) -> Iterator[Mask]:
    """(start, stop, mask) tiles: keys above `value` and, by lowest row-major index, the first `ties` equal to it."""
    for start, stop in tiles(shape):
        block = keys(start, stop)
        flat = block.reshape(1, -1)
        mask, tied = _compared(torch.ge, flat, value), _compared(torch.eq, flat, value)
        count = tied.sum(1)
        _drop_last(mask, tied, (count - ties).clamp_(min=0))
        ties -= min(int(count), ties)
        yield start, stop, mask.reshape(block.shape)


def row_mask(block: torch.Tensor, k: int) -> torch.Tensor:
    """bool mask of the k largest keys of every row of `block`, ties by lowest column."""
    if k == 0:
        return torch.zeros_like(block, dtype=torch.bool)
    value = _kth(block, k)
    mask = _compared(torch.ge, block, value)
    excess = mask.sum(1) - k
    if bool(excess.any()):
        _drop_last(mask, _compared(torch.eq, block, value), excess)
    return mask


def _kth(block: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th largest key of every row, (rows, 1).

    Columns in groups: k groups have a largest key of at least the k-th largest of these, so k keys reach it, and few more.
    """
    rows, columns = block.shape
    size = columns // (2 * k)  # of a group
    if size > 1:
        groups = block[:, : columns // size * size].view(rows, size, -1)
        reach = _compared(torch.ge, block, _kth(groups.amax(1), k))
        counts = reach.sum(1, keepdim=True)
        width = int(counts.max())
        if 2 * width <= columns:
            places = torch.arange(width, device=block.device) < counts
            block = block.new_zeros(rows, width).masked_scatter_(places, block[reach])  # both row-major
    return block.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)


def _drop_last(mask: torch.Tensor, tied: torch.Tensor, excess: torch.Tensor) -> None:
    """Clear in each row of `mask` the last `excess` (rows,) of those that are `tied` (rows, n)."""
    if not bool(excess.any()):
        return
    row, column = tied.nonzero(as_tuple=True)  # row-major
    last = torch.arange(row.numel(), device=row.device) >= (tied.sum(1).cumsum(0) - excess)[row]
    mask[row[last], column[last]] = False


def masks(keys: Keys, shape: tuple[int, int], k: int, group: str) -> Iterator[Mask]:
    """See ops.masks."""
    if group == "row":
        yield from ((start, stop, row_mask(keys(start, stop), k)) for start, stop in tiles(shape))
        return
    value, ties = threshold(lambda: (keys(*tile) for tile in tiles(shape)), k) if k else NOTHING
    yield from matrix_masks(keys, shape, value, ties)


def row_sums(values: torch.Tensor) -> torch.Tensor:
    """Sum of each row of a float64 tile (rows, in), the same bits on every machine: column j is added to lane j mod 32
    in the order of the columns, then the lanes are folded by halves."""
    rows, columns = values.shape
    steps = -(-columns // LANES)
    work = torch.nn.functional.pad(values, (0, steps * LANES - columns)).view(rows, steps, LANES)
    lanes = torch.zeros(rows, LANES, dtype=torch.float64, device=values.device)
    for step in work.unbind(1):
        lanes += step
    width = LANES
    while width > 1:
        width //= 2
        lanes = lanes[:, :width] + lanes[:, width : 2 * width]
    return lanes[:, 0]


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


@dataclass(frozen=True, eq=False)
class Choice:
    """Take the k highest keys of each row (group "row") or of the matrix; norms (in,) float32, None: the key is |x|.

    Entries that are also among the spare_k highest by `spare_norms` are left alone, where those are given.
    """

    group: str
    k: int
    norms: torch.Tensor | None = None
    spare_k: int = 0
    spare_norms: torch.Tensor | None = None


@dataclass
class Taken:
    """What a selection did. squares: row sums of the squares of W ("weight"), of what changed ("change") and, with
    aligned weights, of the update W − W_aligned "before" and "after", each (rows,); empty when not measured.

    finite False: a key was NaN or infinite, the rest means nothing and the weights are not to be used.
    """

    selected: int = 0
    changed: int = 0
    finite: bool = True
    squares: dict[str, list[float]] = field(default_factory=dict)


class _NotFinite(Exception):
    pass


def select_apply(weights: torch.Tensor, choice: Choice, aligned: torch.Tensor | None, measure: bool) -> Taken:
    """Overwrite the chosen entries of `weights` (out, in) in place: with zero, scored by W, or with `aligned`, scored by
    W − W_aligned in the working dtype."""
    kinds = ("weight", "change") if aligned is None else ("weight", "change", "before", "after")
    taken = Taken(squares={kind: [] for kind in kinds} if measure else {})
    try:
        for start, stop, mask in _chosen(weights, choice, aligned):
            before = weights[start:stop].clone()
            origin = torch.zeros_like(before) if aligned is None else _work(aligned[start:stop], before)
            after = _mixed(mask, origin.to(before.dtype), before)
            taken.selected += int(mask.sum())
            taken.changed += int(_compared(torch.ne, after, before).sum())
            if measure:
                _add_squares(taken.squares, before, after, None if aligned is None else origin)
            weights[start:stop] = after
    except _NotFinite:
        return Taken(finite=False)
    return taken


def _mixed(mask: torch.Tensor, some: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """torch.where, which is not vectorised, from vectorised operations on bits."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[some.element_size()]
    x, y = some.view(kind), others.view(kind)
    return (y ^ ((x ^ y) & -mask.to(kind))).view(some.dtype)


def _chosen(weights: torch.Tensor, choice: Choice, aligned: torch.Tensor | None) -> Iterator[Mask]:
    shape = (weights.shape[0], weights.shape[1])
    chosen = masks(_finite_keys(weights, aligned, choice.norms), shape, choice.k, choice.group)
    if choice.spare_norms is None:
        yield from chosen
        return
    spared = masks(_finite_keys(weights, aligned, choice.spare_norms), shape, choice.spare_k, choice.group)
    for (start, stop, mask), (_, _, kept) in zip(chosen, spared, strict=True):
        yield start, stop, mask & ~kept


def _finite_keys(weights: torch.Tensor, aligned: torch.Tensor | None, norms: torch.Tensor | None) -> Keys:
    def keys(start: int, stop: int) -> torch.Tensor:
        scored = _work(weights[start:stop], weights)
        if aligned is not None:
            scored = scored - _work(aligned[start:stop], weights)
        found = score_keys(scored, norms)
        if not _within(found, 0, INFINITE):
            raise _NotFinite
        return found

    return keys


def _work(tensor: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float64 if weights.dtype == torch.float64 else torch.float32)


def moved(
    before: torch.Tensor, after: torch.Tensor, aligned: torch.Tensor | None
) -> tuple[int, dict[str, list[float]]]:
    """(entries that differ, row sums of squares as in Taken) of a row block (rows, in) before and after an edit."""
    squares: dict[str, list[float]] = {kind: [] for kind in ("weight", "change", "before", "after")}
    _add_squares(squares, before, after, aligned)
    return int((after != before).sum()), {kind: rows for kind, rows in squares.items() if rows}


def scale(weights: torch.Tensor, keep: float, aligned: torch.Tensor | None) -> Taken:
    """See ops.scale."""
    kinds = ("weight", "change") if aligned is None else ("weight", "change", "before", "after")
    taken = Taken(selected=weights.numel(), squares={kind: [] for kind in kinds})
    for start, stop in tiles((weights.shape[0], weights.shape[1])):
        tuned = _work(weights[start:stop], weights)
        origin = torch.zeros(1, 1, dtype=tuned.dtype) if aligned is None else _work(aligned[start:stop], weights)
        after = (tuned - origin).mul_(keep).add_(origin).to(weights.dtype)
        if not (is_finite(tuned) and is_finite(after) and is_finite(origin)):
            return Taken(finite=False)
        taken.changed += int((after != tuned).sum())
        _add_squares(taken.squares, tuned, after, None if aligned is None else origin)
        weights[start:stop] = after
    return taken


def _add_squares(
    squares: dict[str, list[float]], before: torch.Tensor, after: torch.Tensor, origin: torch.Tensor | None
) -> None:
    b, a = before.double(), after.double()
    parts = {"weight": b, "change": a - b}
    if origin is not None:
        o = origin.double()
        parts |= {"before": b - o, "after": a - o}
    for key, part in parts.items():
        squares[key].extend(row_sums(part * part).tolist())


@dataclass
class Pair:
    """Sums over two tensors of one shape, d = a − b in float64: Σa², Σb², Σab, Σd², Σd⁴, max |d|, entries with a ≠ b.

    finite False: NaN or infinity on either side, and no sum is given.
    """

    aa: float = nan
    bb: float = nan
    ab: float = nan
    dd: float = nan
    d4: float = nan
    largest: float = nan
    changed: int = 0
    finite: bool = False


SUMS = ("aa", "bb", "ab", "dd", "d4")


def pair_statistics(a: torch.Tensor, b: torch.Tensor) -> Pair:
    """One pass over two matrices (out, in). Rows are summed by `row_sums` and added exactly."""
    sums: dict[str, list[float]] = {key: [] for key in SUMS}
    largest, changed = 0.0, 0
    for start, stop in tiles((a.shape[0], a.shape[1])):
        x, y = a[start:stop].double(), b[start:stop].double()
        if not bool(x.isfinite().all() & y.isfinite().all()):
            return Pair()
        d = x - y
        dd = d * d
        for key, part in zip(SUMS, (x * x, y * y, x * y, dd, dd * dd), strict=True):
            sums[key].extend(row_sums(part).tolist())
        largest = max(largest, float(d.abs().max()) if d.numel() else 0.0)
        changed += int((x != y).sum())
    totals = {key: fsum(sums[key]) for key in SUMS}
    return Pair(**totals, largest=largest, changed=changed, finite=True)


def difference_products(a: torch.Tensor, b: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(Vᵀ·x, V·Vᵀ·x) with V = a − b rounded to float32; x (out, n) float32, both results float64.

    PRODUCT_BLOCK terms are multiplied and added one after the other in float32, each such sum is added in float64:
    the same bits on every machine, about 1e-7 from the exact products. Vᵀ·x is brought to a size of at most 1 by a power of
    two and rounded to float32 before V meets it: V may be small, as long as it is no denormal of float32.
    """
    inner = torch.zeros(a.shape[1], x.shape[1], dtype=torch.float64)
    for start in range(0, a.shape[0], PRODUCT_BLOCK):
        block = slice(start, start + PRODUCT_BLOCK)
        inner += _summed(_difference(a[block], b[block]), x[block])
    size = _power_of_two(inner)
    rounded = (inner / size).float()
    outer = torch.zeros(a.shape[0], x.shape[1], dtype=torch.float64)
    for start, stop in tiles((a.shape[0], a.shape[1])):
        v = _difference(a[start:stop], b[start:stop]).T
        for some, others in zip(v.split(PRODUCT_BLOCK), rounded.split(PRODUCT_BLOCK), strict=True):
            outer[start:stop] += _summed(some, others)
    return inner, outer * size


def _power_of_two(values: torch.Tensor) -> float:
    """Above the largest size by at most a factor of two; 1 where there is none, or not every value is finite."""
    if not values.numel() or not bool(values.isfinite().all()):
        return 1.0
    return 2.0 ** max(-1000, min(frexp(float(values.abs().max()))[1], 1000))


def _difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a − b rounded to float32, once."""
    return (a - b).float() if a.dtype == torch.float64 else a.float() - b.float()


def _summed(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Vᵀ·x, row by row of both, float32."""
    total = torch.zeros(v.shape[1], x.shape[1])
    for of_v, of_x in zip(v.unbind(), x.unbind(), strict=True):
        total += of_v[:, None] * of_x
    return total
