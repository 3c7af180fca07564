"""Matrices of every kind and memory layout that the kernels are tried on."""

from __future__ import annotations

import ctypes
from mmap import ACCESS_COPY, mmap
from tempfile import TemporaryFile

import torch

from weightguard.kernels import native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("plain", "transposed", "sliced", "unaligned", "mapped")


def load(library: str) -> None:
    """Let another build run, on one thread."""
    loaded = native.typed(ctypes.CDLL(library))
    native._load = lambda: (loaded, "")
    torch.set_num_threads(1)


def laid(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The same entries in another memory layout."""
    rows, columns = values.shape
    if layout == "transposed":
        return values.T.clone(memory_format=torch.contiguous_format).T
    if layout == "sliced":
        wide = torch.zeros(rows, columns + 5, dtype=values.dtype)
        wide[:, 3 : 3 + columns] = values
        return wide[:, 3 : 3 + columns]
    if layout == "unaligned" and values.numel():
        buffer = bytearray(values.numel() * values.element_size() + 1)
        shifted = torch.frombuffer(buffer, dtype=values.dtype, offset=1).view(rows, columns)
        shifted.copy_(values)
        return shifted
    if layout == "mapped" and values.numel():
        with TemporaryFile() as file:
            file.write(values.contiguous().view(torch.uint8).numpy().tobytes())
            file.flush()
            pages = mmap(file.fileno(), 0, access=ACCESS_COPY)  # kept by the tensor
        return torch.frombuffer(pages, dtype=values.dtype).view(rows, columns)
    return values.clone()


def values(kind: str, shape: tuple[int, int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """kind: "ties" few different integers, "normal", "sparse" mostly zeros, "tiny" around the denormals of a half."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(shape, generator=generator)
    if kind == "ties":
        found = torch.randint(-3, 4, shape, generator=generator).float()
    if kind == "sparse":
        found = found * (torch.rand(shape, generator=generator) < 0.03)
    return (found * 1e-6 if kind == "tiny" else found).to(dtype)
