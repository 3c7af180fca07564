"""Neurons: which parts of which tensors matter for safety, or how fast each may learn. One file for all of them.

The file is safetensors. Its metadata key `weightguard_neurons` holds JSON: format, kind, paper, options, facts, and per
tensor {form, shape (out, in)}. Arrays, in logical (out, in) order whatever the storage:

* form "entries": `NAME|mask`, uint8, the out·in bits of the matrix packed row by row, first entry in the lowest bit.
* form "rows" or "columns": `NAME|mask`, uint8, `out` or `in` bits packed in the same way: whole output or input units.
* form "rank": `NAME|left` (out, k) and `NAME|right` (k, in), float32: the part left·right of the tensor.
* form "rate": no array; JSON key `rate`, the factor on the learning rate of the whole tensor.

`model` maps every named tensor to the sha256 of its bytes in the checkpoint the neurons were found in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard import bits
from weightguard.errors import InputError, MismatchError

if TYPE_CHECKING:
    import numpy

    from weightguard.checkpoint import Checkpoint

FORMAT = 1
FORMS = ("entries", "rows", "columns", "rank", "rate")
_KEY = "weightguard_neurons"


@dataclass(frozen=True, eq=False)
class Part:
    """What is marked of one tensor of logical shape (out, in); exactly the fields of its form are set.

    mask: packed bits, uint8. left (out, k), right (k, in): float32. rate: factor on the learning rate, >= 0.
    """

    form: str
    shape: tuple[int, int]
    mask: numpy.ndarray | None = None
    left: numpy.ndarray | None = None
    right: numpy.ndarray | None = None
    rate: float | None = None

    @staticmethod
    def of_entries(mask: numpy.ndarray) -> Part:
        """From a bool matrix (out, in)."""
        return Part("entries", (mask.shape[0], mask.shape[1]), bits.packed(mask))

    @staticmethod
    def of_units(form: str, units: numpy.ndarray, shape: tuple[int, int]) -> Part:
        """From a bool vector over the rows or the columns of a (out, in) tensor."""
        return Part(form, shape, bits.packed(units))

    @property
    def selected(self) -> int:
        """Marked entries of the tensor; all of it for rank and rate, which know no entries."""
        if self.mask is None:
            return self.shape[0] * self.shape[1]
        marked = int(self._bits().sum())
        return marked * {"entries": 1, "rows": self.shape[1], "columns": self.shape[0]}[self.form]

    def entries(self) -> numpy.ndarray:
        """The mask as a bool matrix (out, in). For the forms that have one."""
        import numpy

        marked = self._bits()
        if self.form == "entries":
            return marked.reshape(self.shape)
        return numpy.broadcast_to(marked[:, None] if self.form == "rows" else marked[None, :], self.shape).copy()

    def _bits(self) -> numpy.ndarray:
        assert self.mask is not None, f"neurons of form {self.form} have no mask"
        return bits.unpacked(self.mask, (self._bit_count(),))

    def _bit_count(self) -> int:
        out, width = self.shape
        return {"entries": out * width, "rows": out, "columns": width}[self.form]

    def is_sound(self) -> bool:
        """True when the arrays are those the form asks for, in the right shapes, dtypes and ranges."""
        if self.form in ("entries", "rows", "columns"):
            size = (bits.size(self._bit_count()),)
            return _is_array(self.mask, size, "uint8") and self.left is None and self.rate is None
        if self.form == "rank":
            k = 0 if self.left is None else self.left.shape[-1]
            sides = ((self.left, (self.shape[0], k)), (self.right, (k, self.shape[1])))
            return self.mask is None and all(
                _is_array(side, shape, "float32") and _is_finite(side) for side, shape in sides
            )
        return self.form == "rate" and isinstance(self.rate, float) and 0 <= self.rate < float("inf")


@dataclass(frozen=True, eq=False)
class Neurons:
    """`kind`: how they were found, a key of `weightguard.locate.KINDS`. `parts`: by on-disk tensor name.

    `model`: tensor -> sha256 in the checkpoint they were found in. `facts`: data, tokens, sizes: whatever is worth knowing.
    """

    kind: str
    paper: str
    options: Mapping[str, Any]
    parts: Mapping[str, Part]
    model: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """sha256 of the file form."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The file form described at the top of this module."""
        from weightguard.checkpoint.writer import safetensors_bytes

        arrays = {f"{n}|{key}": array for n, part in self.parts.items() for key, array in _arrays(part).items()}
        said = {"format": FORMAT, "kind": self.kind, "paper": self.paper, "options": dict(self.options),
                "facts": self.facts, "model": dict(self.model),
                "parts": {n: _described(part) for n, part in self.parts.items()}}  # fmt: skip
        return safetensors_bytes(arrays, {_KEY: json.dumps(said, ensure_ascii=False)})

    @staticmethod
    def load(path: Path) -> Neurons:
        """Read a file that `weightguard neurons` wrote. Error: InputError naming the file."""
        from weightguard.checkpoint import strict_json
        from weightguard.checkpoint.writer import read_arrays

        arrays, metadata = read_arrays(path, "a neurons file")
        if _KEY not in metadata:
            raise InputError(f"{path.name}: not a neurons file; write one with weightguard neurons")
        said: Any = strict_json.parse(metadata[_KEY].encode(), f"{path.name}: {_KEY}")
        try:
            if said["format"] != FORMAT:
                raise InputError(f"{path.name}: neurons format {said['format']!r}; this version reads {FORMAT}")
            parts = {str(n): _revived(n, entry, arrays) for n, entry in said["parts"].items()}
            model = {str(n): str(digest) for n, digest in said["model"].items()}
            kind, paper = str(said["kind"]), str(said["paper"])
            return Neurons(kind, paper, dict(said["options"]), parts, model, dict(said["facts"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path.name}: a damaged neurons file ({error!r}); write it again") from error

    def check_fits(self, checkpoint: Checkpoint) -> None:
        """Every named tensor is there with the very bytes the neurons were found in. Error: MismatchError naming one."""
        for name in self.parts:
            if name not in checkpoint.tensors:
                raise MismatchError(f"the neurons name tensor {name!r}, which {checkpoint.label} does not have")
            found = tuple(checkpoint.info(name).shape)
            if found not in (self.parts[name].shape, self.parts[name].shape[::-1]):
                said = list(self.parts[name].shape)
                raise MismatchError(
                    f"the neurons know tensor {name!r} as {said}, in {checkpoint.label} it is {list(found)}"
                )
            if tensor_digest(checkpoint, name) != self.model.get(name):
                raise MismatchError(
                    f"the neurons were found in another checkpoint than {checkpoint.label}: tensor {name!r} differs; "
                    f"find them again with weightguard neurons"
                )


def tensor_digest(checkpoint: Checkpoint, name: str) -> str:
    """sha256 of a tensor's bytes as they lie in the file."""
    return checkpoint.digest(name)


def _arrays(part: Part) -> dict[str, numpy.ndarray]:
    return {key: getattr(part, key) for key in ("mask", "left", "right") if getattr(part, key) is not None}


def _described(part: Part) -> dict[str, Any]:
    return {"form": part.form, "shape": list(part.shape)} | ({} if part.rate is None else {"rate": part.rate})


def _revived(name: str, entry: Mapping[str, Any], arrays: Mapping[str, numpy.ndarray]) -> Part:
    found = {key: arrays.get(f"{name}|{key}") for key in ("mask", "left", "right")}
    out, width = (_size(n) for n in entry["shape"])
    part = Part(str(entry["form"]), (out, width), rate=entry.get("rate"), **found)
    if part.form not in FORMS or not part.is_sound():
        raise ValueError(f"the part of tensor {name!r} does not hold what its form needs")
    return part


def _size(value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**40:
        raise ValueError(f"a size of {str(value)[:40]}")
    return value


def _is_array(value: numpy.ndarray | None, shape: tuple[int, ...], dtype: str) -> bool:
    return value is not None and value.shape == shape and value.dtype == dtype


def _is_finite(value: numpy.ndarray | None) -> bool:
    import numpy

    return value is not None and bool(numpy.isfinite(value).all())
