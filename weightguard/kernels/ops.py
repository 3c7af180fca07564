"""The one place from which the rest of weightguard calls a kernel; callers never ask which implementation runs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from weightguard.kernels import reference
from weightguard.kernels.reference import Keys, Mask

score_keys = reference.score_keys
random_keys = reference.random_keys
threshold = reference.threshold
row_sums = reference.row_sums
square_sums = reference.square_sums
is_finite = reference.is_finite
tiles = reference.tiles


def masks(keys: Keys, shape: tuple[int, int], k: int, group: str) -> Iterator[Mask]:
    """Tiles (start, stop, bool mask) of a selection over `shape` (out, in).

    `group` "row" takes exactly k of every row, "matrix" exactly k of all entries; `keys(start, stop)` gives int32 keys.
    """
    of_group = reference.row_masks if group == "row" else reference.matrix_masks
    return of_group(keys, shape, k)


def packed(mask: torch.Tensor) -> torch.Tensor:
    """A bool mask as bits, eight entries a byte, lowest index in the highest bit (numpy's packbits); uint8."""
    import numpy

    return torch.from_numpy(numpy.packbits(mask.reshape(-1).numpy()))
