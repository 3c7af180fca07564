"""One edit on one tensor: which entries change, what they become, and how far the tensor moved."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from weightguard import bits
from weightguard.errors import CheckpointError, UnsupportedError
from weightguard.kernels import ops
from weightguard.kernels.reference import Choice, Keys
from weightguard.kernels.reference import Mask as Tiled
from weightguard.plan import Edit, LowRank, Mask, ProjectDelta, Replace, Scale, Select
from weightguard.statistics.loading import pinned_threads
from weightguard.statistics.selection import Score, keys
from weightguard.statistics.subspace import Direction, projector
from weightguard.weights import LowRank as Product
from weightguard.weights import Weights

Values = Callable[[int, int, torch.Tensor, torch.Tensor | None], torch.Tensor]

# The kernel's names of what it sums, and ours.
_NORMS = {
    "weight": "weight_norm",
    "change": "change_norm",
    "before": "update_norm_before",
    "after": "update_norm_after",
}


@dataclass
class Change:
    """What an edit did to one tensor, measured against the tuned weights. Norms are Frobenius, summed in float64."""

    entries: int = 0
    selected: int = 0
    changed: int = 0
    weight_norm: float = 0.0
    change_norm: float = 0.0
    update_norm_before: float | None = None
    update_norm_after: float | None = None

    def as_dict(self) -> dict[str, int | float]:
        return {key: value for key, value in vars(self).items() if value is not None}


def apply(edit: Edit | None, weights: Weights) -> Change:
    """Write the edited tensor into `weights.stored` and measure the change. None merges an adapter and edits nothing."""
    if isinstance(edit, Select) and edit.score != "random" and weights.update is None:
        return _select(edit, weights)
    change = Change(entries=weights.logical.numel())
    squares: dict[str, list[float]] = {}
    values = _values(edit, weights)
    for start, stop, mask in _masks(edit, weights):
        tuned = weights.tuned(start, stop)
        aligned = weights.aligned(start, stop) if weights.aligned else None
        after = torch.where(mask, values(start, stop, tuned, aligned), tuned).to(weights.stored.dtype)
        before = tuned.to(weights.stored.dtype)
        change.selected += int(mask.sum())
        change.changed += int((after != before).sum())
        _add_squares(squares, before, after, aligned)
        weights.logical[start:stop] = after
    for key, sums in squares.items():
        setattr(change, key, math.sqrt(math.fsum(sums)))
    return change


def _select(edit: Select, weights: Weights) -> Change:
    """A scored selection on a full tensor, in one pass of the kernel that also measures."""
    norms, spare = (None if n is None else torch.tensor(n) for n in (edit.norms, edit.spare_norms))
    choice = Choice(edit.group, edit.k, norms, edit.spare_k, spare)
    taken = ops.select_apply(weights.logical, choice, weights.origin)
    if not taken.finite:
        raise CheckpointError(f"tensor {edit.tensor!r}: its scores leave the range of float32; look at the statistics")
    change = Change(weights.logical.numel(), taken.selected, taken.changed)
    for key, sums in taken.squares.items():
        setattr(change, _NORMS[key], math.sqrt(math.fsum(sums)))
    return change


def _masks(edit: Edit | None, weights: Weights) -> Iterator[Tiled]:
    """Which entries the edit takes, by row blocks that cover the tensor in order."""
    if isinstance(edit, Select):
        yield from _selected(edit, weights)
        return
    whole = not (edit is None or (isinstance(edit, Scale) and edit.keep == 1))
    marked = torch.tensor(bits.unpacked(edit.bits, weights.shape)) if isinstance(edit, Mask) else None
    for start, stop in ops.tiles(weights.shape):
        yield start, stop, torch.full((stop - start, weights.shape[1]), whole) if marked is None else marked[start:stop]


def _selected(edit: Select, weights: Weights) -> Iterator[Tiled]:
    chosen = ops.masks(_keys(edit, weights), weights.shape, edit.k, edit.group)
    if edit.spare_norms is None:
        yield from chosen
        return
    spare = dataclasses.replace(edit, norms=edit.spare_norms, score="wanda")
    spared = ops.masks(_keys(spare, weights), weights.shape, edit.spare_k, edit.group)
    for (start, stop, mask), (_, _, kept) in zip(chosen, spared, strict=True):
        yield start, stop, mask & ~kept


def _keys(edit: Select, weights: Weights) -> Keys:
    return keys(weights, edit.of, Score(edit.score, edit.norms, edit.seed))


def _values(edit: Edit | None, weights: Weights) -> Values:
    """What the taken entries of a row block become: a function of (start, stop, tuned, aligned)."""
    match edit:
        case None:
            return lambda i, j, tuned, aligned: tuned
        case Select() | Mask():
            return lambda i, j, tuned, aligned: _origin(edit.of, tuned, aligned)
        case Scale():
            return lambda i, j, tuned, aligned: _scaled(edit.keep, tuned, _origin(edit.of, tuned, aligned))
        case LowRank():
            product = Product(torch.tensor(edit.left).double(), torch.tensor(edit.right).double(), 1.0)
            return lambda i, j, tuned, aligned: tuned + product.rows(i, j)
        case Replace():
            return lambda i, j, tuned, aligned: torch.tensor(edit.values[i:j])
        case ProjectDelta():
            left = _projected(edit, weights)
            return lambda i, j, tuned, aligned: _origin("delta", tuned, aligned) + left[i:j]
    raise UnsupportedError(f"this version cannot replay an edit of kind {type(edit).__name__}")


def _projected(edit: ProjectDelta, weights: Weights) -> torch.Tensor:
    """P·D, float32, before the first row is overwritten."""
    assert weights.aligned is not None and weights.unaligned is not None
    direction = Direction(weights.aligned, weights.unaligned, weights.shape)
    with pinned_threads(1):  # the last bits of a matrix product depend on it
        found = projector(direction, edit.projector, edit.rank)
        left = None if found is None else found.project(weights.whole_delta()).float()
    if left is None:
        raise CheckpointError(
            f"tensor {edit.tensor!r} is the same in the aligned and the unaligned model; other references?"
        )
    return left


def _origin(of: str, tuned: torch.Tensor, aligned: torch.Tensor | None) -> torch.Tensor:
    if of == "weight":
        return torch.zeros_like(tuned)
    assert aligned is not None
    return aligned


def _scaled(keep: float, tuned: torch.Tensor, origin: torch.Tensor) -> torch.Tensor:
    # The two ends are exact; between them one rounding in the working dtype, one on storing.
    return {0.0: origin, 1.0: tuned}.get(keep, origin + keep * (tuned - origin))


def _add_squares(sums: dict[str, list[float]], before: torch.Tensor, after: torch.Tensor, aligned: torch.Tensor | None):
    # Rows are summed by a fixed tree and rows are added exactly (fsum), so the norms are the same bytes everywhere.
    b, a = before.double(), after.double()
    parts = {"weight_norm": b, "change_norm": a - b}
    if aligned is not None:
        origin = aligned.double()
        parts |= {"update_norm_before": b - origin, "update_norm_after": a - origin}
    for key, part in parts.items():
        sums.setdefault(key, []).extend(ops.row_sums(part * part).tolist())
