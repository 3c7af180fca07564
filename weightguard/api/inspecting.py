"""`inspect`: what is in a checkpoint and what is wrong with it, from headers and bytes alone. No torch, no model object."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from weightguard.api.reporting import role_order
from weightguard.checkpoint import (
    Checkpoint,
    Linear,
    TensorInfo,
    check_sha256,
    decoder_linears,
    foreign_names,
    misfits,
    named_code,
    open_checkpoint,
    quantised,
    read_exactly,
    resolve,
)
from weightguard.checkpoint.adapter import bypassing, lora_pairs
from weightguard.checkpoint.shapes import INPUT_EMBEDDINGS, OUTPUT_EMBEDDINGS
from weightguard.errors import CheckpointError, WeightguardError

Progress = Callable[[str, int, int], None]
CHUNK = 4 << 20
# Bits of the exponent, read as little-endian unsigned integers: all set means NaN or infinity. The sign is the highest.
_EXPONENT = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "BF16": ("<u2", 0xFF << 7),
    "F16": ("<u2", 0x1F << 10),
}


@dataclass(frozen=True)
class TensorView:
    """One tensor: where it lies, what it is for, and with digests its sha256."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    role: str | None
    layer: int | None
    sha256: str | None


@dataclass(frozen=True)
class Inspection:
    """What `weightguard inspect` shows. `problems` are things to look at, worst first; none of them stopped the reading."""

    label: str
    revision: str | None
    kind: str
    architecture: str | None
    parameters: int
    nbytes: int
    tensors: tuple[TensorView, ...]
    files: dict[str, dict[str, Any]]
    tied: tuple[str, ...]
    problems: tuple[str, ...]

    def counts(self, key: str) -> dict[str, int]:
        """How many tensors by "dtype" or "role"."""
        return dict(Counter(str(getattr(t, key)) for t in self.tensors if getattr(t, key) is not None))

    def role_counts(self) -> dict[str, int]:
        """How many tensors of each role, in the order of the table of roles."""
        return dict(sorted(self.counts("role").items(), key=lambda item: role_order(item[0])))


def run_inspect(reference: str, *, offline: bool, digests: bool, progress: Progress) -> Inspection:
    """Open and describe MODEL, ADAPTER or the model of MODEL+ADAPTER. Errors as when opening."""
    checkpoint = open_checkpoint(resolve(reference, offline=offline))
    roles, problems = _roles(checkpoint)
    problems = [*_config_problems(checkpoint), *checkpoint.layout.notes, *problems, *_stray(checkpoint)]
    hashes, files, found = _read_all(checkpoint, progress) if digests else ({}, _sizes(checkpoint), [])
    tensors = tuple(_view(info, roles, hashes) for info in checkpoint.tensors.values())
    infos = checkpoint.tensors.values()
    return Inspection(
        checkpoint.label, checkpoint.revision, checkpoint.layout.kind, checkpoint.config.get("model_type"),
        sum(i.numel for i in infos), sum(i.nbytes for i in infos), tensors, files, _tied(checkpoint), tuple(found + problems),
    )  # fmt: skip


def _view(info: TensorInfo, roles: dict[str, tuple[str, int]], hashes: dict[str, str]) -> TensorView:
    role, layer = roles.get(info.name, (None, None))
    return TensorView(info.name, info.file, info.dtype, info.shape, role, layer, hashes.get(info.name))


def _roles(checkpoint: Checkpoint) -> tuple[dict[str, tuple[str, int]], list[str]]:
    try:
        if checkpoint.is_adapter:
            pairs = lora_pairs(checkpoint).values()
            named = [(n, p) for p in pairs for n in (p.a, p.b)]
            odd = bypassing(checkpoint)
            return {n: (p.module.rsplit(".", 1)[-1], _layer(p.module)) for n, p in named}, (
                [f"{len(odd)} tensors are no LoRA factors (first: {odd[0]})"] if odd else []
            )
        linears = decoder_linears(checkpoint.config, checkpoint.tensors)
        return {n: (linear.role, linear.layer) for n, linear in linears.items()}, _misfits(checkpoint, linears)
    except WeightguardError as error:
        packed = not checkpoint.is_adapter and quantised(checkpoint)  # its linears have names of their own
        return {}, [] if packed else [str(error)]


def _misfits(checkpoint: Checkpoint, linears: Mapping[str, Linear]) -> list[str]:
    found = [] if quantised(checkpoint) else misfits(checkpoint.config, linears, checkpoint.tensors)
    return [f"{found[0]}" + (f", and {len(found) - 1} more like it" if len(found) > 1 else "")] if found else []


def _layer(module: str) -> int:
    return next((int(part) for part in module.split(".") if part.isdigit()), -1)


def _config_problems(checkpoint: Checkpoint) -> list[str]:
    config, problems = checkpoint.config, []
    code = named_code(config)
    if code:
        problems.append(f"config.json: {', '.join(code)} can name code; weightguard never follows it")
    said = None if checkpoint.is_adapter else quantised(checkpoint)
    if said is not None:
        declared = config.get("quantization_config")
        problems.append("config.json: quantised weights; they can be inspected, not repaired" if declared else said)
    odd = None if checkpoint.is_adapter else foreign_names(config, checkpoint.tensors)
    return [*problems, odd] if odd else problems


def _stray(checkpoint: Checkpoint) -> list[str]:
    problems = []
    for path in sorted(checkpoint.directory.iterdir()):
        if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".gguf"):
            problems.append(
                f"{path.name}: weights in another format beside the shards; not read, not carried into a repair"
            )
        if path.suffix == ".safetensors" and path.name not in checkpoint.layout.files:
            problems.append(
                f"{path.name}: a safetensors file that does not belong to the {checkpoint.layout.kind}; not read"
            )
    return problems


def _tied(checkpoint: Checkpoint) -> tuple[str, ...]:
    if checkpoint.is_adapter or any(n.endswith(OUTPUT_EMBEDDINGS) for n in checkpoint.tensors):
        return ()
    if checkpoint.config.get("tie_word_embeddings", True) is False:
        return ()
    embedding = next((n for n in checkpoint.tensors if n.endswith(INPUT_EMBEDDINGS)), None)
    return () if embedding is None else (f"lm_head.weight = {embedding}",)


def _sizes(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    return {f: {"bytes": _size(checkpoint, f), "tensors": len(h.tensors)} for f, h in checkpoint.headers.items()}


def _size(checkpoint: Checkpoint, file: str) -> int:
    header = checkpoint.headers[file]
    return max((t.end for t in header.tensors.values()), default=len(header.raw))


def _read_all(
    checkpoint: Checkpoint, progress: Progress
) -> tuple[dict[str, str], dict[str, dict[str, Any]], list[str]]:
    hashes: dict[str, str] = {}
    files, problems, done = _sizes(checkpoint), [], 0
    total = sum(info.nbytes for info in checkpoint.tensors.values())
    for file, header in checkpoint.headers.items():
        whole = hashlib.sha256(header.raw)
        with checkpoint.opened(file) as descriptor:
            for info in checkpoint.by_file[file]:
                own, odd, zero = hashlib.sha256(), False, info.nbytes > 0
                for position in range(info.start, info.end, CHUNK):
                    buffer = bytearray(min(CHUNK, info.end - position))
                    read_exactly(descriptor, memoryview(buffer), position, file)
                    own.update(buffer)
                    whole.update(buffer)
                    odd = odd or _not_finite(buffer, info.dtype)
                    zero = zero and _zero(buffer, info.dtype)
                    done += len(buffer)
                    progress("read", done, total)
                hashes[info.name] = own.hexdigest()
                problems += [f"{file}: tensor {info.name!r} holds NaN or infinity"] if odd else []
                problems += [f"{file}: tensor {info.name!r} is all zeros"] if zero and len(info.shape) > 1 else []
        files[file]["sha256"] = whole.hexdigest()
        problems += _damage(checkpoint, file, whole.hexdigest())
    return hashes, files, problems


def _damage(checkpoint: Checkpoint, file: str, found: str) -> list[str]:
    try:
        check_sha256(checkpoint.directory / file, checkpoint.directory, found)
    except CheckpointError as error:
        return [str(error)]
    return []


def _not_finite(buffer: bytearray, dtype: str) -> bool:
    import numpy

    if dtype not in _EXPONENT:
        return False
    kind, exponent = _EXPONENT[dtype]
    return bool(((numpy.frombuffer(buffer, kind) & exponent) == exponent).any())


def _zero(buffer: bytearray, dtype: str) -> bool:
    """Whether a part of a tensor holds nothing but zeros, of either sign."""
    import numpy

    if dtype not in _EXPONENT:
        return not any(buffer)
    words = numpy.frombuffer(buffer, _EXPONENT[dtype][0])
    return not (words << numpy.array(1, words.dtype)).any()
