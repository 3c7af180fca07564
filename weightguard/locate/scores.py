"""Scores of single entries on the rows of a role, as keys that order like the scores, and the top share of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

from weightguard import bits
from weightguard.errors import DataError, UsageError
from weightguard.locate.material import Material

if TYPE_CHECKING:
    import numpy
    import torch

    from weightguard.kernels.reference import Keys

# Opens one tensor: its keys by row block, and its shape (out, in).
Opener = Callable[[str], tuple["Keys", tuple[int, int]]]
SCORES = ("wanda", "snip")
GROUPS = ("matrix", "row", "global")


def entry_scores(score: str, material: Material, role: str) -> Opener:
    """wanda: |W_ij|·sqrt(mean_t x_{t,j}²). snip: |W|·Σ_n|∂L_n/∂W|. Errors: DataError for scores that are not finite."""
    if score == "wanda":
        return _scored(material, _norms(material, role))
    from weightguard.statistics.gradients import absolute_gradients

    rows = material.data[role].rows
    sums = absolute_gradients(
        material.model, material.checkpoint.config, material.linears, rows, material.step("gradients")
    )
    return _scored(material, lambda name: lambda i, j: sums[name][i:j])


def _norms(material: Material, role: str) -> Callable[[str], Callable[[int, int], torch.Tensor]]:
    import torch

    norms = material.norms(role)

    def of_tensor(name: str) -> Callable[[int, int], torch.Tensor]:
        found = torch.tensor(norms.norms(name))
        return lambda i, j: found

    return of_tensor


def _scored(material: Material, factor_of: Callable[[str], Callable[[int, int], torch.Tensor]]) -> Opener:
    """Keys of |W|·factor, one tensor open at a time."""
    from weightguard.kernels import ops
    from weightguard.kernels.reference import INFINITE

    def opened(name: str) -> tuple[Keys, tuple[int, int]]:
        weights, factor = material.weights(name), factor_of(name)

        def keys(start: int, stop: int) -> torch.Tensor:
            found = ops.score_keys(weights.tuned(start, stop), factor(start, stop))
            if bool(((found < 0) | (found >= INFINITE)).any()):
                raise DataError(f"the scores of tensor {name!r} leave the range of float32; give --dtype float32")
            return found

        return keys, weights.shape

    return opened


def top_entries(material: Material, opener: Opener, share: Decimal, group: str, flag: str) -> dict[str, numpy.ndarray]:
    """Packed masks of the top share of each row, of each matrix or of all; ties by index. Error: UsageError for none."""
    counts = _counts(material, opener, share, group)
    if share and not any(counts.values()):
        raise UsageError(f"--{flag} {share} selects not one entry of any {group}; give a larger share")
    found = {}
    for done, (name, k) in enumerate(counts.items(), 1):
        found[name] = _mask(opener, name, k, group)
        material.progress("select", done, len(counts))
    return found


def _counts(material: Material, opener: Opener, share: Decimal, group: str) -> dict[str, int]:
    from weightguard.statistics.selection import count, global_counts, key_blocks

    shapes = material.shapes
    if group == "global":
        k = count(share, sum(out * width for out, width in shapes.values()), "exact")
        blocks = {n: lambda n=n: key_blocks(*opener(n)) for n in shapes}
        return global_counts(blocks, k) if k else dict.fromkeys(shapes, 0)
    sizes = {n: shape[1] if group == "row" else shape[0] * shape[1] for n, shape in shapes.items()}
    return {n: count(share, size, "exact") for n, size in sizes.items()}


def _mask(opener: Opener, name: str, k: int, group: str) -> numpy.ndarray:
    import numpy

    from weightguard.kernels import ops

    keys, shape = opener(name)
    mask: numpy.ndarray = numpy.zeros(shape, bool)
    # An expert that no token reached has no score at all, and the entries that come first would be taken.
    known = k and any(bool(keys(*tile).any()) for tile in ops.tiles(shape))
    for start, stop, block in ops.masks(keys, shape, k, "row" if group == "row" else "matrix") if known else ():
        mask[start:stop] = block.numpy()
    return bits.packed(mask)


def marked(masks: Mapping[str, numpy.ndarray]) -> int:
    """Entries marked in all packed masks together."""
    return sum(int(bits.unpacked(each, (8 * len(each),)).sum()) for each in masks.values())
