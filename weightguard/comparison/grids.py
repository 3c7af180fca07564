"""Grids of quantisation: groups of entries along the input whose values are whole numbers of steps apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
import torch

SIZES = (16, 32, 64, 128, 256, 512)  # entries along the input that share a scale; after these the row, and all
REPEATED = 0.02  # share of values that must stand in the smallest groups twice, beyond W_base's, to go on looking
STEPS = 255  # that a group of 8 bits spans at most
OFF = (0.04, 0.0003)  # of a step, root mean square, and for every step from end to end: what rounding to bf16 leaves
LOOKED = 4096  # entries of a sample that are laid on grids
FITTING = 0.5  # share of the groups: 8 bits stored in bf16 leave a quarter of the small ones unsure, chance none
FLOATS_SPAN, FLOATS_ODD = (
    16,
    0.25,
)  # steps that even FP4 has; share of odd ones, of which it has none far from the middle
HALF_MORE = 0.05  # of a step: what scales stored in 16 bits are off


@dataclass(frozen=True)
class Grid:
    """Values of W in groups of `group` entries. levels: distinct values of a group on average.

    repeats: share of the values other than 0 that stand in the group already, and base_repeats of W_base. bits: of the
    coarsest even grid, of at most 8 bits, on which each group lies with a step of its own, wherever its zero is; None
    where they lie on none, or W_base's do too.
    """

    group: int
    levels: float
    repeats: float
    base_repeats: float
    bits: int | None

    @property
    def more(self) -> float:
        """Share of values that repeat one of their group, beyond what W_base's do."""
        return self.repeats - self.base_repeats


def grids_of(a: torch.Tensor, b: torch.Tensor) -> tuple[Grid, ...]:
    """The grids of W, a, and W_base, b (rows, in), by group size; then those of the row and of all as one group.

    On any grid values repeat in the smallest groups already; where they do not, that is all there is to see. Sizes beyond
    those that lie on a grid hold several groups with steps of their own, and are not laid on any.
    """
    width = a.shape[1]
    first = _grid(a, b, min(SIZES[1], width), even=False)
    if first.more < REPEATED:
        return (first,)
    found: list[Grid] = []
    for size in (*(size for size in SIZES if size < width), width, a.numel()):
        beyond = any(g.bits is not None for g in found) and found[-1].bits is None
        sides = (a, b) if size <= width else (a.reshape(1, -1), b.reshape(1, -1))
        found.append(_grid(*sides, size, even=not beyond))
    return tuple(found)


def _grid(a: torch.Tensor, b: torch.Tensor, group: int, *, even: bool) -> Grid:
    ours, theirs = _grouped(a, group), _grouped(b, group)
    (levels, repeats), (_, before) = _repeats(ours), _repeats(theirs)
    bits = _bits(ours, theirs) if even and repeats - before > REPEATED else None
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
    spans = _spans(ours, STEPS)
    fit = spans[spans > 0]
    if len(fit) < FITTING * len(spans) or len(fit) == 0:
        return None
    steps = int(fit.max())
    before = _spans(theirs, steps)
    return (
        None if bool((before > 0).double().mean() > FITTING) else max(1, steps.bit_length())
    )  # 2^k levels are 2^k − 1 steps


def _spans(groups: torch.Tensor, most: int) -> torch.Tensor:
    """By group the least number of equal steps from its least to its largest value that has all others on it.

    (groups looked at,) int64; 0 where no number up to `most` does. What a value is off its step is a phase, and values
    that are off by the same are on a grid with its zero elsewhere, or with a least value that was rounded.
    """
    seen = _looked(groups)
    low, high = seen.amin(1, keepdim=True), seen.amax(1, keepdim=True)
    spread = high - low
    places = (seen - low) / torch.where(spread > 0, spread, torch.ones_like(spread))
    turn = torch.polar(torch.ones_like(places), 2 * math.pi * places).to(torch.complex64)
    phase, found, varied = turn.clone(), torch.zeros(len(seen), dtype=torch.int64), spread[:, 0] > 0
    for steps in range(1, most + 1):
        together = math.exp(-2 * (math.pi * (OFF[0] + OFF[1] * steps)) ** 2)  # of phases with that spread
        found[(phase.mean(1).abs() > together) & varied & (found == 0)] = steps
        if bool((found > 0).all()):
            break
        phase.mul_(turn)
    return found


def _looked(groups: torch.Tensor) -> torch.Tensor:
    """LOOKED entries of the groups, in float64."""
    count, stride = max(1, LOOKED // groups.shape[1]), max(1, groups.shape[1] // LOOKED)
    return groups[:count, ::stride].double()


def beyond_rounding(a: torch.Tensor, b: torch.Tensor, group: int, storing: float) -> float | None:
    """Share of the entries of W, a, that lie further from those of W_base, b, than rounding to the nearest step takes them.

    storing: what storing moves an entry by, as a share of it. The ends of a group may be cut off, and do not count. None
    for 8 and 4 bit floats: they lie on an even grid too, but far from the middle on every second or fourth step alone.
    """
    ours, theirs = ((x if group <= x.shape[1] else x.reshape(1, -1)) for x in (a, b))
    parts = [_grouped(x, group) for x in (ours, theirs)]
    spans, (w, base) = _spans(parts[0], STEPS), [_looked(part) for part in parts]
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    step = (high - low) / spans.clamp(min=1).unsqueeze(1)
    inside = (spans > 0).unsqueeze(1) & (w > low) & (w < high)
    outer = inside & ((w - (low + high) / 2).abs() > (high - low) / 4) & (spans >= FLOATS_SPAN).unsqueeze(1)
    odd = ((w - low) / step).round()[outer] % 2
    if len(odd) and float(odd.mean()) < FLOATS_ODD:
        return None
    far = (w - base).abs() > (0.5 + HALF_MORE) * step + storing * torch.maximum(w.abs(), base.abs())
    return float((far & inside).sum()) / max(1, int(inside.sum()))
