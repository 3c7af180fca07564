"""The header of a safetensors file, read strictly: nothing the format forbids is accepted.

Layout: 8 bytes little-endian header length, that many bytes of JSON, then the data. The data must be covered by the
tensors exactly: no hole, no overlap, no trailing byte.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from math import prod

from weightguard.checkpoint import strict_json
from weightguard.errors import CheckpointError

MAX_HEADER = 100_000_000
MAX_TENSORS = 1_000_000
MAX_NAME = 1000
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
    "U16": 16, "U8": 8, "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class TensorInfo:
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


@dataclass(frozen=True)
class Header:
    """`raw` is the length word and the JSON as found, so that a rewrite keeps order, padding and metadata."""

    raw: bytes
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_header(descriptor: int, file: str) -> Header:
    """Read and check the header of an open file; `file` is the name used in messages. Errors: CheckpointError."""
    size = os.fstat(descriptor).st_size
    length = _header_length(descriptor, file, size)
    raw = os.pread(descriptor, 8 + length, 0)
    if len(raw) != 8 + length:
        raise CheckpointError(f"{file}: the file became shorter while it was read; copy it again")
    entries = strict_json.parse(raw[8:], f"{file}: header")
    if not isinstance(entries, dict):
        raise CheckpointError(f"{file}: the header is not a JSON object")
    metadata = _metadata(entries.pop("__metadata__", {}), file)
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"{file}: {len(entries)} tensors in one header, more than {MAX_TENSORS}")
    tensors = {name: _tensor(name, entry, file, 8 + length) for name, entry in entries.items()}
    _check_cover(tensors, file, 8 + length, size)
    return Header(raw, tensors, metadata)


def _header_length(descriptor: int, file: str, size: int) -> int:
    start = os.pread(descriptor, 256, 0)
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
    if len(name) > MAX_NAME:
        raise CheckpointError(
            f"{file}: tensor {name[:60]!r}...: a name of {len(name)} characters, more than {MAX_NAME}"
        )
    where = f"{file}: tensor {name!r}"
    if name.startswith("/") or ".." in name.split("/"):
        raise CheckpointError(f"{where}: a path, not the name of a tensor")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CheckpointError(f"{where}: unknown dtype {str(dtype)[:40]!r}")
    if not _are_sizes(shape) or len(shape) > 64 or prod(s for s in shape if s) >= 2**63:
        raise CheckpointError(f"{where}: shape {str(shape)[:80]} is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets {str(offsets)[:80]} are not a begin and an end")
    bits = prod(shape) * BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise CheckpointError(
            f"{where}: {dtype} {shape} needs {bits / 8:g} bytes, its offsets hold {offsets[1] - offsets[0]}"
        )
    return TensorInfo(name, file, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _check_cover(tensors: dict[str, TensorInfo], file: str, begin: int, size: int) -> None:
    position = begin
    for info in sorted(tensors.values(), key=lambda t: (t.start, t.end)):
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
