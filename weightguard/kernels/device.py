"""The CUDA kernels: compiled with NVRTC from the shipped sources when they are first called, launched on raw pointers.

WEIGHTGUARD_CUDA=0 turns them off: torch does the work on the device.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from weightguard.errors import SystemFailure, UsageError
from weightguard.kernels.reference import SUMS, Choice, Pair, Taken

TYPES = {torch.float32: "float", torch.bfloat16: "Bfloat16", torch.float16: "Float16"}
VECTOR = 16  # bytes of the widest load
WARP, FEW_THREADS, MOST_THREADS = 32, 256, 1024  # of a block: a warp, what is aimed at, what there can be
KEYS, OTHERS = 32, 40  # registers of a thread: at most for the keys of a row, and about what all else takes
REGISTERS, RESIDENT, SHARED = 65536, 2048, 227 * 1024  # of a multiprocessor: registers, threads, bytes of a block
LISTS, ASKED_FOR = (
    3072,
    48 * 1024,
)  # bytes of shared memory: of a selection beside its rows; from where on it is asked for
SUM_WARPS, PAIR_THREADS, PAIR_FIGURES = 8, 256, 7  # as in the sources
SUM_BLOCKS = 4  # on a multiprocessor, of column sums
OPTIONS = ("-std=c++17", "--fmad=false")  # sums must round as torch's do
Constants = tuple[tuple[str, object], ...]


def takes(*tensors: torch.Tensor | None) -> bool:
    """True when CUDA kernels are wanted and can read all of these: contiguous matrices of one dtype on one device."""
    wanted = os.environ.get("WEIGHTGUARD_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise UsageError(f"WEIGHTGUARD_CUDA={wanted!r}: expected 0, 1 or nothing")
    given = [t for t in tensors if t is not None]
    return wanted != "0" and all(
        t.is_cuda and t.device == given[0].device and t.dtype == given[0].dtype and t.dtype in TYPES
        and t.is_contiguous() and t.numel() > 0 and max(t.shape) < 2**31
        for t in given
    )  # fmt: skip


@dataclass(frozen=True)
class Width:
    """How a block of the selection holds a row: `spans` vectors of each of `threads` threads, `buffers` rows of `size`
    bytes in shared memory; `blocks` on a multiprocessor."""

    spans: int
    threads: int
    blocks: int
    buffers: int
    size: int


def width_of(columns: int, dtype: torch.dtype, *, restore: bool = False, shared: int = SHARED) -> Width | None:
    """The block for rows of this width, with its aligned twin to `restore` from; None when no block can hold one.

    shared: bytes of shared memory that the device gives a block.
    """
    each = VECTOR // dtype.itemsize
    vectors = -(-columns // each)
    spans = max(1, min(KEYS // each, vectors // FEW_THREADS))
    threads = -(-vectors // (spans * WARP)) * WARP
    size = VECTOR * spans * threads * (1 + restore)
    if threads > MOST_THREADS or size + LISTS > shared:
        return None
    buffers = min(2, (shared - LISTS) // size)
    blocks = min(
        REGISTERS // (threads * (spans * each + OTHERS)), RESIDENT // threads, shared // (buffers * size + LISTS)
    )
    return Width(spans, threads, max(1, blocks), buffers, size)


def width_for(weights: torch.Tensor, aligned: torch.Tensor | None) -> Width | None:
    """`width_of` these weights on their device."""
    shared = _properties(weights.device).shared_memory_per_block_optin
    return width_of(weights.shape[1], weights.dtype, restore=aligned is not None, shared=shared)


def select_rows(weights: torch.Tensor, choice: Choice, aligned: torch.Tensor | None) -> Taken:
    """See ops.select_apply: group "row", nothing spared and nothing measured; rows that `width_of` has a block for."""
    bad, same = launch_select_rows(weights, choice, aligned).tolist()
    selected = choice.k * weights.shape[0]
    return Taken(finite=False) if bad else Taken(selected, selected - same)


def launch_select_rows(weights: torch.Tensor, choice: Choice, aligned: torch.Tensor | None) -> torch.Tensor:
    """What `select_rows` starts: int64 (2,) on the device, whether a key was not finite and taken entries unchanged."""
    rows, columns = weights.shape
    width = width_for(weights, aligned)
    assert width is not None
    norms = torch.ones(columns) if choice.norms is None else choice.norms
    norms = norms.to(weights.device).contiguous()
    told = torch.zeros(2, dtype=torch.int64, device=weights.device)
    origin = weights if aligned is None else aligned
    shared = width.buffers * width.size
    shared = shared if shared + LISTS <= ASKED_FOR else max(shared, ASKED_FOR)
    kernel = _kernel(
        "select_rows", weights, shared, SPANS=width.spans, THREADS=width.threads, BLOCKS=width.blocks, BUFFERS=width.buffers,
        COLUMNS=columns, RESTORE=int(aligned is not None), ALIGNED=_aligned(columns, weights, origin, norms),
    )  # fmt: skip
    grid = min(rows, _properties(weights.device).multi_processor_count * width.blocks)
    kernel((grid, 1, 1), (width.threads, 1, 1), [weights, origin, norms, told, rows, choice.k], shared)
    return told


def square_sums(rows: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """See ops.square_sums; float64 (in,) on the device."""
    count, columns = rows.shape
    groups = -(-columns * rows.element_size() // (WARP * VECTOR))
    shares = max(
        1, min(-(-SUM_BLOCKS * _properties(rows.device).multi_processor_count // groups), -(-count // SUM_WARPS))
    )
    parts = torch.empty(shares, columns, dtype=torch.float64, device=rows.device)
    arrived = torch.zeros(groups, dtype=torch.int32, device=rows.device)
    total = torch.empty(columns, dtype=torch.float64, device=rows.device)
    chosen = counted.to(rows.device).contiguous().view(torch.uint8)
    _kernel("square_sums", rows, ALIGNED=_aligned(columns, rows))(
        (groups, shares, 1), (SUM_WARPS * WARP, 1, 1), [rows, chosen, parts, arrived, total, count, columns]
    )
    return total


def pair_statistics(a: torch.Tensor, b: torch.Tensor) -> Pair:
    """See ops.pair_statistics."""
    *sums, largest, changed = launch_pair(a, b).tolist()
    if not all(map(isfinite, sums[:2])):
        return Pair()
    return Pair(**dict(zip(SUMS, sums, strict=True)), largest=largest, changed=int(changed), finite=True)


def launch_pair(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """float64 (7,) on the device: the sums in the order of SUMS, the largest difference, the entries that differ."""
    resident = RESIDENT // PAIR_THREADS // 2 * _properties(a.device).multi_processor_count
    blocks = min(resident, -(-a.numel() // PAIR_THREADS))
    found = torch.empty(blocks, PAIR_FIGURES, dtype=torch.float64, device=a.device)
    kernel = _kernel("pair", a, ALIGNED=_aligned(VECTOR, a, b))
    kernel((blocks, 1, 1), (PAIR_THREADS, 1, 1), [a, b, found, *a.shape])
    total, largest = found.sum(0), found[:, len(SUMS)].amax()
    total[len(SUMS)] = largest
    return total


def _aligned(columns: int, *tensors: torch.Tensor) -> int:
    """1 when every row of all of these starts at a multiple of a vector's bytes, else 0."""
    return int(all(t.data_ptr() % VECTOR == 0 and columns * t.element_size() % VECTOR == 0 for t in tensors))


@cache
def _properties(device: torch.device) -> Any:
    return torch.cuda.get_device_properties(device)


def sources() -> Path:
    """Where the .cu files lie: inside an installed package, else in the source tree."""
    shipped = Path(__file__).with_name("cuda")
    return shipped if shipped.is_dir() else Path(__file__).parents[2] / "cpp_ext" / "cuda"


def _kernel(name: str, tensor: torch.Tensor, shared: int = 0, **constants: int) -> Any:
    given = (("TYPE", TYPES[tensor.dtype]), *constants.items())
    found = _properties(tensor.device)
    with torch.cuda.device(tensor.device):
        return _loaded(name, f"sm_{found.major}{found.minor}", tensor.device.index, given, shared)


@cache
def _loaded(name: str, target: str, device: int, constants: Constants, shared: int) -> Any:
    from torch.cuda._utils import _cuda_load_module  # pins torch: its launcher for raw pointers has no public name

    loaded: Any = _cuda_load_module(compiled(name, target, constants), [name])
    loaded[name].set_shared_memory_config(shared)
    return loaded[name]


@cache
def compiled(name: str, target: str, constants: Constants = ()) -> bytes:
    """The cubin of one source for a target such as "sm_90". Error: SystemFailure with the compiler's own words."""
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    source, header = ((sources() / file).read_bytes() for file in (f"{name}.cu", "values.cuh"))
    included, as_name = (ctypes.c_char_p * 1)(header), (ctypes.c_char_p * 1)(b"values.cuh")
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, f"{name}.cu".encode(), 1, included, as_name))
    defined = (f"-D{key}={value}" for key, value in constants)
    options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={target}", *defined)]
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
