"""Where tensors wait until the next layer: in memory, or in one nameless temporary file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch


class Held:
    """A tensor that waits in memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def get(self) -> torch.Tensor:
        return self._tensor

    def put(self, tensor: torch.Tensor) -> None:
        """The tensor that waits from now on; of the same shape."""
        self._tensor = tensor


class Spilled:
    """A tensor that waits in a file and is in memory only while somebody holds what `get` gave."""

    def __init__(self, file: int, offset: int, tensor: torch.Tensor) -> None:
        self._file, self._offset = file, offset
        self._shape, self._dtype, self._device = tensor.shape, tensor.dtype, tensor.device
        self.put(tensor)

    def get(self) -> torch.Tensor:
        found = torch.empty(self._shape, dtype=self._dtype)
        view, done = _bytes_of(found), 0
        while done < len(view):
            count = os.preadv(self._file, [view[done:]], self._offset + done)
            assert count, "the file of spilled tensors has lost its end"
            done += count
        return found.to(self._device)

    def put(self, tensor: torch.Tensor) -> None:
        """The tensor that waits from now on; of the same shape."""
        view, done = _bytes_of(tensor.detach().cpu().contiguous()), 0
        while done < len(view):
            done += os.pwrite(self._file, view[done:], self._offset + done)


class Spill:
    """Gives tensors a place in a temporary file that has no name and is gone with this object.

    Error: OSError, for example where the disk under TMPDIR is full.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  lives as long as what lies in it
        self._end = 0

    def __call__(self, tensor: torch.Tensor) -> Spilled:
        offset, self._end = self._end, self._end + tensor.numel() * tensor.element_size()
        return Spilled(self._file.fileno(), offset, tensor)


def waiting(value: Any, keep: Callable[[torch.Tensor], Held | Spilled]) -> Any:
    """`value` with every tensor in its tuples, lists and dicts kept; a tensor that is there twice is kept once."""
    kept: dict[int, Held | Spilled] = {}

    def change(each: Any) -> Any:
        if id(each) not in kept:
            kept[id(each)] = keep(each)
        return kept[id(each)]

    return _changed(value, torch.Tensor, change)


def back(value: Any) -> Any:
    """The tensors again, in place of what waits for them."""
    return _changed(value, (Held, Spilled), lambda each: each.get())


def _changed(value: Any, kind: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_changed(each, kind, change) for each in value)
    if type(value) is dict:
        return {key: _changed(each, kind, change) for key, each in value.items()}
    return value


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")
