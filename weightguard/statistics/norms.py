"""Input norms of linear layers (Wanda, arXiv:2306.11695) and their file.

The file is safetensors: one float64 vector (in,) of sums of squares per linear, under the linear's on-disk tensor name;
the metadata tell the data, the tokens counted and the model they were collected on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy

from weightguard.checkpoint import strict_json
from weightguard.checkpoint.writer import read_arrays, safetensors_bytes
from weightguard.errors import DataError, InputError, MismatchError

KEY = "weightguard_statistics"
FORMAT = 1


@dataclass(frozen=True, eq=False)
class InputNorms:
    """sums[name]: Σ_t x_{t,j}² over the counted tokens, float64 (in,). facts: data, template, tokens, model digests."""

    sums: Mapping[str, numpy.ndarray]
    tokens: int
    facts: Mapping[str, Any]

    def norms(self, name: str) -> numpy.ndarray:
        """sqrt(mean over tokens of x_j²), rounded once to float32 (in,). Errors: DataError when missing or not finite."""
        if name not in self.sums:
            raise DataError(f"the statistics hold nothing for tensor {name!r}; collect them on this model again")
        if not numpy.isfinite(self.sums[name]).all() or (self.sums[name] < 0).any():
            raise DataError(
                f"the statistics of tensor {name!r} are not finite and positive; the forward pass broke down"
            )
        return numpy.sqrt(self.sums[name] / self.tokens).astype(numpy.float32)

    @cached_property
    def unseen(self) -> dict[str, None]:
        """Tensors that no counted token reached, in order: experts to which none was routed."""
        return dict.fromkeys(name for name, sums in self.sums.items() if not sums.any())

    def check_shape(self, name: str, width: int) -> None:
        if name in self.sums and self.sums[name].shape != (width,):
            raise MismatchError(
                f"the statistics of tensor {name!r} have {self.sums[name].size} inputs, the model has {width}"
            )

    def to_bytes(self) -> bytes:
        said = {"format": FORMAT, "counted_tokens": self.tokens, **self.facts}
        return safetensors_bytes(self.sums, {"format": "np", KEY: json.dumps(said, ensure_ascii=False)})

    def digest(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @staticmethod
    def load(path: Path) -> InputNorms:
        """Read a file written by `weightguard stats`. Error: InputError naming the file."""
        arrays, metadata = read_arrays(path, "statistics written by `weightguard stats`")
        if KEY not in metadata:
            raise InputError(f"{path.name}: not statistics written by `weightguard stats`")
        said = strict_json.parse(metadata[KEY].encode(), f"{path.name}: {KEY}")
        if not isinstance(said, dict) or not isinstance(said.get("data"), dict) or "source" not in said["data"]:
            raise InputError(f"{path.name}: {KEY} does not tell the data; collect the statistics again")
        tokens = said.pop("counted_tokens", None)
        known = said.pop("format", None) == FORMAT and type(tokens) is int and tokens > 0
        if not known or any(a.dtype != numpy.float64 or a.ndim != 1 for a in arrays.values()):
            raise InputError(f"{path.name}: not statistics of format {FORMAT}: float64 vectors and a token count")
        return InputNorms(arrays, tokens, said)
