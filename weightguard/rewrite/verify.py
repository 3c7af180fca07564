"""Check an output against its manifest, and against the model it came from, by reading both again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weightguard.checkpoint import Checkpoint, TensorInfo, allowed_target, check_sha256, read_exactly
from weightguard.checkpoint.digests import digest_of
from weightguard.errors import CheckpointError, MismatchError
from weightguard.kernels import ops
from weightguard.kernels.sha256 import sha256, update
from weightguard.rewrite.companions import all_names
from weightguard.rewrite.manifest import NAME, Manifest, identity
from weightguard.rewrite.stream import CHUNK, holds_numbers
from weightguard.weights import Memory, Sources, Weights, open_blocks

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Verified:
    """Counts of what was checked; a check that fails raises instead. factors_recounted: linears under an adapter."""

    files: int
    tensors: int
    edited: int
    untouched_identical: int | None
    changed_recounted: int | None
    factors_recounted: int | None = None


def verify_output(output: Checkpoint, manifest: Manifest, progress: Progress) -> Verified:
    """Every file and tensor has the digest the manifest holds, and every edited tensor is finite.

    Errors: CheckpointError naming the file or tensor.
    """
    _check_names(output, manifest)
    for name, digest in manifest.outputs["files"].items():
        if name not in output.layout.files and _file_digest(output.directory, name) != digest:
            raise CheckpointError(f"{name}: its sha256 is not the one in {NAME}; the file was changed after the repair")
    buffer = memoryview(bytearray(min(CHUNK, output.largest)))
    for file in output.layout.files:
        _check_file(file, output, manifest, buffer, progress)
    return Verified(len(manifest.outputs["files"]), len(output.tensors), len(manifest.computed), None, None)


def _check_names(output: Checkpoint, manifest: Manifest) -> None:
    said, there = manifest.outputs["tensors"], output.tensors
    if said.keys() != there.keys():
        odd = sorted(said.keys() ^ there.keys())[0]
        raise CheckpointError(f"tensor {odd!r} is in only one of {NAME} and the weight files")
    listed = manifest.outputs["files"]
    for file in output.layout.files:
        if file not in listed:
            raise CheckpointError(f"{file}: not in {NAME}")
    for name in all_names(output.directory):
        if name not in listed and name != NAME:
            raise CheckpointError(f"{name}: not in {NAME}; it was added after the repair")


def _file_digest(directory: Path, name: str) -> str:
    path = allowed_target(directory / name, directory)
    with path.open("rb") as file:
        return digest_of(file, name)


def _check_file(file: str, output: Checkpoint, manifest: Manifest, buffer: memoryview, progress: Progress) -> None:
    header, whole, computed = output.headers[file], sha256(), manifest.computed
    whole.update(header.raw)
    with output.opened(file) as descriptor:
        for info in output.by_file[file]:
            own, finite = sha256(), True
            for chunk in _chunks(descriptor, info, buffer):
                update([(own, chunk), (whole, chunk)])
                finite = finite and (info.name not in computed or holds_numbers(info, chunk))
            if own.hexdigest() != manifest.outputs["tensors"][info.name]:
                raise CheckpointError(f"{file}: tensor {info.name!r} is not what {NAME} says; its bytes were changed")
            if not finite:
                raise CheckpointError(f"{file}: tensor {info.name!r} holds NaN or infinity")
            progress(info.nbytes)
    if whole.hexdigest() != manifest.outputs["files"][file]:
        raise CheckpointError(f"{file}: its header is not what {NAME} says")
    check_sha256(output.directory / file, output.directory, whole.hexdigest())


def _chunks(descriptor: int, info: TensorInfo, buffer: memoryview) -> Iterator[memoryview]:
    for position in range(info.start, info.end, CHUNK):
        view = buffer[: min(CHUNK, info.end - position)]
        read_exactly(descriptor, view, position, info.file)
        yield view


def verify_against(output: Checkpoint, manifest: Manifest, before: Sources, progress: Progress) -> tuple[int, int]:
    """Compare the output with the model it was made from, tensor by tensor.

    Returns (untouched tensors that are identical, changed entries recounted). Errors: MismatchError naming the tensor.
    """
    _check_input(before, manifest)
    identical = recounted = 0
    for name, info in output.tensors.items():
        if before.model.info(name).shape != info.shape or before.model.info(name).dtype != info.dtype:
            raise MismatchError(f"tensor {name!r}: shape or dtype differs from {before.model.label}")
        if name in manifest.edits:
            recounted += _recount(name, output, manifest, before)
        elif not _identical(output, before.model, name):
            raise MismatchError(f"tensor {name!r}: listed as untouched, but differs from {before.model.label}")
        else:
            identical += 1
        progress(info.nbytes)
    return identical, recounted


def _check_input(before: Sources, manifest: Manifest) -> None:
    said = manifest.data["inputs"]["model"].get("headers", {})
    for file, header in before.model.headers.items():
        if said.get(file) != hashlib.sha256(header.raw).hexdigest():
            raise MismatchError(f"{file}: {before.model.label} is not the model this output was made from")
    if before.merged is not None:
        adapter, listed = before.merged.adapter, manifest.data["inputs"].get("adapter")
        if not isinstance(listed, dict) or listed.get("files") != identity(adapter, whole=True)["files"]:
            raise MismatchError(f"{adapter.label} is not the adapter this output was made from")
    if set(before.model.tensors) != set(manifest.outputs["tensors"]):
        raise MismatchError(f"{before.model.label} has other tensors than the output; it is not the model it came from")


def _identical(output: Checkpoint, model: Checkpoint, name: str) -> bool:
    sides = zip(_pieces(output, name), _pieces(model, name), strict=True)
    return all(torch.equal(one, other) for one, other in sides)


def _pieces(checkpoint: Checkpoint, name: str) -> Iterator[torch.Tensor]:
    """The bytes of a tensor, piece by piece in the same memory."""
    info = checkpoint.info(name)
    room = torch.empty(min(CHUNK, info.nbytes), dtype=torch.uint8)
    with checkpoint.opened(info.file) as descriptor:
        for chunk in _chunks(descriptor, info, memoryview(room.numpy())):
            yield room[: len(chunk)]


def _recount(name: str, output: Checkpoint, manifest: Manifest, before: Sources) -> int:
    own = sha256()
    for piece in _pieces(before.model, name):
        own.update(memoryview(piece.numpy()))
    if own.hexdigest() != manifest.data["inputs"]["model"]["tensors"][name]:
        raise MismatchError(f"tensor {name!r} of {before.model.label} is not the one this output was made from")
    said = manifest.edits[name]
    blocks = open_blocks(before, name, with_aligned=False, memory=Memory())
    changed = sum(_changed(name, output, manifest, weights) for weights in blocks)
    if changed != said["changed"]:
        raise MismatchError(f"tensor {name!r}: {changed} entries differ from the input, {NAME} says {said['changed']}")
    return changed


def _changed(name: str, output: Checkpoint, manifest: Manifest, weights: Weights) -> int:
    """Entries of a row block that the output holds otherwise. Error: MismatchError for one that was not planned."""
    after = output.read_rows(name, weights.first, weights.first + len(weights.stored))
    rows = after.as_strided(weights.logical.shape, weights.logical.stride())  # in logical order, as `weights` are
    changed = 0
    for start, stop in ops.tiles(weights.shape):
        block = rows[start:stop]
        moved = block != weights.tuned(start, stop).to(rows.dtype)
        changed += int(moved.sum())
        planned = _planned(manifest.edits[name], manifest, weights, start, stop)
        if planned is not None and bool((block != planned)[moved].any()):
            raise MismatchError(f"tensor {name!r}: an entry changed to a value that its plan cannot give")
    return changed


def _planned(
    said: Mapping[str, Any], manifest: Manifest, weights: Weights, start: int, stop: int
) -> torch.Tensor | None:
    """What a selected entry must have become: zero, or the base's value; None where that is not known from here."""
    if said.get("edit") != "select":
        return None
    if manifest.data["target"] == "delta":
        return weights.aligned(start, stop).to(weights.stored.dtype) if weights.aligned else None
    return torch.zeros((), dtype=weights.stored.dtype)
