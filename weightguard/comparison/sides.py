"""The two sides of a comparison as tensors that can be read by rows: files, or files with an adapter over them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch

from weightguard.checkpoint import FLOATS, Checkpoint, Linear, LoraPair
from weightguard.comparison.places import Place, places_of
from weightguard.weights import LowRank, Rows, low_rank

BLOCK = 1 << 20  # entries of a stored block
PANEL = 1 << 23  # entries that are held of a tensor stored transposed: what BLOCK would read again eight times


@dataclass(frozen=True)
class Side:
    """A checkpoint, or one with an adapter over it (`pairs`: base tensor -> LoRA pair), which is never merged.

    Rows come in logical (out, in) order; a vector is one row. They have the stored dtype, float64 under an adapter.
    """

    files: Checkpoint
    adapter: Checkpoint | None = None
    pairs: dict[str, LoraPair] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.files.label if self.adapter is None else f"{self.files.label}+{self.adapter.label}"

    @cached_property
    def linears(self) -> dict[str, Linear]:
        return places_of(self.files)[0]

    @cached_property
    def places(self) -> dict[str, Place]:
        return places_of(self.files)[1]

    def is_float(self, name: str) -> bool:
        return self.files.info(name).dtype in FLOATS

    def holds(self, name: str, shape: tuple[int, int]) -> bool:
        """Whether it has this tensor in this shape and as floats."""
        return name in self.files.tensors and self.is_float(name) and self.shape(name) == shape

    def is_transposed(self, name: str) -> bool:
        return name in self.linears and self.linears[name].transposed

    def shape(self, name: str) -> tuple[int, int]:
        """(out, in) in logical order; further axes of a stored tensor are folded into the first."""
        stored = self.files.info(name).shape
        columns = stored[-1] if stored else 1
        rows = self.files.info(name).numel // max(1, columns)
        return (columns, rows) if self.is_transposed(name) else (rows, columns)

    def dtype(self, name: str) -> str:
        return self.files.info(name).dtype

    def update(self, name: str) -> LowRank | None:
        """s·B·A of a tensor that the adapter changes."""
        if self.adapter is None or name not in self.pairs:
            return None
        return low_rank(self.adapter, self.pairs[name])

    def rows(self, name: str) -> Rows:
        """Rows of one tensor, read from the file as they are asked for.

        Of a tensor that is stored transposed a panel of PANEL entries is held, and a vector, which is one row, as a whole.
        """
        if self.is_transposed(name):
            return self._adapted(name, self._turned(name))
        return self._adapted(name, self._folded(name) if self._is_folded(name) else self._streamed(name))

    @contextmanager
    def streaming(self, name: str) -> Iterator[Rows]:
        """The rows for one pass in order: the file is opened once, and a block is there until the next is read."""
        if self._is_folded(name):
            yield self.rows(name)
            return
        with self.files.streaming(name) as stored:
            yield self._adapted(name, stored)

    def _adapted(self, name: str, stored: Rows) -> Rows:
        update = self.update(name)
        if update is None:
            return stored
        return lambda i, j: stored(i, j).double() + exact_rows(update, i, j)

    def _is_folded(self, name: str) -> bool:
        return len(self.files.info(name).shape) != 2 or self.is_transposed(name)

    def _streamed(self, name: str) -> Rows:
        return lambda i, j: self.files.read_rows(name, i, j)

    def _folded(self, name: str) -> Rows:
        """Rows of a tensor of other than two axes: all that belong to one index of the first are read together."""
        shape = self.files.info(name).shape
        if len(shape) < 2:
            whole = self.files.read(name).reshape(1, -1)
            return lambda i, j: whole[i:j]
        inner = math.prod(shape[1:-1])

        def rows(start: int, stop: int) -> torch.Tensor:
            first = start // inner
            read = self.files.read_rows(name, first, -(-stop // inner)).reshape(-1, shape[-1])
            return read[start - first * inner : stop - first * inner]

        return rows

    def _turned(self, name: str) -> Rows:
        """Rows of a tensor that is stored (in, out). They are columns in the file, so each panel of them is a pass over it."""
        out, into = self.shape(name)
        step, first, panel = max(1, PANEL // into), 0, None

        def rows(start: int, stop: int) -> torch.Tensor:
            nonlocal first, panel
            if panel is None or start < first or stop > first + panel.shape[0]:
                panel = None  # freed before the next is taken
                first, panel = start, self._columns(name, start, max(stop, min(start + step, out)))
            return panel[start - first : stop - first]

        return rows

    def _columns(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Columns start..stop of a matrix as stored, as rows."""
        rows, width = self.files.info(name).shape
        found, step = None, max(1, BLOCK // width)
        with self.files.streaming(name) as stored:
            for i in range(0, rows, step):
                block = stored(i, min(i + step, rows))[:, start:stop]
                found = torch.empty(stop - start, rows, dtype=block.dtype) if found is None else found
                found[:, i : i + len(block)] = block.T
        assert found is not None
        return found


def exact_rows(update: LowRank, start: int, stop: int) -> torch.Tensor:
    """Rows of s·B·A in float64."""
    return update.scaling * (update.b[start:stop] @ update.a)
