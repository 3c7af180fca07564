"""The compiled kernels behind ctypes: finds the shared library, checks it, and turns tensors into its call structures.

WEIGHTGUARD_NATIVE=0 leaves it out, 1 makes its absence an error, unset uses it where it is there.
WEIGHTGUARD_ISA=portable, avx2 or avx512 forces one set of inner loops. Both are read at every call.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from math import fsum
from pathlib import Path

import torch

from weightguard.errors import SystemFailure, UsageError
from weightguard.kernels.reference import PRODUCT_BLOCK, SUMS, Choice, Pair, Taken

ABI = 6
ISAS = {"": 0, "portable": 1, "avx2": 2, "avx512": 3}
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
NOT_FINITE, NO_MEMORY = 1, -1
_I32, _I64, _PTR = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
_PLAIN = {  # functions that take no structure
    "wg_finite": (_PTR, _I64, _I32, _I32, _I32),
    "wg_key_rows": (_PTR, _I64, _I64, _I64, _PTR, _I32),
    "wg_key_counts": (_PTR, _I64, _I32, _I32, _I64, _PTR),
}


class _Matrix(ctypes.Structure):
    _fields_ = (("data", _PTR), ("row_stride", _I64), ("column_stride", _I64))


class _Select(ctypes.Structure):
    """WgSelect of cpp_ext/cpu/abi.h."""

    _fields_ = (
        *((name, _Matrix) for name in ("weights", "aligned")),
        *((name, _I64) for name in ("rows", "columns")),
        *((name, _PTR) for name in ("norms", "spare_norms")),
        *((name, _I64) for name in ("k", "spare_k")),
        *((name, _PTR) for name in ("weight", "change", "before", "after")),
        *((name, _I64) for name in ("selected", "changed")),
        *((name, _I32) for name in ("dtype", "by_row", "threads", "isa")),
    )


class _Pair(ctypes.Structure):
    """WgPair of cpp_ext/cpu/abi.h."""

    _fields_ = (
        *((name, _Matrix) for name in ("a", "b")),
        *((name, _I64) for name in ("rows", "columns")),
        *((name, _PTR) for name in ("aa", "bb", "ab", "dd", "d4")),
        ("largest", ctypes.c_double),
        ("changed", _I64),
        *((name, _I32) for name in ("dtype", "threads", "isa")),
    )


class _Scale(ctypes.Structure):
    """WgScale of cpp_ext/cpu/abi.h."""

    _fields_ = (
        *((name, _Matrix) for name in ("weights", "origin")),
        *((name, _I64) for name in ("rows", "columns")),
        *((name, _PTR) for name in ("weight", "change", "before", "after")),
        ("changed", _I64),
        ("keep", ctypes.c_float),
        *((name, _I32) for name in ("dtype", "threads", "isa")),
    )


class _Squares(ctypes.Structure):
    """WgSquares of cpp_ext/cpu/abi.h."""

    _fields_ = (
        *((name, _PTR) for name in ("inputs", "counted", "total")),
        *((name, _I64) for name in ("rows", "columns", "row_stride")),
        *((name, _I32) for name in ("dtype", "threads", "isa")),
    )


class _Products(ctypes.Structure):
    """WgProducts of cpp_ext/cpu/abi.h."""

    _fields_ = (
        *((name, _Matrix) for name in ("a", "b")),
        *((name, _I64) for name in ("rows", "columns", "width")),
        *((name, _PTR) for name in ("x", "inner", "outer")),
        *((name, _I32) for name in ("dtype", "threads", "isa")),
    )


def compiled() -> ctypes.CDLL | None:
    """The loaded kernels, or None where the torch reference runs. Error: SystemFailure when they were demanded."""
    wanted = os.environ.get("WEIGHTGUARD_NATIVE", "")
    if wanted not in ("", "0", "1"):
        raise UsageError(f"WEIGHTGUARD_NATIVE={wanted!r}: expected 0, 1 or nothing")
    if wanted == "0":
        return None
    loaded, problem = _load()
    if loaded is None and wanted == "1":
        raise SystemFailure(f"WEIGHTGUARD_NATIVE=1, but the compiled kernels cannot be used: {problem}")
    return loaded


def status() -> str:
    """One line for people: which implementation runs, and why."""
    if compiled() is None:
        off = os.environ.get("WEIGHTGUARD_NATIVE") == "0"
        return f"torch reference ({'WEIGHTGUARD_NATIVE=0' if off else _load()[1]})"
    return f"compiled kernels, {available()[-1] if isa() == 0 else os.environ['WEIGHTGUARD_ISA']}"


def available() -> tuple[str, ...]:
    """Instruction sets that the compiled kernels can use on this machine, the best one last."""
    loaded = compiled()
    return () if loaded is None else tuple(ISAS)[1 : loaded.wg_best_isa() + 1]


def isa() -> int:
    """The code of the forced instruction set, 0 for the best. Errors: UsageError, SystemFailure."""
    name = os.environ.get("WEIGHTGUARD_ISA", "")
    if name not in ISAS:
        raise UsageError(f"WEIGHTGUARD_ISA={name!r}: expected portable, avx2 or avx512")
    if name and name not in available():
        raise SystemFailure(f"WEIGHTGUARD_ISA={name}: this machine has {', '.join(available())}")
    return ISAS[name]


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    here = Path(__file__).parent
    found = [path for suffix in EXTENSION_SUFFIXES if (path := here / f"_native{suffix}").is_file()]
    if not found:
        return None, "the package was built without a C++ compiler"
    try:
        loaded = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return None, f"{found[0].name} does not load ({error})"
    if loaded.wg_abi() != ABI:
        return None, f"{found[0].name} was built from other sources; install the package again"
    return typed(loaded), ""


def typed(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the arguments of its plain functions declared."""
    for name, arguments in _PLAIN.items():
        getattr(loaded, name).argtypes = arguments
    return loaded


def takes(*tensors: torch.Tensor | None) -> bool:
    """True when the kernels are there and can read and write all of these matrices: one dtype they know, on the CPU,
    no entry shared."""
    given = [t for t in tensors if t is not None]
    fit = all(t.dtype == given[0].dtype and t.dtype in DTYPES and t.is_cpu and not _overlaps(t) for t in given)
    return fit and compiled() is not None


def _overlaps(tensor: torch.Tensor) -> bool:
    """True unless rows lie one behind the other, or columns do (a transposed tensor, or a slice of either)."""
    (rows, columns), (row, column) = tensor.shape, tensor.stride()
    by_row = (column == 1 or columns <= 1) and (row >= columns or rows <= 1)
    by_column = (row == 1 or rows <= 1) and (column >= rows or columns <= 1)
    return not (by_row or by_column)


def select_apply(weights: torch.Tensor, choice: Choice, aligned: torch.Tensor | None, measure: bool) -> Taken:
    """See ops.select_apply."""
    rows, columns = weights.shape
    keys = ("weight", "change", "before", "after")[: 2 if aligned is None else 4] if measure else ()
    sums = {key: torch.zeros(rows, dtype=torch.float64) for key in keys}
    norms, spare = (None if n is None else n.contiguous() for n in (choice.norms, choice.spare_norms))
    call = _Select(
        weights=_matrix(weights), aligned=_matrix(aligned), rows=rows, columns=columns,
        norms=_pointer(norms), spare_norms=_pointer(spare), k=choice.k, spare_k=choice.spare_k,
        **{key: _pointer(each) for key, each in sums.items()},
        dtype=DTYPES[weights.dtype], by_row=choice.group == "row",
    )  # fmt: skip
    if not _run("wg_select", call):
        return Taken(finite=False)
    return Taken(call.selected, call.changed, True, {key: each.tolist() for key, each in sums.items()})


def pair_statistics(a: torch.Tensor, b: torch.Tensor) -> Pair:
    """See ops.pair_statistics."""
    call, sums = _pair(a, b)
    if call is None:
        return Pair()
    totals = {key: fsum(each.tolist()) for key, each in sums.items()}
    return Pair(**totals, largest=call.largest, changed=call.changed, finite=True)


def moved(
    before: torch.Tensor, after: torch.Tensor, aligned: torch.Tensor | None
) -> tuple[int, dict[str, list[float]]] | None:
    """See ops.moved; None where a value is NaN or infinite."""
    call, sums = _pair(before, after)
    squares = {"weight": sums["aa"], "change": sums["dd"]}
    if aligned is not None:
        squares |= {"before": _pair(before, aligned)[1]["dd"], "after": _pair(after, aligned)[1]["dd"]}
    return None if call is None else (call.changed, {key: each.tolist() for key, each in squares.items()})


def scale(weights: torch.Tensor, keep: float, aligned: torch.Tensor | None) -> Taken:
    """See ops.scale."""
    rows, columns = weights.shape
    keys = ("weight", "change") if aligned is None else ("weight", "change", "before", "after")
    sums = {key: torch.zeros(rows, dtype=torch.float64) for key in keys}
    call = _Scale(weights=_matrix(weights), origin=_matrix(aligned), rows=rows, columns=columns, keep=keep,
                  dtype=DTYPES[weights.dtype], **{key: _pointer(each) for key, each in sums.items()})  # fmt: skip
    if not _run("wg_scale", call):
        return Taken(finite=False)
    return Taken(weights.numel(), call.changed, True, {key: each.tolist() for key, each in sums.items()})


def _pair(a: torch.Tensor, b: torch.Tensor) -> tuple[_Pair | None, dict[str, torch.Tensor]]:
    """The call and its sums (rows,); no call where a value is NaN or infinite."""
    rows, columns = a.shape
    sums = dict(zip(SUMS, torch.zeros(len(SUMS), rows, dtype=torch.float64), strict=True))
    call = _Pair(a=_matrix(a), b=_matrix(b), rows=rows, columns=columns, dtype=DTYPES[a.dtype],
                 **{key: _pointer(each) for key, each in sums.items()})  # fmt: skip
    return call if _run("wg_pair", call) else None, sums


def square_sums(rows: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """See ops.square_sums; rows (positions, in) with neighbouring columns."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    chosen = counted.to(torch.bool).contiguous()
    _run("wg_squares", _Squares(inputs=_pointer(rows), counted=_pointer(chosen), total=_pointer(total),
                                rows=rows.shape[0], columns=rows.shape[1], row_stride=rows.stride(0),
                                dtype=DTYPES[rows.dtype]))  # fmt: skip
    return total


def row_mask(keys: torch.Tensor, k: int) -> torch.Tensor:
    """See reference.row_mask; contiguous keys on the CPU."""
    loaded, mask = compiled(), torch.empty(keys.shape, dtype=torch.bool)
    assert loaded is not None
    status = loaded.wg_key_rows(_pointer(keys), keys.shape[0], keys.shape[1], k, _pointer(mask), isa())
    _finished("wg_key_rows", status)
    return mask


def key_counts(keys: torch.Tensor, shift: int, first: int, bins: int) -> torch.Tensor:
    """See reference.key_counts; keys on the CPU."""
    loaded, counts, keys = compiled(), torch.zeros(bins, dtype=torch.int64), keys.contiguous()
    assert loaded is not None
    status = loaded.wg_key_counts(_pointer(keys), keys.numel(), shift, first, bins, _pointer(counts))
    _finished("wg_key_counts", status)
    return counts


def difference_products(a: torch.Tensor, b: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See ops.difference_products; x float32."""
    (rows, columns), width = a.shape, -(-x.shape[1] // 16) * 16
    more = -rows % PRODUCT_BLOCK
    wide = torch.nn.functional.pad(x, (0, width - x.shape[1], 0, more)).contiguous()
    inner, outer = torch.empty(columns, width, dtype=torch.float64), torch.empty(rows, width, dtype=torch.float64)
    _run("wg_products", _Products(a=_matrix(a), b=_matrix(b), rows=rows, columns=columns, width=width, x=_pointer(wide),
                                  inner=_pointer(inner), outer=_pointer(outer), dtype=DTYPES[a.dtype]))  # fmt: skip
    return inner[:, : x.shape[1]], outer[:, : x.shape[1]]


def is_finite(tensor: torch.Tensor) -> bool:
    """See ops.is_finite; a contiguous tensor."""
    loaded = compiled()
    assert loaded is not None
    kind, threads = DTYPES[tensor.dtype], torch.get_num_threads()
    return _finished("wg_finite", loaded.wg_finite(_pointer(tensor), tensor.numel(), kind, threads, isa()))


def _matrix(tensor: torch.Tensor | None) -> _Matrix:
    if tensor is None:
        return _Matrix()
    # The stride of a single column or row is free in torch; the kernels take 1 for "neighbours".
    return _Matrix(_pointer(tensor), tensor.stride(0), 1 if tensor.shape[1] <= 1 else tensor.stride(1))


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _run(name: str, call: ctypes.Structure) -> bool:
    loaded = compiled()
    assert loaded is not None
    call.threads, call.isa = torch.get_num_threads(), isa()
    return _finished(name, getattr(loaded, name)(ctypes.byref(call)))


def _finished(name: str, status: int) -> bool:
    """False for NaN or infinity, True for success. Errors: MemoryError, RuntimeError."""
    if status == NO_MEMORY:
        raise MemoryError(f"{name}: no memory for the working buffers")
    if status not in (0, NOT_FINITE):
        raise RuntimeError(f"{name}: refused its arguments (status {status})")
    return status == 0
