"""One edit on one tensor: which entries change, what they become, and how far the tensor moved."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

import torch

from weightguard import bits
from weightguard.errors import CheckpointError, UnsupportedError
from weightguard.kernels import ops
from weightguard.kernels.reference import INFINITE, NOTHING, Choice, Keys, matrix_masks
from weightguard.kernels.reference import Mask as Tiled
from weightguard.plan import Edit, LowRank, Mask, ProjectDelta, Replace, Scale, Select
from weightguard.statistics.loading import pinned_threads
from weightguard.statistics.selection import Score, key_blocks, keys
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


@dataclass
class Measured:
    """What is known of a tensor after some of its row blocks: counts, and per kind of norm the sum of squares of each row.

    Rows are summed by a fixed tree and added exactly (fsum), so the norms are the same bytes whatever the blocks are.
    """

    entries: int = 0
    selected: int = 0
    changed: int = 0
    squares: dict[str, list[float]] = field(default_factory=dict)

    def add(self, entries: int, selected: int, changed: int, squares: Mapping[str, list[float]]) -> None:
        self.entries += entries
        self.selected += selected
        self.changed += changed
        for key, rows in squares.items():
            self.squares.setdefault(key, []).extend(rows)

    def change(self) -> Change:
        norms = {_NORMS[key]: math.sqrt(math.fsum(rows)) for key, rows in self.squares.items()}
        return Change(self.entries, self.selected, self.changed, **norms)


class Cut:
    """A selection of a matrix whose threshold is known: its blocks of rows can be edited one after the other.

    blocks: opens the tensor anew, block by block. Every block is to be edited once, in order.
    """

    def __init__(self, edit: Select, blocks: Callable[[], Iterable[Weights]]) -> None:
        self.of = edit.of
        self._parts = [_Above(edit, edit.k, Score(edit.score, edit.norms, edit.seed), blocks)]
        if edit.spare_norms is not None:
            self._parts.append(_Above(edit, edit.spare_k, Score("wanda", edit.spare_norms), blocks))

    def masks(self, weights: Weights) -> Iterator[Tiled]:
        for (start, stop, mask), *spared in zip(*(part.masks(weights) for part in self._parts), strict=True):
            yield start, stop, mask & ~spared[0][2] if spared else mask


class _Above:
    """The k highest keys of a tensor, as the key above which they lie and how many equal to it are left to take."""

    def __init__(self, edit: Select, k: int, score: Score, blocks: Callable[[], Iterable[Weights]]) -> None:
        self._edit, self._score = edit, score
        self._value, self._ties = ops.threshold(lambda: self._all_keys(blocks), k) if k else NOTHING

    def masks(self, weights: Weights) -> Iterator[Tiled]:
        rows, tied = self._keys(weights), 0

        def counted(start: int, stop: int) -> torch.Tensor:
            nonlocal tied
            found = rows(start, stop)
            tied += int((found == self._value).sum())
            return found

        yield from matrix_masks(counted, weights.shape, self._value, self._ties)
        self._ties -= min(self._ties, tied)

    def _all_keys(self, blocks: Callable[[], Iterable[Weights]]) -> Iterator[torch.Tensor]:
        for weights in blocks():
            yield from key_blocks(self._keys(weights), weights.shape)

    def _keys(self, weights: Weights) -> Keys:
        rows = keys(weights, self._edit.of, self._score)

        def finite(start: int, stop: int) -> torch.Tensor:
            found = rows(start, stop)
            if self._score.kind != "random" and bool((found >= INFINITE).any()):
                raise _out_of_range(self._edit)
            return found

        return finite


def by_rows(edit: Edit | Cut | None) -> bool:
    """Whether any block of rows can be edited without the others."""
    return not isinstance(edit, ProjectDelta) and not (isinstance(edit, Select) and edit.group == "matrix")


def finds_all(edit: Edit | None) -> bool:
    """Whether `apply` tells of NaN and infinity in what it is given, wherever in the tensor they are."""
    return _is_scored(edit) or _is_scaling(edit)


def _is_scored(edit: Edit | Cut | None) -> TypeGuard[Select]:
    return isinstance(edit, Select) and edit.score != "random"


def _is_scaling(edit: Edit | Cut | None) -> TypeGuard[Scale]:
    return isinstance(edit, Scale) and edit.keep not in (0, 1)


def apply(edit: Edit | Cut | None, weights: Weights, measured: Measured) -> bool:
    """Write the edited weights into `weights.stored` and add what changed. None merges an adapter and edits nothing.

    False: a score or an edited value is NaN or infinite, and nothing of it is to be used.
    """
    if _is_scored(edit) and weights.update is None:
        return _select(edit, weights, measured)
    if _is_scaling(edit) and weights.update is None and (edit.of == "delta") == (weights.origin is not None):
        return _scale(edit, weights, measured)
    values = _values(edit, weights)
    for start, stop, mask in _masks(edit, weights):
        tuned = weights.tuned(start, stop)
        aligned = weights.aligned(start, stop) if weights.aligned else None
        after = values(start, stop, tuned, aligned)
        after = (after if mask is None else torch.where(mask, after, tuned)).to(weights.stored.dtype)
        before = weights.logical[start:stop] if weights.update is None else tuned.to(weights.stored.dtype)
        selected = after.numel() if mask is None else int(mask.sum())
        moved, squares = ops.moved(before, after, aligned)
        measured.add(after.numel(), selected, moved, squares)
        weights.logical[start:stop] = after
    return ops.is_finite(weights.stored)


def _select(edit: Select, weights: Weights, measured: Measured) -> bool:
    """A scored selection on a full tensor, in one pass of the kernel that also measures."""
    norms, spare = (None if n is None else torch.tensor(n) for n in (edit.norms, edit.spare_norms))
    choice = Choice(edit.group, edit.k, norms, edit.spare_k, spare)
    taken = ops.select_apply(weights.logical, choice, weights.origin if edit.of == "delta" else None)
    measured.add(weights.logical.numel(), taken.selected, taken.changed, taken.squares)
    return taken.finite  # entries go to zero or to the aligned value, so with finite scores they are finite


def _scale(edit: Scale, weights: Weights, measured: Measured) -> bool:
    taken = ops.scale(weights.logical, edit.keep, weights.origin)
    measured.add(weights.logical.numel(), taken.selected, taken.changed, taken.squares)
    return taken.finite


def _out_of_range(edit: Select) -> CheckpointError:
    return CheckpointError(f"tensor {edit.tensor!r}: its scores leave the range of float32; look at the statistics")


def _masks(edit: Edit | Cut | None, weights: Weights) -> Iterator[tuple[int, int, torch.Tensor | None]]:
    """Which entries the edit takes, None for all, by row blocks that cover the tensor in order."""
    if isinstance(edit, Select | Cut):
        yield from edit.masks(weights) if isinstance(edit, Cut) else _selected(edit, weights)
        return
    for start, stop in ops.tiles(weights.shape):
        yield start, stop, _marked(edit, weights, start, stop)


def _marked(edit: Edit | None, weights: Weights, start: int, stop: int) -> torch.Tensor | None:
    columns = weights.shape[1]
    if isinstance(edit, Mask):
        return torch.tensor(bits.unpacked_rows(edit.bits, columns, weights.first + start, weights.first + stop))
    if edit is None or (isinstance(edit, Scale) and edit.keep == 1):
        return torch.zeros(1, 1, dtype=torch.bool).expand(stop - start, columns)
    return None


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


def _values(edit: Edit | Cut | None, weights: Weights) -> Values:
    """What the taken entries of a row block become: a function of (start, stop, tuned, aligned)."""
    first = weights.first
    match edit:
        case None:
            return lambda i, j, tuned, aligned: tuned
        case Select() | Cut() | Mask():
            return lambda i, j, tuned, aligned: _origin(edit.of, tuned, aligned)
        case Scale():
            return lambda i, j, tuned, aligned: _scaled(edit.keep, tuned, _origin(edit.of, tuned, aligned))
        case LowRank():
            product = Product(torch.tensor(edit.left).double(), torch.tensor(edit.right).double(), 1.0)
            return lambda i, j, tuned, aligned: tuned + product.rows(first + i, first + j)
        case Replace():
            return lambda i, j, tuned, aligned: torch.tensor(edit.values[first + i : first + j])
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
        return torch.zeros((), dtype=tuned.dtype).expand(tuned.shape)
    assert aligned is not None
    return aligned


def _scaled(keep: float, tuned: torch.Tensor, origin: torch.Tensor) -> torch.Tensor:
    # The two ends are exact; between them one rounding in the working dtype, one on storing.
    if keep in (0, 1):
        return tuned if keep else origin
    return (tuned - origin).mul_(keep).add_(origin)
