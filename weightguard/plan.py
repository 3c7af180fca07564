"""What a method wants to change, before anything is changed: edits per tensor that can be replayed without the method.

An edit is declarative (a score, a count, a share), not a stored mask: a plan for a model of any size is a few vectors
per tensor, and the mask that comes out of it is the same on every machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.errors import InputError

if TYPE_CHECKING:
    import numpy

FORMAT = 1


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


@dataclass(frozen=True)
class Scale:
    """Keep the share `keep` of the update (of="delta": W_aligned + keep·D) or of the tensor itself (of="weight")."""

    tensor: str
    of: str
    keep: float


Edit = Select | Scale
_KINDS: dict[str, type] = {"select": Select, "scale": Scale}


@dataclass(frozen=True, eq=False)
class Plan:
    """Edits by tensor name, with the method and the options that led to them.

    target: weight, delta or factor. evidence: per tensor, what the method knows before writing (shape, selected, group).
    """

    method: str
    paper: str
    target: str
    options: Mapping[str, Any]
    edits: Mapping[str, Edit]
    evidence: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def needs_aligned(self) -> bool:
        return self.target == "delta"

    @property
    def selected(self) -> int:
        return sum(int(e.get("selected", 0)) for e in self.evidence.values())

    def digest(self) -> str:
        """sha256 over the plan's file form; two equal plans have equal digests."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The file form: safetensors bytes, vectors as tensors and the rest as one JSON string in the metadata."""
        from weightguard.checkpoint.writer import safetensors_bytes

        arrays: dict[str, numpy.ndarray] = {}
        edits = [_described(edit, arrays) for edit in self.edits.values()]
        said = {"format": FORMAT, "method": self.method, "paper": self.paper, "target": self.target,
                "options": dict(self.options), "evidence": self.evidence, "edits": edits}  # fmt: skip
        return safetensors_bytes(arrays, {"weightguard_plan": json.dumps(said, ensure_ascii=False)})

    @staticmethod
    def load(path: Path) -> Plan:
        """Read a plan written with `--save-plan`. Error: InputError naming the file."""
        from weightguard.checkpoint.writer import read_arrays

        arrays, metadata = read_arrays(path, "a plan")
        try:
            said = json.loads(metadata["weightguard_plan"])
            edits = [_revived(entry, arrays) for entry in said["edits"]]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path.name}: not a weightguard plan ({error!r}); write one with --save-plan") from error
        if said.get("format") != FORMAT:
            raise InputError(f"{path.name}: plan format {said.get('format')!r}; this version reads {FORMAT}")
        by_name = {edit.tensor: edit for edit in edits}
        return Plan(said["method"], said["paper"], said["target"], said["options"], by_name, said["evidence"])


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
