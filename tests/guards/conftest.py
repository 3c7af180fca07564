"""A pico model in memory, data for it, neurons of every form, and a plain training step to hang guards onto."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch

from weightguard.parts import Neurons, Part

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True},
    "gpt2": {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "resid_pdrop": 0.0,
             "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}  # fmt: skip


def build(family: str) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES["llama"]))
    return GPT2LMHeadModel(GPT2Config(**SIZES["gpt2"]))


@pytest.fixture
def model() -> Any:
    return build("llama")


@pytest.fixture(params=["llama", "gpt2"])
def any_model(request: pytest.FixtureRequest) -> Any:
    """GPT-2 holds its linears (in, out)."""
    return build(request.param)


def steps(model: Any, optimizer: Any, count: int, dtype: torch.dtype | None = None, scheduler: Any = None) -> None:
    draw = torch.Generator().manual_seed(1)
    for _ in range(count):
        ids = torch.randint(0, 40, (4, 9), generator=draw)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


@pytest.fixture
def train() -> Callable[..., None]:
    """A function (model, optimizer, count, autocast dtype, scheduler) that takes plain steps on random ids."""
    return steps


@pytest.fixture
def neurons() -> Callable[..., Neurons]:
    """A function: neurons of these parts, `model` digests left out."""
    return lambda **parts: Neurons("made", "none", {}, {n.replace("__", "."): p for n, p in parts.items()}, {})


def shapes(model: Any) -> Iterator[tuple[str, tuple[int, int], bool]]:
    """(tensor, logical shape, transposed) of every decoder linear."""
    for path, module in model.named_modules():
        kind = type(module).__name__
        if kind in ("Linear", "Conv1D") and "head" not in path:
            stored = tuple(module.weight.shape)
            yield f"{path}.weight", stored[::-1] if kind == "Conv1D" else stored, kind == "Conv1D"


@pytest.fixture
def linears() -> Callable[[Any], list[tuple[str, tuple[int, int], bool]]]:
    return lambda model: list(shapes(model))


@pytest.fixture
def half_marked() -> Callable[[Any, str], tuple[Neurons, dict[str, numpy.ndarray]]]:
    """A function: neurons of one form that mark about half of every linear, and the masks (out, in)."""

    def make(model: Any, form: str) -> tuple[Neurons, dict[str, numpy.ndarray]]:
        random = numpy.random.default_rng(0)
        parts, masks = {}, {}
        for name, shape, _ in shapes(model):
            if form == "entries":
                parts[name] = Part.of_entries(random.random(shape) < 0.5)
            else:
                parts[name] = Part.of_units(form, random.random(shape[form == "columns"]) < 0.5, shape)
            masks[name] = parts[name].entries()
        return Neurons("made", "none", {}, parts, {}), masks

    return make
