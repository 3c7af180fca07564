"""What a method wants to change, before anything is changed: edits per tensor that can be replayed without the method.

Where it can be, an edit is declarative (a score, a count, a share), not a stored mask: a plan for a model of any size is
a few vectors per tensor, and the mask that comes out of it is the same on every machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard import bits
from weightguard.errors import InputError

if TYPE_CHECKING:
    import numpy

FORMAT = 1
_KEY = "weightguard_plan"


@dataclass(frozen=True, eq=False)
class Select:
    """Take the k highest-scored entries of each row, or of the matrix; `of` says what is scored and what replaces it.

    of="weight": entries of W are scored and become zero. of="delta": entries of D = W − W_aligned are scored and go
    back to the aligned value. score: "wanda" |x|·norms, "magnitude" |x|, "random" a counter hash of `seed`.
    norms: (in,) float32. spare: entries that the top `spare_k` by `spare_norms` holds are left alone (set difference).
    """

    tensor: str
    of: str
    k: int
    group: str
    score: str
    norms: numpy.ndarray | None = None
    seed: int | None = None
    spare_k: int = 0
    spare_norms: numpy.ndarray | None = None

    def fits(self, shape: tuple[int, int]) -> bool:
        """Counts and norms are those of a matrix of this logical shape (out, in)."""
        size = shape[1] if self.group == "row" else shape[0] * shape[1]
        vectors = [v for v in (self.norms, self.spare_norms) if v is not None]
        enough = len(vectors) >= (self.score == "wanda") + (self.spare_k > 0)
        return max(self.k, self.spare_k) <= size and enough and all(len(v) == shape[1] for v in vectors)


@dataclass(frozen=True)
class Scale:
    """Keep the share `keep` of the update (of="delta": W_aligned + keep·D) or of the tensor itself (of="weight")."""

    tensor: str
    of: str
    keep: float

    def fits(self, shape: tuple[int, int]) -> bool:
        """A share fits every shape."""
        return True


@dataclass(frozen=True, eq=False)
class Mask:
    """Marked entries go back to the aligned value (of="delta") or become zero (of="weight").

    bits: uint8, the out·in bits of the mask packed row by row in logical order, first entry in the lowest bit.
    """

    tensor: str
    of: str
    bits: numpy.ndarray

    def fits(self, shape: tuple[int, int]) -> bool:
        """One bit an entry."""
        return len(self.bits) == bits.size(shape[0] * shape[1])


@dataclass(frozen=True, eq=False)
class LowRank:
    """W + left·right: left (out, k), right (k, in), float32, logical order."""

    tensor: str
    left: numpy.ndarray
    right: numpy.ndarray

    def fits(self, shape: tuple[int, int]) -> bool:
        """The product has the shape of the tensor."""
        return (self.left.shape[0], self.right.shape[1]) == shape and self.left.shape[1] == self.right.shape[0]


@dataclass(frozen=True, eq=False)
class Replace:
    """The whole tensor anew: values (out, in), float32 in logical order, rounded once to the stored dtype.

    For what has no shorter description. Of a large model `values` may be a numpy.memmap.
    """

    tensor: str
    values: numpy.ndarray

    def fits(self, shape: tuple[int, int]) -> bool:
        """A value for every entry."""
        return self.values.shape == shape


@dataclass(frozen=True)
class ProjectDelta:
    """W_aligned + P·D, with P the projector on V = W_aligned − W_unaligned (see `statistics.subspace`).

    projector: "paper" V·Vᵀ/‖V‖, "normalized" V·Vᵀ/σ₁², or "exact" U·Uᵀ with the first `rank` directions of V.
    """

    tensor: str
    of: str
    projector: str
    rank: int | None = None

    def fits(self, shape: tuple[int, int]) -> bool:
        """No more directions than there are; only the exact projector has a rank."""
        return self.rank is None if self.projector != "exact" else 0 < (self.rank or 0) <= min(shape)


Edit = Select | Scale | Mask | LowRank | Replace | ProjectDelta
_KINDS: dict[str, type] = {
    "select": Select,
    "scale": Scale,
    "mask": Mask,
    "low-rank": LowRank,
    "replace": Replace,
    "project-delta": ProjectDelta,
}


@dataclass(frozen=True, eq=False)
class Plan:
    """Edits by tensor name, with the method and the options that led to them.

    target: weight, delta or factor. evidence: per tensor, what the method knows before writing (shape, selected, group);
    it may speak of tensors that were looked at and left alone. notes: what the method has to say about the whole.
    """

    method: str
    paper: str
    target: str
    options: Mapping[str, Any]
    edits: Mapping[str, Edit]
    evidence: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def needs_unaligned(self) -> bool:
        return any(isinstance(edit, ProjectDelta) for edit in self.edits.values())

    @property
    def needs_aligned(self) -> bool:
        return self.target == "delta"

    @property
    def selected(self) -> int:
        return sum(int(e.get("selected", 0)) for e in self.evidence.values())

    def digest(self) -> str:
        """sha256 over the plan's file form; two equal plans have equal digests."""
        found = hashlib.sha256()
        for part in self.parts():
            found.update(part)
        return found.hexdigest()

    def parts(self) -> Iterator[bytes | memoryview]:
        """The file form: safetensors, arrays as tensors and the rest as one JSON string in the metadata.

        In pieces, since the values of a Replace may be larger than memory.
        """
        from weightguard.checkpoint.writer import safetensors_parts

        arrays: dict[str, numpy.ndarray] = {}
        edits = [_described(edit, arrays) for edit in self.edits.values()]
        said = {"format": FORMAT, "method": self.method, "paper": self.paper, "target": self.target,
                "options": dict(self.options), "evidence": self.evidence, "edits": edits}  # fmt: skip
        said |= {"notes": list(self.notes)} if self.notes else {}
        return safetensors_parts(arrays, {_KEY: json.dumps(said, ensure_ascii=False)})

    @staticmethod
    def load(path: Path) -> Plan:
        """Read a plan written with `--save-plan`. Error: InputError naming the file."""
        from weightguard.checkpoint import strict_json
        from weightguard.checkpoint.writer import read_arrays

        arrays, metadata = read_arrays(path, "a plan")
        if _KEY not in metadata:
            raise InputError(f"{path.name}: not a weightguard plan; write one with --save-plan")
        said: Any = strict_json.parse(metadata[_KEY].encode(), f"{path.name}: {_KEY}")
        try:
            if said["format"] != FORMAT:
                raise InputError(f"{path.name}: plan format {said['format']!r}; this version reads {FORMAT}")
            edits = [_checked(_revived(entry, arrays), said["target"]) for entry in said["edits"]]
            evidence = {str(name): dict(known) for name, known in said["evidence"].items()}
            method, paper, target = (str(said[key]) for key in ("method", "paper", "target"))
            notes = tuple(str(note) for note in said.get("notes", ()))
            named = {edit.tensor: edit for edit in edits}
            return Plan(method, paper, target, dict(said["options"]), named, evidence, notes)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path.name}: a damaged plan ({error!r}); write it again with --save-plan") from error


def _described(edit: Edit, arrays: dict[str, numpy.ndarray]) -> dict[str, Any]:
    kind = next(name for name, cls in _KINDS.items() if isinstance(edit, cls))
    entry: dict[str, Any] = {"kind": kind}
    for each in dataclasses.fields(edit):
        value = getattr(edit, each.name)
        if hasattr(value, "dtype"):
            arrays[f"{edit.tensor}|{each.name}"] = value
        elif value is not None:
            entry[each.name] = value
    return entry


def _revived(entry: dict[str, Any], arrays: dict[str, numpy.ndarray]) -> Edit:
    cls = _KINDS[entry["kind"]]
    values = {key: value for key, value in entry.items() if key != "kind"}
    for each in dataclasses.fields(cls):
        name = f"{entry['tensor']}|{each.name}"
        if name in arrays:
            values[each.name] = arrays[name]
    return cls(**values)


def _checked(edit: Edit, target: str) -> Edit:
    """The edit, if every value is one that a method may write. Error: ValueError."""
    for each in dataclasses.fields(edit):
        value = getattr(edit, each.name)
        if not _VALID[each.name](value):
            raise ValueError(f"{each.name} of an edit is {str(value)[:40]}")
    of = getattr(edit, "of", None)  # LowRank and Replace do not ask what is behind a tensor
    if of is not None and of != ("delta" if target == "delta" else "weight"):
        raise ValueError(f"an edit of {of} in a plan for {target}")
    return edit


def _is_vector(value: Any) -> bool:
    return value is None or (getattr(value, "ndim", 0) == 1 and value.dtype == "float32")


def _is_matrix(value: Any) -> bool:
    return getattr(value, "ndim", 0) == 2 and value.dtype == "float32"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


_VALID: dict[str, Callable[[Any], bool]] = {
    "tensor": lambda value: isinstance(value, str),
    "of": lambda value: value in ("delta", "weight"),
    "k": _is_count,
    "group": lambda value: value in ("row", "matrix"),
    "score": lambda value: value in ("wanda", "magnitude", "random"),
    "norms": _is_vector,
    "seed": lambda value: value is None or (_is_count(value) and value < 2**32),
    "spare_k": _is_count,
    "spare_norms": _is_vector,
    "keep": lambda value: isinstance(value, float) and 0 <= value <= 1,
    "bits": lambda value: getattr(value, "ndim", 0) == 1 and value.dtype == "uint8",
    "left": _is_matrix,
    "right": _is_matrix,
    "values": _is_matrix,
    "projector": lambda value: value in ("paper", "normalized", "exact"),
    "rank": lambda value: value is None or _is_count(value),
}
