"""What the compatibility tests share: reading files back, and the naive selection every mask is compared with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from math import floor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

Arrays = dict[str, numpy.ndarray]


def digests(directory: Path) -> dict[str, str]:
    """sha256 of every file below a directory, by relative name."""
    files = (p for p in sorted(directory.rglob("*")) if p.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def header(path: Path) -> bytes:
    """The length word and the JSON of a safetensors file."""
    data = path.read_bytes()
    return data[: 8 + int.from_bytes(data[:8], "little")]


def tensors(directory: Path) -> Arrays:
    """Every tensor of every shard; bf16 as float32, which holds it exactly."""
    from safetensors.torch import load_file

    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            found[name] = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return found


def raw(directory: Path) -> dict[str, bytes]:
    """The bytes of every tensor of every shard."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        data = path.read_bytes()
        begin = len(header(path))
        for name, said in json.loads(header(path)[8:]).items():
            if name != "__metadata__":
                found[name] = data[begin + said["data_offsets"][0] : begin + said["data_offsets"][1]]
    return found


def same_bits(left: numpy.ndarray, right: numpy.ndarray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def count(ratio: str, size: int, rounding: str) -> int:
    """Entries of a group of `size`, by the rule as it is written down."""
    if rounding == "reference":
        return size - int(size * (1 - float(ratio)))
    return floor(Fraction(ratio) * size + Fraction(1, 2))


def top(score: numpy.ndarray, k: int) -> numpy.ndarray:
    """Bool mask of the k highest of a flat score, ties by lowest index."""
    mask = numpy.zeros(score.size, bool)
    mask[numpy.argsort(-score, kind="stable")[:k]] = True
    return mask


def masks(scores: Mapping[str, numpy.ndarray], ratio: str, group: str, rounding: str) -> Arrays:
    """Masks of scores (out, in): of each row, of each matrix, or of all together in bytewise order of the names."""
    if group == "row":
        return {n: numpy.stack([top(r, count(ratio, r.size, rounding)) for r in s]) for n, s in scores.items()}
    if group == "matrix":
        return {n: top(s.ravel(), count(ratio, s.size, rounding)).reshape(s.shape) for n, s in scores.items()}
    names = sorted(scores, key=str.encode)
    flat = numpy.concatenate([scores[n].ravel() for n in names])
    cuts = numpy.cumsum([scores[n].size for n in names])[:-1]
    parts = numpy.split(top(flat, count(ratio, flat.size, rounding)), cuts)
    return {n: part.reshape(scores[n].shape) for n, part in zip(names, parts, strict=True)}


@pytest.fixture(scope="session")
def files() -> SimpleNamespace:
    """digests, header, tensors, raw, same_bits."""
    return SimpleNamespace(digests=digests, header=header, tensors=tensors, raw=raw, same_bits=same_bits)


@pytest.fixture(scope="session")
def naive() -> SimpleNamespace:
    """count, top, masks: the selection written down once more, with nothing clever in it."""
    return SimpleNamespace(count=count, top=top, masks=masks)


@pytest.fixture
def input_is_kept() -> Iterator[Callable[..., None]]:
    """A function that takes directories; after the test, each of them must hold the bytes it held before."""
    watched: dict[Path, dict[str, str]] = {}

    def watch(*directories: Path) -> None:
        watched.update({directory: digests(directory) for directory in directories})

    yield watch
    for directory, before in watched.items():
        assert digests(directory) == before, f"{directory.name} was changed"


@pytest.fixture
def line(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A function that runs a command line and returns (exit code, the one line it left on stderr)."""
    from weightguard.cli.main import main

    def run(*arguments: Any) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        lines = said.err.strip().splitlines()
        assert len(lines) == 1, said.err
        return code, lines[0]

    return run
