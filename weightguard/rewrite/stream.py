"""Write the edited weight files: headers and untouched tensors as they are, edited tensors from memory, hashed on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from weightguard.checkpoint import TensorInfo, check_sha256, read_exactly
from weightguard.errors import CheckpointError
from weightguard.kernels import ops
from weightguard.kernels.sha256 import Data, Hash, sha256, update
from weightguard.plan import Edit, Plan, ProjectDelta, Select
from weightguard.rewrite.apply import Change, Cut, Measured, apply, by_rows, finds_all
from weightguard.rewrite.output import Output
from weightguard.weights import Memory, Sources, Weights, finite, fits_whole, open_blocks, open_weights

CHUNK = 4 << 20
Progress = Callable[[int], None]
_FLOAT_VIEWS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass
class Written:
    """Digests of what was read and written, by file and by tensor, and the measured change per edited tensor."""

    files_in: dict[str, str] = field(default_factory=dict)
    files_out: dict[str, str] = field(default_factory=dict)
    tensors_in: dict[str, str] = field(default_factory=dict)
    tensors_out: dict[str, str] = field(default_factory=dict)
    aligned: dict[str, str] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)


class _Hashes:
    """sha256 of a file before and after (one running hash until the first edited byte, then two), each beside that of the
    tensor at work: what belongs to several digests is fed to all of them at once."""

    def __init__(self) -> None:
        self.before = self.after = sha256()

    def both(self, data: Data, own: Hash | None = None) -> None:
        files = [self.before] if self.before is self.after else [self.before, self.after]
        update([(each, data) for each in (*files, *([own] if own is not None else []))])

    def edited(self, before: Data, own: Hash, *others: tuple[Hash, Data]) -> None:
        """From here on the two sides differ: `before` belongs to the input's file, `after` is fed by `changed`."""
        if self.after is self.before:
            self.after = self.before.copy()
        update([(self.before, before), (own, before), *others])

    def changed(self, after: Data, own: Hash) -> None:
        update([(self.after, after), (own, after)])


Finished = Callable[[str, Written], None]


def needs_edit(name: str, edits: Mapping[str, Edit], sources: Sources) -> bool:
    return name in edits or sources.is_tuned(name)


def edited(name: str, plan: Plan, sources: Sources) -> torch.Tensor:
    """The tensor as it will be written, in storage order."""
    weights = _open(name, plan, sources, None)
    _apply(name, plan, sources, plan.edits.get(name), weights, Measured())
    return weights.stored


def _open(name: str, plan: Plan, sources: Sources, memory: Memory | None) -> Weights:
    edit = plan.edits.get(name)
    return open_weights(
        sources, name, with_aligned=plan.needs_aligned, with_unaligned=isinstance(edit, ProjectDelta), memory=memory,
        checked=_is_checked(name, plan),
    )  # fmt: skip


def _blocks(name: str, plan: Plan, sources: Sources, memory: Memory) -> Iterator[tuple[Edit | Cut | None, Weights]]:
    """The tensor in pieces as small as its edit allows, each with what is to be done to it."""
    edit: Edit | Cut | None = plan.edits.get(name)
    opened = partial(open_blocks, sources, name, with_aligned=plan.needs_aligned, memory=memory)
    if isinstance(edit, Select) and not by_rows(edit) and not fits_whole(sources, name):
        edit = Cut(edit, opened)
    elif not by_rows(edit):
        yield edit, _open(name, plan, sources, memory)
        return
    else:
        opened = partial(opened, checked=_is_checked(name, plan))
    yield from ((edit, block) for block in opened())


def _is_checked(name: str, plan: Plan) -> bool:
    """Whether opening has to look for NaN and infinity, since the edit would not find them in all that is opened."""
    edit = plan.edits.get(name)
    return not finds_all(edit) or (getattr(edit, "of", "") == "delta") != plan.needs_aligned


def _apply(
    name: str, plan: Plan, sources: Sources, edit: Edit | Cut | None, weights: Weights, measured: Measured
) -> None:
    if apply(edit, weights, measured):
        return
    for checkpoint in (sources.model, sources.aligned) if plan.needs_aligned else (sources.model,):
        if checkpoint is not None:
            finite(checkpoint, name)  # which says so, where it was in the files
    if isinstance(edit, Select):
        raise CheckpointError(f"tensor {name!r}: its scores leave the range of float32; look at the statistics")
    raise CheckpointError(f"tensor {name!r}: the edited values leave the range of {weights.stored.dtype}")


def all_tensors(plan: Plan, sources: Sources) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the repaired model in memory, by on-disk name: the same values that a rewrite stores."""

    def replayed(name: str) -> torch.Tensor:
        return edited(name, plan, sources) if needs_edit(name, plan.edits, sources) else sources.model.read(name)

    yield from sources.model.stored(replayed)


def write_weights(
    plan: Plan,
    sources: Sources,
    directory: Path,
    progress: Progress,
    *,
    hashing: bool = True,
    kept: Written | None = None,
    finished: Finished = lambda file, written: None,
) -> Written:
    """Write every weight file of the plan's output into `directory`; each is synced to disk before the next.

    kept: files that lie there already, with what is known of them. finished(file, written) is called after each other one.
    """
    written, memory = kept or Written(), Memory()
    for file in sources.model.layout.files:
        if file in written.files_out:
            progress(sum(info.nbytes for info in sources.model.by_file[file]))
            continue
        _write_file(file, plan, sources, directory / file, memory, written, progress, hashing)
        finished(file, written)
    return written


def _write_file(
    file: str,
    plan: Plan,
    sources: Sources,
    path: Path,
    memory: Memory,
    written: Written,
    progress: Progress,
    hashing: bool,
) -> None:
    header = sources.model.headers[file]
    hashes = _Hashes() if hashing else None
    with sources.model.opened(file) as source, path.open("xb", buffering=0) as made:
        out = Output(made.fileno())
        out.write(header.raw)
        if hashes is not None:
            hashes.both(header.raw)
        for info in sources.model.by_file[file]:
            if needs_edit(info.name, plan.edits, sources):
                blocks = _blocks(info.name, plan, sources, memory)
                _write_edited(info.name, plan, sources, blocks, out, hashes, written)
            elif hashes is None:
                out.copy(source, info.start, info.nbytes, info.file)
            else:
                buffer = memoryview(memory.place("stored", CHUNK).numpy())[:CHUNK]
                _copy(info, source, out, buffer, hashes, written)
            progress(info.nbytes)
        out.close()
    if hashes is not None:
        written.files_in[file], written.files_out[file] = hashes.before.hexdigest(), hashes.after.hexdigest()
        check_sha256(sources.model.directory / file, sources.model.directory, written.files_in[file])


def _write_edited(
    name: str,
    plan: Plan,
    sources: Sources,
    blocks: Iterable[tuple[Edit | Cut | None, Weights]],
    out: Output,
    hashes: _Hashes | None,
    written: Written,
) -> None:
    before, after, reference, measured = sha256(), sha256(), sha256(), Measured()
    for edit, weights in blocks:
        data = _bytes_of(weights.stored)
        if hashes is not None:  # the tensor is edited in the memory it was read into, so this comes before the edit
            aligned = [] if weights.reference is None else [(reference, _bytes_of(weights.reference))]
            hashes.edited(data, before, *aligned)
        _apply(name, plan, sources, edit, weights, measured)
        if hashes is not None:
            hashes.changed(data, after)
        out.write(data)
    written.changes[name] = measured.change()
    if hashes is not None:
        written.tensors_in[name], written.tensors_out[name] = before.hexdigest(), after.hexdigest()
        if weights.reference is not None:
            written.aligned[name] = reference.hexdigest()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def _copy(info: TensorInfo, source: int, out: Output, buffer: memoryview, hashes: _Hashes, written: Written) -> None:
    own = sha256()
    for position in range(info.start, info.end, CHUNK):
        data = buffer[: min(CHUNK, info.end - position)]
        read_exactly(source, data, position, info.file)
        if not holds_numbers(info, data):
            raise CheckpointError(f"{info.file}: tensor {info.name!r} holds NaN or infinity; the model is damaged")
        hashes.both(data, own)
        out.write(data)
    written.tensors_in[info.name] = written.tensors_out[info.name] = own.hexdigest()


def holds_numbers(info: TensorInfo, data: memoryview) -> bool:
    """Whether no entry of these bytes of a tensor is NaN or infinite; what is not of a float type always holds numbers."""
    dtype = _FLOAT_VIEWS.get(info.dtype)
    return dtype is None or not data or ops.is_finite(torch.frombuffer(data, dtype=dtype))
