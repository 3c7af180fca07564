"""Token ids that were made elsewhere: a .safetensors of padded batches, checked and unpadded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightguard.data.formats import open_regular, printable
from weightguard.data.shapes import shown
from weightguard.errors import DataError

if TYPE_CHECKING:
    import numpy as np

IGNORED = -100  # the label transformers leaves out of the loss
_INTEGERS = frozenset({"I64", "I32", "I16", "I8", "U32", "U16", "U8"})  # every one fits in int64


@dataclass(frozen=True, eq=False)
class Arrays:
    """Per row, unpadded: ids int64 (T,), and answers bool (T,), or answers None where the file has no labels."""

    ids: list[np.ndarray]
    answers: list[np.ndarray] | None
    sha256: str


def read_arrays(path: str, *, need_labels: bool) -> Arrays:
    """Read and check `input_ids`, `attention_mask` and `labels`, each (N, T). Raises DataError, SystemFailure."""
    name = printable(path)
    with open_regular(path, name) as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    loaded = _load(path, name, need_labels)
    masks = [_real(mask, f"{name}, row {at}") for at, mask in enumerate(loaded["attention_mask"], 1)]
    ids = [row[mask] for row, mask in zip(loaded["input_ids"], masks, strict=True)]
    if "labels" not in loaded:
        return Arrays(ids, None, sha256)
    answers = [row[mask] != IGNORED for row, mask in zip(loaded["labels"], masks, strict=True)]
    return Arrays(ids, answers, sha256)


def _load(path: str, name: str, need_labels: bool) -> dict[str, np.ndarray]:
    """The arrays as int64 (N, T), shapes and dtypes checked from the header before anything is read."""
    from safetensors import SafetensorError, safe_open

    needed = ["input_ids", "attention_mask", *(["labels"] if need_labels else [])]
    try:
        with safe_open(path, framework="numpy") as file:
            there = set(file.keys())
            for key in needed:
                _refuse_missing(key, there, name)
            wanted = [key for key in ("input_ids", "attention_mask", "labels") if key in there]
            _check_header({key: file.get_slice(key) for key in wanted}, name)
            return {key: file.get_tensor(key).astype("int64") for key in wanted}
    except SafetensorError as error:
        raise DataError(
            f"{name}: not a readable safetensors file ({shown(str(error), 120)}); write it again"
        ) from error


def _refuse_missing(key: str, there: set[str], name: str) -> None:
    if key not in there:
        why = " (the response token set needs them, -100 outside the response)" if key == "labels" else ""
        found = ", ".join(shown(found) for found in sorted(there)[:8]) or "nothing"
        raise DataError(f"{name}: no `{key}`{why}; found {found}")


def _check_header(slices: dict[str, Any], name: str) -> None:
    shape = list(slices["input_ids"].get_shape())
    if len(shape) != 2 or 0 in shape:
        raise DataError(f"{name}: `input_ids` has shape {shape}; rows x positions are needed, neither of them 0")
    for key, part in slices.items():
        if list(part.get_shape()) != shape:
            raise DataError(
                f"{name}: `{key}` has shape {list(part.get_shape())}, but `input_ids` has {shape}; pad them alike"
            )
        allowed = _INTEGERS | {"BOOL"} if key == "attention_mask" else _INTEGERS
        if part.get_dtype() not in allowed:
            raise DataError(f"{name}: `{key}` is {part.get_dtype()}; integers up to int64 are needed")


def _real(mask: np.ndarray, where: str) -> np.ndarray:
    """The real positions of a row as bool (T,): ones side by side, padding on the left or the right of them."""
    import numpy as np

    if not np.isin(mask, (0, 1)).all():
        raise DataError(f"{where}: `attention_mask` holds something other than 0 and 1; write 1 for real tokens")
    real = np.flatnonzero(mask)
    if not real.size:
        raise DataError(f"{where}: `attention_mask` is all 0, the row holds no token; remove it")
    if real[-1] - real[0] + 1 != real.size:
        raise DataError(f"{where}: `attention_mask` has a hole; pad on the left or the right only")
    return mask == 1
