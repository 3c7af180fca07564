"""Which tensors of two checkpoints can be compared, and what each of them says alone: one streamed pass over both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy
import torch

from weightguard.checkpoint import may_lack
from weightguard.comparison.grids import Grid, grids_of
from weightguard.comparison.places import short_name
from weightguard.comparison.samples import CASTS, Sample, corner_of, name_of, sampled, still_cast, still_held
from weightguard.comparison.sides import Side
from weightguard.kernels import ops

Progress = Callable[[str, int, int], None]
BLOCK = 1 << 20  # entries of a row block: one of each side is all that is held
LINE = 1 << 14  # entries that a kernel sums in float64 before they are added exactly


RELATIONS = (
    "same layout", "other vocabulary", "other depth", "other storage", "other architecture", "nothing in common",
)  # fmt: skip
PACKED = ("I32", "I8", "U8", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Matching:
    """Names by what can be compared. `common`: name -> rows compared, fewer than stored where only the vocabulary differs.

    `reshaped`: in both with shapes that do not fit; `unread`: in both, but stored as packed integers or 8 bit floats.
    `relation`: one of RELATIONS.
    """

    common: dict[str, int]
    reshaped: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    only_model: tuple[str, ...] = ()
    only_base: tuple[str, ...] = ()
    relation: str = RELATIONS[0]


@dataclass(frozen=True)
class TensorChange:
    """One tensor of MODEL against the same of BASE: W, W_base and D = W − W_base. Norms are Frobenius, in float64.

    kurtosis: n·Σd⁴/(Σd²)² over all entries, 3 for Gaussian, 1.8 for uniform D; None where D = 0. zeroed: entries that
    are 0 in W and not in W_base. along_base: <D, W_base>/(‖D‖‖W_base‖). casts: dtypes to which rounding W_base gives W.
    precision: the coarsest dtype that holds every value of W, whatever it is stored in.
    """

    name: str
    role: str
    layer: int | None
    shape: tuple[int, int]
    dtypes: tuple[str, str]
    entries: int
    changed: int
    zeroed: int
    weight_norm: float
    base_norm: float
    update_norm: float
    cosine: float | None
    along_base: float | None
    largest: float
    kurtosis: float | None
    casts: tuple[str, ...]
    precision: str = "F64"
    rows_left_out: int = 0
    corner: tuple[torch.Tensor, torch.Tensor] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def sample(self) -> Sample | None:
        """What the first rows of both sides, `corner`, show; None for a vector and where nothing changed."""
        return None if self.corner is None else sampled(*self.corner)

    @cached_property
    def grids(self) -> tuple[Grid, ...]:
        """On what grids of few bits the first rows lie, by group size; none for a vector."""
        return () if self.corner is None else grids_of(*(side.float() for side in self.corner))

    @property
    def relative(self) -> float:
        """‖D‖/‖W_base‖."""
        return self.update_norm / self.base_norm if self.base_norm else (math.inf if self.update_norm else 0.0)

    @property
    def changed_share(self) -> float:
        return self.changed / self.entries if self.entries else 0.0

    @property
    def short_name(self) -> str:
        """The name for tables."""
        return short_name(self.name)

    @property
    def is_matrix(self) -> bool:
        return min(self.shape) > 1

    def as_dict(self) -> dict:
        said = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "corner"}
        return {**said, "relative": self.relative, "changed_share": self.changed_share}


def match(model: Side, base: Side) -> Matching:
    """Pair by name. A tensor whose row counts alone differ, as embeddings do, is compared over the rows both have."""
    ours, theirs = model.files.tensors, base.files.tensors
    both = [name for name in ours if name in theirs]
    unread = tuple(n for n in both if not (model.is_float(n) and base.is_float(n)))
    common = {n: rows for n in both if n not in unread and (rows := _rows(model, base, n)) is not None}
    found = Matching(
        common,
        tuple(n for n in both if n not in common and n not in unread),
        unread,
        tuple(n for n in ours if n not in theirs),
        tuple(n for n in theirs if n not in ours),
    )
    return dataclasses.replace(found, relation=_relation(model, base, found))


def _relation(model: Side, base: Side, found: Matching) -> str:
    """How the layouts lie to each other; what a model may have or not, such as a tied head, is no difference."""
    if not found.common:
        return "nothing in common"
    alone = [(side, n) for side, names in ((model, found.only_model), (base, found.only_base)) for n in names]
    alone = [(side, n) for side, n in alone if not may_lack(n, side.files)]
    if found.unread or any(_is_packed(side, name) for side, name in alone):
        return "other storage"
    if found.reshaped or not _only_deeper(model, base, alone):
        return "other architecture"
    if alone:
        return "other depth"
    grown = any(model.shape(n)[0] != base.shape(n)[0] for n in found.common)
    return "other vocabulary" if grown else "same layout"


def _is_packed(side: Side, name: str) -> bool:
    info = side.files.info(name)
    return info.dtype in PACKED and len(info.shape) == 2


def _only_deeper(model: Side, base: Side, alone: list[tuple[Side, str]]) -> bool:
    """What one side has alone are whole layers that the other lacks."""
    both = {place.layer for place in model.places.values()} & {place.layer for place in base.places.values()}
    return not any(side.places[name].layer in both for side, name in alone)


def _rows(model: Side, base: Side, name: str) -> int | None:
    ours, theirs = model.shape(name), base.shape(name)
    if ours == theirs:
        return ours[0]
    grown = model.places[name].role in ("embed", "head") and ours[1] == theirs[1]
    return min(ours[0], theirs[0]) if grown else None


def walk(model: Side, base: Side, matching: Matching, progress: Progress) -> Iterator[TensorChange | str]:
    """Every common tensor as a TensorChange, or its name where a side holds NaN or infinity."""
    total = sum(model.files.info(n).nbytes + base.files.info(n).nbytes for n in matching.common)
    done = 0
    for name, rows in matching.common.items():
        found = compared(model, base, name, rows)
        done += model.files.info(name).nbytes + base.files.info(name).nbytes
        progress("compare", done, total)
        yield name if found is None else found


def compared(model: Side, base: Side, name: str, rows: int) -> TensorChange | None:
    """One tensor, by row blocks. None where a side holds NaN or infinity."""
    columns = model.shape(name)[1]
    sums = _Sums()
    with model.streaming(name) as ours, base.streaming(name) as theirs:
        for start, stop in blocks((rows, columns)):
            if not sums.add(ours(start, stop), theirs(start, stop)):
                return None
    place = model.places[name]
    left_out = max(model.shape(name)[0], base.shape(name)[0]) - rows
    dtypes = (model.dtype(name), base.dtype(name))
    return sums.change(name, place.role, place.layer, (rows, columns), dtypes, left_out)


def blocks(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Row blocks (start, stop) of about BLOCK entries."""
    step = max(1, BLOCK // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def of_one_dtype(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in the dtype that holds either exactly."""
    common = torch.promote_types(a.dtype, b.dtype)  # bf16 with fp16 gives float32
    return a.to(common), b.to(common)


class _Sums:
    """The kernel's sums over the blocks of one tensor, added exactly at the end."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {key: [] for key in ("aa", "bb", "ab", "dd", "d4")}
        self.largest, self.changed, self.zeroed = 0.0, 0, 0
        self.casts = tuple(CASTS)
        self.precise, self.wide = tuple(CASTS), "F64"
        self.corner: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
        a, b = of_one_dtype(ours, theirs)
        pair = ops.pair_statistics(_in_lines(a), _in_lines(b))
        if not pair.finite:
            return False
        for key, values in self.parts.items():
            values.append(getattr(pair, key))
        self.largest = max(self.largest, pair.largest)
        self.changed += pair.changed
        if pair.changed:
            self.zeroed += _zeroed(a, b)
            self.casts = still_cast(self.casts, a, theirs)
            self.precise, self.wide = still_held(self.precise, ours), name_of(ours.dtype)
            self.corner = self.corner or corner_of(a, b)
        return True

    def change(self, name, role, layer, shape, dtypes, left_out) -> TensorChange:
        aa, bb, ab, dd, d4 = (math.fsum(values) for values in self.parts.values())
        entries = shape[0] * shape[1]
        return TensorChange(
            name, role, layer, shape, dtypes, entries, self.changed, self.zeroed,
            math.sqrt(aa), math.sqrt(bb), math.sqrt(dd),
            _cosine(ab, aa, bb), _cosine(ab - bb, dd, bb), self.largest,
            entries * d4 / (dd * dd) if dd * dd > 0 else None, self.casts,
            self.precise[-1] if self.precise else self.wide, left_out, self.corner,
        )  # fmt: skip


def _in_lines(block: torch.Tensor) -> torch.Tensor:
    """The block with rows put together to up to LINE entries: the sums of every row are added in Python."""
    rows, columns = block.shape
    together = math.gcd(rows, max(1, LINE // max(1, columns)))
    return block.reshape(rows // together, together * columns)


def _zeroed(a: torch.Tensor, b: torch.Tensor) -> int:
    """Entries that are 0 in a and not in b; most blocks hold no 0 at all."""
    return int(((a == 0) & (b != 0)).sum()) if _has_zero(a) else 0


def _has_zero(block: torch.Tensor) -> bool:
    """Whether any entry is 0 or −0 (the least integer), from the bits: several times faster than comparing floats."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[block.dtype.itemsize]
    bits = block.contiguous().view(kind).numpy()
    unsigned = bits.view(f"u{bits.dtype.itemsize}")
    return bits.size > 0 and bool(unsigned.min() == 0 or bits.min() == numpy.iinfo(bits.dtype).min)


def _cosine(dot: float, a: float, b: float) -> float | None:
    size = math.sqrt(a) * math.sqrt(b)
    return max(-1.0, min(1.0, dot / size)) if size > 0 else None
