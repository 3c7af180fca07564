"""Which files of a directory hold the weights: one file, or an index and its shards; never both, never outside."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from weightguard.checkpoint import strict_json
from weightguard.checkpoint.header import MAX_NAME, Header, State, read_header, state_of
from weightguard.checkpoint.hub import allowed_target
from weightguard.errors import CheckpointError, SystemFailure

MODEL, ADAPTER = "model", "adapter"
_NUMBERED = re.compile(r"(.{1,200})-\d{5}-of-(\d{5})\.safetensors")
_STEM = {MODEL: "model", ADAPTER: "adapter_model"}


@dataclass(frozen=True)
class Layout:
    """`files` in the order in which they are written out; `index` is the parsed index, None for a single file."""

    kind: str
    files: tuple[str, ...]
    headers: dict[str, Header]
    index: dict | None
    notes: tuple[str, ...]

    @property
    def index_name(self) -> str | None:
        return None if self.index is None else _STEM[self.kind] + ".safetensors.index.json"


def read_layout(directory: Path) -> Layout:
    """Find, open and check every weight file of `directory`. Errors: CheckpointError naming file and tensor."""
    kind = ADAPTER if (directory / "adapter_config.json").exists() else MODEL
    single = directory / f"{_STEM[kind]}.safetensors"
    index_path = directory / f"{_STEM[kind]}.safetensors.index.json"
    if os.path.lexists(single) and os.path.lexists(index_path):
        raise CheckpointError(f"{single.name} and {index_path.name}: two layouts at once; keep the one that is meant")
    if not os.path.lexists(index_path):
        return _single(directory, kind, single)
    index = _read_index(directory, index_path)
    files = tuple(sorted(set(index["weight_map"].values())))
    headers = {file: header_of(directory, file) for file in files}
    _check_map(index["weight_map"], headers, index_path.name)
    _check_left_out(directory, files, index_path.name)
    return Layout(kind, files, headers, index, _total_size_note(index, headers, index_path.name))


def _single(directory: Path, kind: str, single: Path) -> Layout:
    if not os.path.lexists(single):
        other = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".gguf"))
        also = f"; {other[0]} is not read (pickles can run code): convert it to safetensors first" if other else ""
        whole = f"{_STEM[MODEL]}.safetensors"
        if kind == ADAPTER and any(os.path.lexists(directory / name) for name in (whole, f"{whole}.index.json")):
            also += "; adapter_config.json makes it an adapter: take that file away to have the full model beside it"
        raise CheckpointError(f"{directory}: no {single.name} and no {single.name}.index.json{also}")
    return Layout(kind, (single.name,), {single.name: header_of(directory, single.name)}, None, ())


@contextlib.contextmanager
def opened(directory: Path, file: str, state: State | None = None) -> Iterator[int]:
    """A descriptor of a weight file that is regular and lies inside `directory` (or its hub cache blobs).

    state: in which it must be, before and after. Error: CheckpointError where it is another file, or was written to.
    """
    target = allowed_target(directory / file, directory)
    try:
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SystemFailure(f"{file}: cannot be opened: {error.strerror}") from error
    try:
        _check_state(descriptor, file, state)
        yield descriptor
        _check_state(descriptor, file, state)
    finally:
        os.close(descriptor)


def _check_state(descriptor: int, file: str, state: State | None) -> None:
    if state is not None and state_of(descriptor) != state:
        raise CheckpointError(f"{file}: changed while it was read; start again once nothing writes to it")


def header_of(directory: Path, file: str) -> Header:
    with opened(directory, file) as descriptor:
        return read_header(descriptor, file)


def _read_index(directory: Path, path: Path) -> dict:
    index = strict_json.read(allowed_target(path, directory), path.name)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(index, dict) or not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path.name}: no weight_map; it must map tensor names to shard files")
    for tensor, file in weight_map.items():
        where = f"{path.name}: tensor {tensor[:MAX_NAME]!r} points to {str(file)[:80]!r}"
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
            raise CheckpointError(f"{where}, outside the directory")
        if not file.endswith(".safetensors") or not file.isprintable():
            raise CheckpointError(f"{where}, not a safetensors file")
    missing = next((file for file in weight_map.values() if not os.path.lexists(directory / file)), None)
    if missing:
        raise CheckpointError(f"{missing[:80]}: missing shard, named by {path.name}; download it again")
    return index


def _check_map(weight_map: dict[str, str], headers: dict[str, Header], name: str) -> None:
    for tensor, file in weight_map.items():
        if tensor not in headers[file].tensors:
            raise CheckpointError(f"{name}: tensor {tensor[:MAX_NAME]!r} is not in {file}")
    for file, header in headers.items():
        for tensor in header.tensors:
            if weight_map.get(tensor) != file:
                where = f"and in {weight_map[tensor]}" if tensor in weight_map else "but not in the index"
                raise CheckpointError(f"{name}: tensor {tensor!r} is in {file} {where}")


def _check_left_out(directory: Path, files: tuple[str, ...], index: str) -> None:
    """A shard of the same numbering that no tensor of the index is in: the rest of the model would be lost in silence."""
    numbered = {match.groups() for file in files if (match := _NUMBERED.fullmatch(file))}
    for file in sorted(os.listdir(directory)) if numbered else ():
        match = _NUMBERED.fullmatch(file)
        if match and match.groups() in numbered and file not in files:
            raise CheckpointError(f"{index}: leaves out {file}, which lies beside its shards; download the index again")


def total_size(headers: dict[str, Header]) -> int:
    return sum(info.nbytes for header in headers.values() for info in header.tensors.values())


def _total_size_note(index: dict, headers: dict[str, Header], name: str) -> tuple[str, ...]:
    metadata = index.get("metadata")
    said = metadata.get("total_size") if isinstance(metadata, dict) else None
    real = total_size(headers)
    return () if said in (None, real) else (f"{name}: total_size says {str(said)[:40]}, the tensors hold {real} bytes",)
