"""The one place from which the rest of weightguard calls a kernel; callers never ask which implementation runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch

from weightguard.kernels import device, native, reference
from weightguard.kernels.reference import Choice, Keys, Mask, Pair, Taken

score_keys = reference.score_keys
random_keys = reference.random_keys
row_sums = reference.row_sums
tiles = reference.tiles


def threshold(blocks: Callable[[], Iterable[torch.Tensor]], k: int) -> tuple[int, int]:
    """(value, ties): of all keys the k largest are those above `value` and the first `ties` equal to it; k positive.

    `blocks` gives int32 keys on the CPU, none negative, piece by piece and twice.
    """
    return reference.threshold(blocks, k, native.key_counts if native.compiled() else None)


def masks(keys: Keys, shape: tuple[int, int], k: int, group: str) -> Iterator[Mask]:
    """Tiles (start, stop, bool mask) of a selection over `shape` (out, in).

    `group` "row" takes exactly k of every row, "matrix" exactly k of all entries; `keys(start, stop)` gives int32 keys,
    contiguous on the CPU.
    """
    if group == "row":
        row_mask = native.row_mask if native.compiled() else reference.row_mask
        return ((start, stop, row_mask(keys(start, stop), k)) for start, stop in tiles(shape))
    value, ties = threshold(lambda: (keys(*tile) for tile in tiles(shape)), k) if k else reference.NOTHING
    return reference.matrix_masks(keys, shape, value, ties)


def packed(mask: torch.Tensor) -> torch.Tensor:
    """A bool mask as bits, eight entries a byte, lowest index in the highest bit (numpy's packbits); uint8."""
    import numpy

    return torch.from_numpy(numpy.packbits(mask.reshape(-1).numpy()))


def select_apply(
    weights: torch.Tensor, choice: Choice, aligned: torch.Tensor | None = None, *, measure: bool = True
) -> Taken:
    """Take exactly k entries of every row or of the matrix, ties by lowest row-major index, and overwrite them in place.

    weights (out, in), any strides. Without `aligned` the key is |W|·norm and the entry becomes zero; with it the key is
    |W − W_aligned|·norm and the entry goes back to the aligned value. Look at `finite` before anything else.
    """
    _check_choice(weights, choice, aligned)
    if native.takes(weights, aligned):
        return native.select_apply(weights, choice, aligned, measure)
    plain = choice.group == "row" and choice.spare_norms is None and not measure
    if plain and device.takes(weights, aligned) and device.width_for(weights, aligned):
        return device.select_rows(weights, choice, aligned)
    return reference.select_apply(weights, choice, aligned, measure)


def _check_choice(weights: torch.Tensor, choice: Choice, aligned: torch.Tensor | None) -> None:
    rows, columns = weights.shape
    size = columns if choice.group == "row" else rows * columns
    if choice.group not in ("row", "matrix") or not (0 <= choice.k <= size and 0 <= choice.spare_k <= size):
        raise ValueError(f"{choice.k} and {choice.spare_k} entries of each {choice.group} of {size}")
    if aligned is not None and aligned.shape != weights.shape:
        raise ValueError(f"aligned weights {tuple(aligned.shape)} for weights {tuple(weights.shape)}")
    for norms in (choice.norms, choice.spare_norms):
        if norms is not None and (norms.shape != (columns,) or norms.dtype != torch.float32):
            raise ValueError(f"norms {tuple(norms.shape)} {norms.dtype} for {columns} columns; float32 is expected")


def moved(
    before: torch.Tensor, after: torch.Tensor, aligned: torch.Tensor | None = None
) -> tuple[int, dict[str, list[float]]]:
    """(entries that differ, row sums of squares as in Taken) of a row block (rows, in) before and after an edit."""
    kind = before.dtype if aligned is None else torch.promote_types(before.dtype, aligned.dtype)
    before, after, aligned = before.to(kind), after.to(kind), None if aligned is None else aligned.to(kind)
    found = native.moved(before, after, aligned) if native.takes(before, after, aligned) else None
    return found or reference.moved(before, after, aligned)


def scale(weights: torch.Tensor, keep: float, aligned: torch.Tensor | None = None) -> Taken:
    """W becomes A + keep·(W − A) in place, A the aligned weights or zero; weights (out, in), any strides, keep not 0 or 1.

    One rounding an operation in float32 (float64 for float64), one on storing. Look at `finite` before anything else.
    """
    if aligned is not None and aligned.shape != weights.shape:
        raise ValueError(f"aligned weights {tuple(aligned.shape)} for weights {tuple(weights.shape)}")
    return (native if native.takes(weights, aligned) else reference).scale(weights, keep, aligned)


def square_sums(inputs: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Column sums of squares of `inputs` (..., in) over the positions where `counted` (...) is true; float64 (in,).

    Products are exact in float64; the order of the additions is the implementation's own (1e-12 apart).
    """
    rows = inputs.reshape(-1 if inputs.shape[-1] else counted.numel(), inputs.shape[-1])
    chosen = counted.reshape(-1)
    if chosen.shape != rows.shape[:1]:
        raise ValueError(f"{tuple(counted.shape)} positions counted for inputs {tuple(inputs.shape)}")
    if native.takes(rows) and rows.stride(1) == 1 and chosen.is_cpu:
        return native.square_sums(rows, chosen)
    if device.takes(rows):
        return device.square_sums(rows, chosen)
    return reference.square_sums(rows, chosen)


def is_finite(tensor: torch.Tensor) -> bool:
    """True when no entry is NaN or infinite; any shape and strides."""
    stored = tensor.T if tensor.dim() == 2 and not tensor.is_contiguous() else tensor
    if stored.is_contiguous() and native.takes(stored.reshape(1, -1)):
        return native.is_finite(stored)
    return reference.is_finite(tensor)


def pair_statistics(a: torch.Tensor, b: torch.Tensor) -> Pair:
    """Σa², Σb², Σab, Σd², Σd⁴, max |d| and the entries that differ, d = a − b, of two tensors of one shape in one pass."""
    if a.shape != b.shape:
        raise ValueError(f"tensors of one shape are compared, not {tuple(a.shape)} with {tuple(b.shape)}")
    a, b = _as_matrix(a), _as_matrix(b)
    if native.takes(a, b):
        return native.pair_statistics(a, b)
    if device.takes(a, b):
        return device.pair_statistics(a, b)
    return reference.pair_statistics(a, b)


def difference_products(a: torch.Tensor, b: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vᵀ·x (in, n) and V·Vᵀ·x (out, n) in float64 for V = a − b (out, in) and x (out, n); V is never stored.

    V and x are rounded to float32, sums of 64 products are float32, the sums of those float64: about 1e-7 of the norm.
    """
    if a.shape != b.shape or x.shape[0] != a.shape[0]:
        raise ValueError(f"products of {tuple(x.shape)} with the difference of {tuple(a.shape)} and {tuple(b.shape)}")
    scale = (
        2.0 ** min(math.frexp(float(x.abs().max()))[1], 1023) if x.numel() else 1.0
    )  # so no product with V underflows
    of = native if native.takes(a, b) and x.is_cpu else reference
    inner, outer = of.difference_products(a, b, (x.double() / scale).float())
    return inner * scale, outer * scale


def _as_matrix(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1] if tensor.dim() else 1)
