"""The header of a safetensors file, read strictly: nothing the format forbids is accepted.

Layout: 8 bytes little-endian header length, that many bytes of JSON, then the data. The data must be covered by the
tensors exactly: no hole, no overlap, no trailing byte.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from operator import attrgetter
from typing import NamedTuple, TypeGuard

from weightguard.checkpoint import strict_json
from weightguard.errors import CheckpointError, SystemFailure

MAX_HEADER = 100_000_000
MAX_TENSORS = 1_000_000
MAX_NAME = 1000
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
    "U16": 16, "U8": 8, "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")

# A header as writers write it: entries one after the other, keys in this order, nothing escaped. Numbers of 18 digits
# are below 2**63. What is not so is no error, but left to the JSON parser, which is slower.
_SIZE = "(0|[1-9][0-9]{0,17})"
_PLAIN = re.compile(
    r'"([^"\\\x00-\x1f]*+)": ?\{"dtype": ?"([A-Z0-9_]++)", ?"shape": ?(\[[0-9, ]*+\]), ?'
    rf'"data_offsets": ?\[{_SIZE}, ?{_SIZE}\]\}}, ?'
)
_METADATA = re.compile(r'\{ ?"__metadata__": ?(\{(?:[^"{}]*+"(?:[^"\\]|\\.)*+")*+[^"{}]*+\}), ?', re.DOTALL)


class TensorInfo(NamedTuple):
    """Where one tensor lies: `start` and `end` are absolute byte offsets in `file` (a name inside the directory)."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def numel(self) -> int:
        return prod(self.shape)


class State(NamedTuple):
    """What tells that a name leads to the file it led to, and that nobody wrote to it.

    The time of the inode is left out: a hard link, another owner or another mode change no byte.
    """

    device: int
    inode: int
    size: int
    modified_ns: int


@dataclass(frozen=True)
class Header:
    """`raw` is the length word and the JSON as found, so that a rewrite keeps order, padding and metadata.

    state: of the file just before the header was read.
    """

    raw: bytes
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    state: State


def state_of(descriptor: int) -> State:
    """The state of an open file."""
    status = os.fstat(descriptor)
    return State(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def read_header(descriptor: int, file: str) -> Header:
    """Read and check the header of an open file; `file` is the name used in messages. Errors: CheckpointError."""
    state = state_of(descriptor)
    length = _header_length(descriptor, file, state.size)
    raw = _first(descriptor, file, 8 + length)
    if len(raw) != 8 + length:
        raise CheckpointError(f"{file}: the file became shorter while it was read; copy it again")
    with _uncollected():
        tensors, metadata = _plain(raw[8:], file, 8 + length) or _parsed(raw[8:], file, 8 + length)
    _check_cover(tensors, file, 8 + length, state.size)
    return Header(raw, tensors, metadata, state)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No search for cycles meanwhile: there are none in a header, and every million objects would be gone through again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _parsed(text: bytes, file: str, data_start: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors and metadata of a header of any form. Errors: CheckpointError."""
    objects = MAX_TENSORS + 1 + (b'"__metadata__"' in text)
    entries = strict_json.parse(text, f"{file}: header", max_objects=objects)
    if not isinstance(entries, dict):
        raise CheckpointError(f"{file}: the header is not a JSON object")
    metadata = _metadata(entries.pop("__metadata__", {}), file)
    _check_count(len(entries), file)
    return {name: _tensor(name, entry, file, data_start) for name, entry in entries.items()}, metadata


def _plain(text: bytes, file: str, data_start: int) -> tuple[dict[str, TensorInfo], dict[str, str]] | None:
    """The same of a header in the form that writers write, several times faster; None for every other form."""
    try:
        said = str(text, "utf-8").rstrip(" ")
        first = _METADATA.match(said)
        metadata = _metadata(strict_json.parse(first[1].encode(), file), file) if first else {}
        parts = _PLAIN.split(said[first.end() if first else 1 : -1] + ",")
    except (ValueError, CheckpointError):
        return None
    names, gaps = parts[1::6], parts[::6]
    if any(gaps) or said[-1:] != "}":
        return None
    _check_count(len(names), file)
    shapes = _shapes(set(parts[3::6]))
    if shapes is None or len({*names, "__metadata__"}) <= len(names):
        return None
    rows = zip(names, parts[2::6], parts[3::6], map(int, parts[4::6]), map(int, parts[5::6]), strict=True)
    return {n: _placed(n, file, dtype, shapes[shape], data_start, b, e) for n, dtype, shape, b, e in rows}, metadata


def _shapes(texts: set[str]) -> dict[str, tuple[tuple[int, ...], int]] | None:
    """Each shape read once, however many tensors have it; None where one is none."""
    try:
        found = {text: _shape(json.loads(text)) for text in texts}
    except ValueError:
        return None
    known = {text: shape for text, shape in found.items() if shape is not None}
    return known if len(known) == len(found) else None


def _check_count(count: int, file: str) -> None:
    if count > MAX_TENSORS:
        raise CheckpointError(f"{file}: {count} tensors in one header, more than {MAX_TENSORS}")


def _first(descriptor: int, file: str, count: int) -> bytes:
    try:
        return os.pread(descriptor, count, 0)
    except OSError as error:
        raise SystemFailure(f"{file}: cannot be read: {error.strerror}") from error


def _header_length(descriptor: int, file: str, size: int) -> int:
    start = _first(descriptor, file, 256)
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file}: a git-lfs pointer, not the weights; run `git lfs pull` in that directory")
    if re.match(rb"\s*<(!doctype|html)", start, re.IGNORECASE):
        raise CheckpointError(f"{file}: an HTML page saved under this name, not the weights; download it again")
    if size < 10:
        raise CheckpointError(f"{file}: {size} bytes, too short for a safetensors file; download it again")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER or start[8:9] != b"{":
        raise CheckpointError(f"{file}: not a safetensors file (no header where one must be)")
    if 8 + length > size:
        raise CheckpointError(f"{file}: truncated inside its header ({size} of at least {8 + length} bytes)")
    return length


def _metadata(value: object, file: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise CheckpointError(f"{file}: __metadata__ is not an object of strings")
    return value


def _tensor(name: str, entry: object, file: str, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{_where(name, file)}: needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise CheckpointError(f"{_where(name, file)}: unknown dtype {str(dtype)[:40]!r}")
    known = _shape(shape)
    if known is None:
        raise CheckpointError(f"{_where(name, file)}: shape {str(shape)[:80]} is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{_where(name, file)}: data_offsets {str(offsets)[:80]} are not a begin and an end")
    return _placed(name, file, dtype, known, data_start, *offsets)


def _placed(
    name: str, file: str, dtype: str, shape: tuple[tuple[int, ...], int], data_start: int, begin: int, end: int
) -> TensorInfo:
    """A tensor whose name, dtype, shape (with its number of entries) and offsets go together. Error: CheckpointError."""
    if len(name) > MAX_NAME or name[:1] == "/" or (".." in name and ".." in name.split("/")):
        raise CheckpointError(f"{_where(name, file)}: a path, not the name of a tensor")
    if dtype not in BITS:
        raise CheckpointError(f"{_where(name, file)}: unknown dtype {dtype[:40]!r}")
    if begin > end:
        raise CheckpointError(f"{_where(name, file)}: data_offsets {[begin, end]} are not a begin and an end")
    bits = shape[1] * BITS[dtype]
    if bits != 8 * (end - begin):
        raise CheckpointError(
            f"{_where(name, file)}: {dtype} {list(shape[0])} needs {bits / 8:g} bytes, its offsets hold {end - begin}"
        )
    return TensorInfo(name, file, dtype, shape[0], data_start + begin, data_start + end)


def _where(name: str, file: str) -> str:
    """What an error of a tensor begins with. Error: CheckpointError for a name that would fill the screen."""
    if len(name) > MAX_NAME:
        raise CheckpointError(
            f"{file}: tensor {name[:60]!r}...: a name of {len(name)} characters, more than {MAX_NAME}"
        )
    return f"{file}: tensor {name!r}"


def _shape(value: object) -> tuple[tuple[int, ...], int] | None:
    """A shape with its number of entries, or None for what is none."""
    if not _are_sizes(value) or len(value) > 64:
        return None
    numel = prod(value)
    product = numel or prod(size for size in value if size)
    return (tuple(value), numel) if product < 2**63 else None


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return type(value) is list and all(type(each) is int and 0 <= each < 2**63 for each in value)


def _check_cover(tensors: dict[str, TensorInfo], file: str, begin: int, size: int) -> None:
    position = begin
    for info in sorted(tensors.values(), key=attrgetter("start", "end")):
        if info.start != position:
            kind = "overlaps the one before it" if info.start < position else "leaves a hole before it"
            raise CheckpointError(f"{file}: tensor {info.name!r} {kind} (byte {info.start}, expected {position})")
        position = info.end
    if position > size:
        raise CheckpointError(
            f"{file}: truncated, {size} bytes where the header needs {position}; download the shard again"
        )
    if position < size:
        raise CheckpointError(f"{file}: {size - position} bytes after the last tensor that no tensor owns")
