"""A pico model with its data, and the statistics of neurons written down once more: float64, one sample at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

import weightguard as wg
from weightguard.checkpoint import Linear, decoder_linears, open_checkpoint, resolve

Arrays = dict[str, numpy.ndarray]


@dataclass(frozen=True)
class Subject:
    """A pico model: its directory, its weights (out, in) and roles by on-disk name, and the rows of each role."""

    path: Path
    weights: Arrays
    linears: Mapping[str, Linear]
    files: Mapping[str, str]
    config: dict

    def find(self, **options: Any) -> Any:
        needed = {} if options.get("kind") == "random" else self.files
        return wg.neurons(str(self.path), threads=1, **{**needed, **options})


def rows_of(path: Path, file: str) -> list[tuple[list[int], int]]:
    """(ids, where the answer begins) of every row, by the stock tokenizer and its own template."""
    import json

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    found = []
    for line in Path(file).read_text().splitlines():
        row = json.loads(line)
        turns = [{"role": "user", "content": row["prompt"]}]
        both = [*turns, {"role": "assistant", "content": row["response"]}]
        before = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))[
            "input_ids"
        ]
        whole = tokenizer(tokenizer.apply_chat_template(both, tokenize=False))["input_ids"]
        found.append((whole, len(before)))
    return found


def in_float64(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype="float64").eval()


def module_of(model: Any, name: str) -> Any:
    ends = name.removesuffix(".weight")
    return next(module for path, module in model.named_modules() if path.endswith(ends))


def loss(model: Any, ids: list[int], start: int) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    parts = [torch.logsumexp(logits[at - 1], 0) - logits[at - 1, ids[at]] for at in range(start, len(ids))]
    return sum(parts) / len(parts)


def inputs(subject: Subject, role: str) -> Arrays:
    """X (answer tokens of all rows, in) of every linear."""
    model, seen = in_float64(subject.path), {}
    start = 0
    for name in subject.linears:
        module_of(model, name).register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(args[0][0, start:].detach())
        )
    for ids, start in rows_of(subject.path, subject.files[role]):  # noqa: B007, the hooks read it
        model(input_ids=torch.tensor([ids]))
    return {name: torch.cat(parts).numpy() for name, parts in seen.items()}


def gradients(subject: Subject, role: str) -> list[Arrays]:
    """∂L_n/∂W (out, in) of every linear, sample by sample."""
    model, found = in_float64(subject.path), []
    for ids, start in rows_of(subject.path, subject.files[role]):
        model.zero_grad()
        loss(model, ids, start).backward()
        grads = {name: module_of(model, name).weight.grad.numpy().copy() for name in subject.linears}
        found.append({n: g.T if subject.linears[n].transposed else g for n, g in grads.items()})
    return found


def scores(subject: Subject, role: str, score: str) -> Arrays:
    if score == "wanda":
        return {n: abs(subject.weights[n]) * numpy.sqrt((x**2).mean(0)) for n, x in inputs(subject, role).items()}
    sums = gradients(subject, role)
    return {n: abs(subject.weights[n]) * sum(abs(each[n]) for each in sums) for n in subject.linears}


def count(share: str, size: int) -> int:
    return floor(Fraction(share) * size + Fraction(1, 2))


def top(flat: numpy.ndarray, share: str) -> numpy.ndarray:
    mask = numpy.zeros(flat.size, bool)
    mask[numpy.argsort(-flat.ravel(), kind="stable")[: count(share, flat.size)]] = True
    return mask.reshape(flat.shape)


def tops(found: Arrays, share: str, group: str) -> Arrays:
    """The top share of each row, of each array, or of all arrays in bytewise order of their names."""
    if group == "row":
        return {n: numpy.stack([top(row, share) for row in s]) for n, s in found.items()}
    if group == "matrix":
        return {n: top(s, share) for n, s in found.items()}
    names = sorted(found, key=str.encode)
    flat = top(numpy.concatenate([found[n].ravel() for n in names]), share)
    parts = numpy.split(flat, numpy.cumsum([found[n].size for n in names])[:-1])
    return {n: part.reshape(found[n].shape) for n, part in zip(names, parts, strict=True)}


@pytest.fixture(scope="session")
def naive() -> SimpleNamespace:
    """scores, inputs, gradients, tops, top, count, loss, in_float64, module_of, rows_of."""
    return SimpleNamespace(scores=scores, inputs=inputs, gradients=gradients, tops=tops, top=top, count=count, loss=loss,
                           in_float64=in_float64, module_of=module_of, rows_of=rows_of)  # fmt: skip


@pytest.fixture(scope="session")
def subject(checkpoint, data: Mapping[str, Path]) -> Callable[..., Subject]:
    """A function: family and settings of `checkpoint` -> Subject. Harmful rows serve as safety rows."""

    def build(family: str = "llama", **options: Any) -> Subject:
        path = checkpoint(family, **options)
        source = open_checkpoint(resolve(str(path)))
        linears = decoder_linears(source.config, source.tensors)
        weights = {n: source.read(n).double().numpy() for n in linears}
        weights = {n: w.T if linears[n].transposed else w for n, w in weights.items()}
        files = {"safety": str(data["harmful"]), "utility": str(data["benign"])}
        return Subject(path, weights, linears, files, source.config)

    return build


def masks(found: Any) -> Arrays:
    """Bool (out, in) of every part of a result, all False for the tensors that have none."""
    parts = found.neurons.parts
    return {n: parts[n].entries() if n in parts else numpy.zeros(s, bool) for n, (_, s) in found.linears.items()}


@pytest.fixture(scope="session")
def masks_of() -> Callable[[Any], Arrays]:
    """A function: what `wg.neurons` returned -> bool (out, in) by tensor."""
    return masks
