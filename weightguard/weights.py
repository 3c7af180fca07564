"""The tuned and aligned weights behind each tensor, in logical (out, in) order, whatever the files look like.

A full checkpoint, a base with a LoRA adapter over it and GPT-2's (in, out) storage all become the same two functions:
tuned rows and aligned rows. Methods score them, the rewrite edits them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch

from weightguard.checkpoint import Checkpoint, Linear, LoraPair, Merged
from weightguard.errors import CheckpointError
from weightguard.kernels import ops

Rows = Callable[[int, int], torch.Tensor]
BLOCK = 4 << 20  # bytes: this and a second one beside it stay in the cache until they are written
WHOLE = 256 << 20  # bytes of a tensor that is edited as a whole where that spares a reading; larger ones never are


@dataclass(frozen=True)
class Whole:
    """Rows of a tensor that is there as a whole, in logical order; they come out in the working dtype."""

    tensor: torch.Tensor
    work: torch.dtype

    def __call__(self, start: int, stop: int) -> torch.Tensor:
        return self.tensor[start:stop].to(self.work)


@dataclass(frozen=True)
class Sources:
    """`model` gives the files and their layout. `merged`: the tuned weights are its base with an adapter over it.

    `aligned`: where D = W − W_aligned starts; with `merged` that is the base itself. `linears` tells the orientation.
    `unaligned`: the model before alignment; V = W_aligned − W_unaligned is the alignment direction.
    """

    model: Checkpoint
    merged: Merged | None
    aligned: Checkpoint | None
    linears: Mapping[str, Linear]
    unaligned: Checkpoint | None = None

    @property
    def references(self) -> tuple[Checkpoint, ...]:
        """What is read beside the model, but for an adapter over it."""
        sides = (self.aligned, self.unaligned)
        return tuple(side for side in sides if side is not None and side.directory != self.model.directory)

    def check_unchanged(self) -> None:
        """No weight file of what was read is another one by now. Error: CheckpointError."""
        adapter = None if self.merged is None else self.merged.adapter
        for part in (self.model, adapter, self.aligned, self.unaligned):
            if part is not None:
                part.check_unchanged()

    def is_tuned(self, name: str) -> bool:
        """True when the tuned weight is not simply what the files hold."""
        return self.merged is not None and name in self.merged.pairs


@dataclass(frozen=True)
class Weights:
    """One tensor open for editing, in logical (out, in) order, by row blocks of the working dtype.

    `stored` is the tensor as read, in storage order: the edit is written into it through `logical`, block by block, so
    blocks must be asked for before they are overwritten. tuned(i, j) and aligned(i, j) give W and W_aligned;
    `reference` is the aligned tensor as read from another checkpoint, where there is one, and `origin` the same in
    logical order; `update` gives D where it is known without a subtraction, `unaligned` W_unaligned where the edit
    asks for it. `first`: the row of the tensor at which these begin, where they are a block of it.
    """

    stored: torch.Tensor
    logical: torch.Tensor
    tuned: Rows
    aligned: Rows | None
    reference: torch.Tensor | None = None
    origin: torch.Tensor | None = None
    update: Rows | None = None
    unaligned: Rows | None = None
    first: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.logical.shape[0], self.logical.shape[1]

    def delta(self, start: int, stop: int) -> torch.Tensor:
        """Rows of D = W − W_aligned; of an adapter s·B·A itself, since (W + s·B·A) − W has lost its last bits."""
        if self.update is not None:
            return self.update(start, stop)
        assert self.aligned is not None
        return self.tuned(start, stop) - self.aligned(start, stop)

    def ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(W_aligned, W), whole and in float64."""
        assert self.aligned is not None
        return self.aligned(0, self.shape[0]).double(), self.tuned(0, self.shape[0]).double()

    def whole_delta(self) -> torch.Tensor:
        """D in one piece, in the working dtype."""
        return torch.cat([self.delta(*tile) for tile in ops.tiles(self.shape)])


class Memory:
    """Room for tensors that are read one after the other into the same place.

    Fresh memory of a tensor's size comes from the system as zeroed pages, which costs more than reading the tensor.
    What was read into a place is gone when the next is read into it.
    """

    def __init__(self) -> None:
        self._places: dict[str, torch.Tensor] = {}

    def place(self, name: str, nbytes: int) -> torch.Tensor:
        """uint8 memory of at least nbytes."""
        if name not in self._places or len(self._places[name]) < nbytes:
            self._places.pop(name, None)  # freed before the larger one is taken
            self._places[name] = torch.empty(nbytes, dtype=torch.uint8)
        return self._places[name]


def open_weights(
    sources: Sources,
    name: str,
    *,
    with_aligned: bool,
    with_unaligned: bool = False,
    memory: Memory | None = None,
    checked: bool = True,
) -> Weights:
    """Read one tensor and what it is compared with. NaN or infinity in either is a CheckpointError.

    memory: where to read it to; the weights are then good until the next are opened with it. checked False: the edit
    finds NaN and infinity itself, which saves a pass.
    """
    weights = _opened(sources, name, with_aligned, memory, checked)
    if not with_unaligned:
        return weights
    assert sources.unaligned is not None, "a projection needs the unaligned checkpoint"
    return dataclasses.replace(weights, unaligned=logical_rows(sources.unaligned, name, sources.linears, memory))


def logical_rows(
    checkpoint: Checkpoint, name: str, linears: Mapping[str, Linear], memory: Memory | None = None
) -> Rows:
    """A tensor of one checkpoint, read now, as row blocks in logical order and the working dtype."""
    tensor = finite(checkpoint, name, memory, "unaligned")
    return Whole(_turned(tensor, name in linears and linears[name].transposed), _working(tensor.dtype))


def open_blocks(
    sources: Sources, name: str, *, with_aligned: bool, memory: Memory, checked: bool = True
) -> Iterator[Weights]:
    """The same in blocks of whole rows that stay in a core's cache, each in the memory of the last. A tensor that is
    stored transposed comes in one piece."""
    info = sources.model.info(name)
    if len(info.shape) != 2 or _is_transposed(sources, name):
        yield open_weights(sources, name, with_aligned=with_aligned, memory=memory, checked=checked)
        return
    step = max(1, BLOCK * info.shape[0] // max(1, info.nbytes))
    blocks = [(start, min(start + step, info.shape[0])) for start in range(0, max(1, info.shape[0]), step)]
    if sources.merged is not None and name in sources.merged.pairs:
        update = low_rank(sources.merged.adapter, sources.merged.pairs[name])
        for (start, _), block in zip(blocks, _blocks(sources.model, name, blocks, memory, "stored", True), strict=True):
            yield _over_base(block, block, update, start)
        return
    stored = _blocks(sources.model, name, blocks, memory, "stored", checked)
    reference = _blocks(_aligned(sources), name, blocks, memory, "aligned", checked) if with_aligned else repeat(None)
    for (start, _), block, beside in zip(blocks, stored, reference, strict=False):
        yield dataclasses.replace(_compared(block, beside, transposed=False), first=start)


def fits_whole(sources: Sources, name: str) -> bool:
    """Whether the tensor may be edited in one piece."""
    return sources.model.info(name).nbytes <= WHOLE


def _opened(sources: Sources, name: str, with_aligned: bool, memory: Memory | None, checked: bool) -> Weights:
    if sources.merged is not None and name in sources.merged.pairs:
        stored = finite(sources.model, name, memory)
        update = low_rank(sources.merged.adapter, sources.merged.pairs[name])
        return _over_base(stored, _turned(stored, _is_transposed(sources, name)), update)
    taken = finite if checked else _read
    stored = taken(sources.model, name, memory, "stored")
    reference = taken(_aligned(sources), name, memory, "aligned") if with_aligned else None
    return _compared(stored, reference, _is_transposed(sources, name))


def _compared(stored: torch.Tensor, reference: torch.Tensor | None, transposed: bool) -> Weights:
    logical, work = _turned(stored, transposed), _working(stored.dtype)
    origin = None if reference is None else _turned(reference, transposed)
    aligned = None if origin is None else Whole(origin, work)
    return Weights(stored, logical, Whole(logical, work), aligned, reference, origin)


def distances(after: torch.Tensor, aligned: torch.Tensor, tuned: torch.Tensor) -> dict[str, float]:
    """Frobenius norms to six digits: what a tensor is away from either model, and the fine-tuning's update. All float64."""
    pairs = {"from_aligned": (after, aligned), "from_tuned": (after, tuned), "update": (tuned, aligned)}
    return {key: float(f"{float((one - other).norm()):.6g}") for key, (one, other) in pairs.items()}


def tuned_tensor(sources: Sources, name: str) -> torch.Tensor:
    """The tuned weight as a whole and in storage order, with the adapter in it where there is one."""
    if not sources.is_tuned(name):
        return finite(sources.model, name)
    weights = open_weights(sources, name, with_aligned=False)
    return _turned(weights.tuned(0, weights.shape[0]), _is_transposed(sources, name))


def _is_transposed(sources: Sources, name: str) -> bool:
    return name in sources.linears and sources.linears[name].transposed


def _aligned(sources: Sources) -> Checkpoint:
    assert sources.aligned is not None, "a delta edit needs the aligned checkpoint"
    return sources.aligned


def _over_base(stored: torch.Tensor, logical: torch.Tensor, update: LowRank, first: int = 0) -> Weights:
    """Rows of a base, from row `first` on, with an adapter's update over them."""
    aligned = Whole(logical, _working(stored.dtype))

    def added(start: int, stop: int) -> torch.Tensor:
        return update.rows(first + start, first + stop)

    return Weights(stored, logical, lambda i, j: aligned(i, j) + added(i, j), aligned, update=added, first=first)


@dataclass(frozen=True)
class LowRank:
    """s·B·A, B (out, r) and A (r, in) in float64, by row blocks.

    The products are summed in float64 in the order of the rank, one elementwise multiply and add at a time: a matrix
    product would give other last bits on another machine or thread count.
    """

    b: torch.Tensor
    a: torch.Tensor
    scaling: float

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop of the update, float32."""
        block = torch.zeros(stop - start, self.a.shape[1], dtype=torch.float64)
        for rank in range(self.a.shape[0]):
            block += self.b[start:stop, rank, None] * self.a[rank]
        return (block * self.scaling).float()


def low_rank(adapter: Checkpoint, pair: LoraPair) -> LowRank:
    """The update of one module, read from the adapter's shards. NaN or infinity is a CheckpointError."""
    return LowRank(finite(adapter, pair.b).double(), finite(adapter, pair.a).double(), pair.scaling)


def finite(checkpoint: Checkpoint, name: str, memory: Memory | None = None, place: str = "stored") -> torch.Tensor:
    """The tensor, once it is known to hold no NaN and no infinity."""
    return _checked(_read(checkpoint, name, memory, place), checkpoint, name)


def _read(checkpoint: Checkpoint, name: str, memory: Memory | None, place: str) -> torch.Tensor:
    return checkpoint.read(name, None if memory is None else memory.place(place, checkpoint.info(name).nbytes))


def _blocks(
    checkpoint: Checkpoint, name: str, blocks: Sequence[tuple[int, int]], memory: Memory, place: str, checked: bool
) -> Iterator[torch.Tensor]:
    size = max(stop - start for start, stop in blocks) * checkpoint.info(name).nbytes // max(1, blocks[-1][1])
    for tensor in checkpoint.row_blocks(name, blocks, memory.place(place, size)):
        yield _checked(tensor, checkpoint, name) if checked else tensor


def _checked(tensor: torch.Tensor, checkpoint: Checkpoint, name: str) -> torch.Tensor:
    if not ops.is_finite(tensor):
        raise CheckpointError(
            f"{checkpoint.info(name).file}: tensor {name!r} holds NaN or infinity; such weights cannot be scored or repaired"
        )
    return tensor


def _turned(tensor: torch.Tensor, transposed: bool) -> torch.Tensor:
    """A view with two dimensions: a vector is one row, whatever has more is a stack of rows."""
    if tensor.dim() != 2:
        return tensor.reshape(-1, tensor.shape[-1] if tensor.dim() else 1)
    return tensor.T if transposed else tensor


def _working(dtype: torch.dtype) -> torch.dtype:
    # float32 holds every bf16 and fp16 value exactly, so an entry that is not edited comes back as the same bits.
    return torch.float64 if dtype == torch.float64 else torch.float32
