"""A checkpoint on disk as named tensors. Knows files, dtypes and shapes; no method and no model object."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from weightguard.checkpoint import strict_json
from weightguard.checkpoint.config import check_config
from weightguard.checkpoint.digests import digest_of
from weightguard.checkpoint.header import FLOATS, Header, TensorInfo
from weightguard.checkpoint.hub import Resolved, allowed_target, check_sha256, promised_sha256
from weightguard.checkpoint.layout import ADAPTER, Layout, opened, read_layout
from weightguard.checkpoint.naming import unpacked
from weightguard.errors import CheckpointError, SystemFailure, UnsupportedError

if TYPE_CHECKING:
    import torch

_TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# How GPTQ, AWQ, HQQ and compressed-tensors name what they pack; and what bitsandbytes and MXFP4 hold in whole bytes.
_PACKED = (".qweight", ".weight_packed", ".W_q")
_IN_BYTES = (".weight", "_proj_blocks")


@dataclass(frozen=True)
class Checkpoint:
    """Names to tensors of one directory. Opening reads headers and configs only, and needs no torch.

    renamed: the tensors that go by another name than in the file, by the name in the file (see `merged.named_like`).
    """

    directory: Path
    label: str
    revision: str | None
    layout: Layout
    config: dict
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_adapter(self) -> bool:
        return self.layout.kind == ADAPTER

    @property
    def headers(self) -> dict[str, Header]:
        return self.layout.headers

    @cached_property
    def on_disk(self) -> list[TensorInfo]:
        """Every stored tensor, shard by shard, in header order, under the name that it goes by."""
        found = (info for file in self.layout.files for info in self.headers[file].tensors.values())
        return [info._replace(name=self.renamed[info.name]) if info.name in self.renamed else info for info in found]

    @cached_property
    def parts(self) -> dict[str, list[TensorInfo]]:
        """Every stored tensor by name: itself, or the experts that are packed in it."""
        return {info.name: [info] for info in self.on_disk} if self.is_adapter else unpacked(self.config, self.on_disk)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor, and in place of one that packs experts the matrix of each, NAME#0, NAME#1 and so on."""
        return {info.name: info for parts in self.parts.values() for info in parts}

    @cached_property
    def by_file(self) -> dict[str, list[TensorInfo]]:
        """The tensors of every weight file in the order in which they lie there, without a hole."""
        found: dict[str, list[TensorInfo]] = {file: [] for file in self.layout.files}
        for info in sorted(self.tensors.values(), key=lambda each: each.start):
            found[info.file].append(info)
        return found

    @cached_property
    def largest(self) -> int:
        return max((info.nbytes for info in self.tensors.values()), default=0)

    def info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise CheckpointError(f"{self.label}: no tensor {name!r}")
        return self.tensors[name]

    def opened(self, file: str) -> AbstractContextManager[int]:
        """A descriptor of a weight file that is what it was when its header was read, before and after."""
        return opened(self.directory, file, self.headers[file].state)

    @property
    def promised(self) -> list[str]:
        """The weight files whose sha256 the hub says."""
        return [file for file in self.layout.files if promised_sha256(self.directory / file, self.directory)]

    def check_promised(self, step: Callable[[int], None]) -> None:
        """Read all of these files: each is what the hub says. `step` takes the bytes of one. Error: CheckpointError."""
        for file in self.promised:
            with self.opened(file) as descriptor, os.fdopen(os.dup(descriptor), "rb") as stream:
                check_sha256(self.directory / file, self.directory, digest_of(stream, file))
                step(os.fstat(descriptor).st_size)

    def check_unchanged(self) -> None:
        """Every weight file is still what it was when its header was read. Error: CheckpointError."""
        for file in self.layout.files:
            with self.opened(file):
                pass

    def read(self, name: str, into: torch.Tensor | None = None) -> torch.Tensor:
        """The tensor in memory of its own (never a map of the file, which another process could cut).

        into: uint8 memory of at least its size to read into; without it, fresh memory.
        """
        info = self.info(name)
        with self.opened(info.file) as descriptor:
            return _read(descriptor, info, info.shape, 0, into)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop (along the first axis, as stored) and nothing else of the tensor."""
        return next(self.row_blocks(name, [(start, stop)]))

    def row_blocks(
        self, name: str, blocks: Iterable[tuple[int, int]], into: torch.Tensor | None = None
    ) -> Iterator[torch.Tensor]:
        """Rows start..stop of every block in turn, from a file that is opened once; each overwrites the last in `into`."""
        info = self.info(name)
        size = info.nbytes // max(1, info.shape[0])
        with self.opened(info.file) as descriptor:
            for start, stop in blocks:
                yield _read(descriptor, info, (stop - start, *info.shape[1:]), start * size, into)

    @contextmanager
    def streaming(self, name: str) -> Iterator[Callable[[int, int], torch.Tensor]]:
        """read(start, stop) gives rows as `read_rows` does. The file is opened once, and every call fills the same memory."""
        import torch

        info, memory = self.info(name), torch.empty(0, dtype=torch.uint8)
        row = info.nbytes // max(1, info.shape[0])
        with self.opened(info.file) as descriptor:

            def read(start: int, stop: int) -> torch.Tensor:
                nonlocal memory
                if memory.numel() < (stop - start) * row:
                    memory = torch.empty((stop - start) * row, dtype=torch.uint8)
                return _read(descriptor, info, (stop - start, *info.shape[1:]), start * row, memory)

            yield read

    def stored(self, value: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) as files hold them, packed experts joined again, from `value` of every name in `tensors`."""
        import torch

        for name, parts in self.parts.items():
            values = [value(part.name) for part in parts]
            yield name, values[0] if parts[0].name == name else torch.stack(values)

    def digest(self, name: str) -> str:
        """sha256 of the tensor's bytes as they lie in the file."""
        import torch

        flat = self.read(name).reshape(-1)
        return hashlib.sha256(memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else b"").hexdigest()


def _read(
    descriptor: int, info: TensorInfo, shape: tuple[int, ...], offset: int, into: torch.Tensor | None
) -> torch.Tensor:
    """A part of a tensor from `offset` bytes into it, in `into` (uint8) or in memory of its own. Error: UnsupportedError."""
    import torch

    if info.dtype not in FLOATS:
        raise UnsupportedError(
            f"{info.file}: tensor {info.name!r} is {info.dtype}, not a float type that can be edited"
        )
    dtype = getattr(torch, _TORCH[info.dtype])
    nbytes = prod(shape) * dtype.itemsize
    memory = torch.empty(nbytes, dtype=torch.uint8) if into is None else into[:nbytes]
    if nbytes:
        read_exactly(descriptor, memoryview(memory.numpy()), info.start + offset, info.file)
    return memory.view(dtype).reshape(shape)


def read_exactly(descriptor: int, buffer: memoryview, offset: int, file: str) -> None:
    """Fill `buffer` from `offset`; a file that ends early (cut while it is read) is a CheckpointError."""
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
        except OSError as error:
            raise SystemFailure(f"{file}: cannot be read: {error.strerror}") from error
        if count == 0:
            raise CheckpointError(f"{file}: the file became shorter while it was read; copy it again")
        done += count


def open_checkpoint(resolved: Resolved) -> Checkpoint:
    """Open and check headers, index and config of a resolved directory. Errors: CheckpointError, exit 3."""
    layout = read_layout(resolved.directory)
    name = "adapter_config.json" if layout.kind == ADAPTER else "config.json"
    path = resolved.directory / name
    if not os.path.lexists(path):
        raise CheckpointError(f"{resolved.label}: no {name}")
    config = strict_json.read(allowed_target(path, resolved.directory), name)
    if not isinstance(config, dict):
        raise CheckpointError(f"{name}: not a JSON object")
    if layout.kind != ADAPTER:
        check_config(config)
    return Checkpoint(resolved.directory, resolved.label, resolved.revision, layout, config)


def check_editable(checkpoint: Checkpoint) -> None:
    """Refuse quantised weights by name: an edit of packed integers or scaled floats would not mean what it says."""
    said = quantised(checkpoint)
    if said is not None:
        raise UnsupportedError(said)


def quantised(checkpoint: Checkpoint) -> str | None:
    """Why the weights count as quantised, by the config or by what the files hold; None where they are plain."""
    declared = checkpoint.config.get("quantization_config")
    if declared == {}:
        return (
            "config.json: quantization_config is empty, and transformers loads no such model; take it out if the weights "
            "are plain"
        )
    if declared:
        kind = declared.get("quant_method") if isinstance(declared, dict) else declared
        return f"{checkpoint.label}: quantised weights ({kind}) cannot be edited; repair the unquantised model, then quantise"
    info = next((each for each in checkpoint.tensors.values() if _is_quantised(each)), None)
    if info is None:
        return None
    return f"{info.file}: tensor {info.name!r} is {info.dtype}, quantised; repair the unquantised model instead"


def _is_quantised(info: TensorInfo) -> bool:
    small = info.dtype.startswith(("F8_", "F6_", "F4"))
    return small or info.name.endswith(_PACKED) or (info.dtype in ("I8", "U8") and info.name.endswith(_IN_BYTES))
