"""The CUDA kernels: compiled with NVRTC from the shipped sources when they are first called, launched on raw pointers.

None of them has ever run: no GPU was at hand. They are off, and torch does the work on the device, unless
WEIGHTGUARD_CUDA=1 asks for them.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from math import fsum
from pathlib import Path
from typing import Any

import torch

from weightguard.errors import SystemFailure, UsageError
from weightguard.kernels.reference import SUMS, Choice, Pair, Taken

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
THREADS, SEGMENTS = 256, 64
STAGED = 48 * 1024 // 4  # keys that fit into the shared memory that every device gives a block, less a little
OPTIONS = ("-std=c++17", "--fmad=false")  # sums must round as torch's do


def takes(*tensors: torch.Tensor | None) -> bool:
    """True when CUDA kernels are wanted and can read all of these: contiguous matrices of one dtype on one device."""
    wanted = os.environ.get("WEIGHTGUARD_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise UsageError(f"WEIGHTGUARD_CUDA={wanted!r}: expected 0, 1 or nothing")
    given = [t for t in tensors if t is not None]
    return wanted == "1" and all(
        t.is_cuda and t.device == given[0].device and t.dtype == given[0].dtype and t.dtype in NAMES
        and t.is_contiguous() and t.numel() > 0 and max(t.shape) < 2**31
        for t in given
    )  # fmt: skip


def select_rows(weights: torch.Tensor, choice: Choice, aligned: torch.Tensor | None) -> Taken:
    """See ops.select_apply: group "row", nothing spared and nothing measured."""
    rows, columns = weights.shape
    norms = torch.ones(columns) if choice.norms is None else choice.norms
    bad = torch.zeros(1, dtype=torch.int32, device=weights.device)
    before, staged = weights.clone(), columns <= STAGED - 128
    _kernel("select_rows", weights)(
        (rows, 1, 1), (THREADS, 1, 1),
        [weights, weights if aligned is None else aligned, norms.to(weights.device).contiguous(), bad, columns, choice.k,
         int(aligned is not None), int(staged)],
        4 * columns if staged else 0,
    )  # fmt: skip
    if bool(bad):
        return Taken(finite=False)
    return Taken(choice.k * rows, int((weights != before).sum()))


def square_sums(rows: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """See ops.square_sums; float64 (in,) on the device."""
    total = torch.empty(SEGMENTS, rows.shape[1], dtype=torch.float64, device=rows.device)
    chosen = counted.to(rows.device, torch.uint8).contiguous()
    grid = (-(-rows.shape[1] // THREADS), SEGMENTS, 1)
    _kernel("square_sums", rows)(grid, (THREADS, 1, 1), [rows, chosen, total, *rows.shape])
    return total.sum(0)


def pair_statistics(a: torch.Tensor, b: torch.Tensor) -> Pair:
    """See ops.pair_statistics."""
    rows, columns = a.shape
    sums = torch.empty(rows, len(SUMS), dtype=torch.float64, device=a.device)
    largest = torch.empty(rows, dtype=torch.float64, device=a.device)
    changed = torch.empty(rows, dtype=torch.int32, device=a.device)
    _kernel("pair", a)((rows, 1, 1), (THREADS, 1, 1), [a, b, sums, largest, changed, columns])
    if not bool(sums[:, :2].isfinite().all()):
        return Pair()
    totals = {key: fsum(column.tolist()) for key, column in zip(SUMS, sums.T, strict=True)}
    return Pair(**totals, largest=float(largest.max()), changed=int(changed.sum()), finite=True)


def sources() -> Path:
    """Where the .cu files lie: inside an installed package, else in the source tree."""
    shipped = Path(__file__).with_name("cuda")
    return shipped if shipped.is_dir() else Path(__file__).parents[2] / "cpp_ext" / "cuda"


def _kernel(name: str, tensor: torch.Tensor) -> Any:
    with torch.cuda.device(tensor.device):
        major, minor = torch.cuda.get_device_capability()
        return _loaded(name, NAMES[tensor.dtype], f"sm_{major}{minor}", tensor.device.index)


@cache
def _loaded(name: str, dtype: str, target: str, device: int) -> Any:
    from torch.cuda._utils import _cuda_load_module  # pins torch: its launcher for raw pointers has no public name

    full = f"{name}_{dtype}"
    loaded: Any = _cuda_load_module(compiled(name, target), [full])
    return loaded[full]


@cache
def compiled(name: str, target: str) -> bytes:
    """The cubin of one source for a target such as "sm_90". Error: SystemFailure with the compiler's own words."""
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    source, header = ((sources() / file).read_bytes() for file in (f"{name}.cu", "values.cuh"))
    included, as_name = (ctypes.c_char_p * 1)(header), (ctypes.c_char_p * 1)(b"values.cuh")
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, f"{name}.cu".encode(), 1, included, as_name))
    options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={target}")]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    log = _text(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
    if status:
        raise SystemFailure(f"{name}.cu does not compile for {target}: {log.decode(errors='replace')}")
    return _text(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)


def _text(program: ctypes.c_void_p, size_of: Any, read: Any) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)))
    found = ctypes.create_string_buffer(size.value)
    _check(read(program, found))
    return found.raw


def _check(status: int) -> None:
    if status:
        raise SystemFailure(f"NVRTC fails with status {status}")


@cache
def _nvrtc() -> ctypes.CDLL:
    """NVRTC of the major version torch was built for, which torch has loaded, else any. Error: SystemFailure."""
    own = str(torch.version.cuda or "").split(".")[0]
    for version in dict.fromkeys((own, "13", "12")):
        try:
            return ctypes.CDLL(f"libnvrtc.so.{version}")
        except OSError:
            continue
    raise SystemFailure("WEIGHTGUARD_CUDA=1, but there is no NVRTC (libnvrtc.so) to compile the CUDA kernels with")
