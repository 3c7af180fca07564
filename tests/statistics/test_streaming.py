"""Input norms layer by layer against those of the whole model in memory: the same bits, on every family of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest

from weightguard.checkpoint import Checkpoint, decoder_linears, open_checkpoint, resolve
from weightguard.data import Encoded

Build = Callable[..., Path]
# Dense, padded behind sliding windows, fused, learned positions, deeper in the model, and every way to hold experts.
SOME = ("llama", "gemma2", "phi3", "gpt2", "opt", "bloom", "mixtral", "deepseek_v3", "gpt_oss", "llama4", "llava")


def rows() -> list[Encoded]:
    random = numpy.random.default_rng(0)
    lengths = [1, 24, *random.integers(2, 24, 5)]
    return [Encoded(random.integers(1, 64, n), random.random(n) < 0.7, at) for at, n in enumerate(lengths)]


def whole(checkpoint: Checkpoint, dtype: str, batch_tokens: int, adapter: Checkpoint | None = None) -> dict[str, Any]:
    from weightguard.api.subject import Subject
    from weightguard.statistics.forward import input_square_sums
    from weightguard.statistics.loading import load_adapted, load_model

    model, pairs = load_model(checkpoint, dtype=dtype), None
    if adapter is not None:
        model, pairs = load_adapted(model, adapter), Subject(checkpoint, adapter, None, ()).factor_pairs()
    linears = decoder_linears(checkpoint.config, checkpoint.tensors)
    return input_square_sums(model, checkpoint.config, linears, rows(), lambda *_: None, pairs, batch_tokens)


def streamed(
    checkpoint: Checkpoint, dtype: str, batch_tokens: int, adapter: Checkpoint | None = None, spill: bool = False
) -> dict[str, Any]:
    from weightguard.api.subject import Subject
    from weightguard.statistics.forward import batch_size
    from weightguard.statistics.loading import dtype_of
    from weightguard.statistics.streaming import streamed_square_sums
    from weightguard.statistics.walk import Walk

    size = batch_size(dtype_of(dtype), batch_tokens)
    walk = Walk(checkpoint, None, {"rows": rows()}, dtype=dtype, batch_tokens=size, adapter=adapter)
    if spill:
        walk.spill()
    pairs = None if adapter is None else Subject(checkpoint, adapter, None, ()).factor_pairs()
    linears = decoder_linears(checkpoint.config, checkpoint.tensors)
    return streamed_square_sums(walk, checkpoint.config, linears, lambda *_: None, pairs)


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert list(found) == list(wanted)
    for name, sums in wanted.items():
        assert numpy.array_equal(found[name], sums), name


@pytest.mark.parametrize("family", SOME)
def test_the_same_bits(family: str, checkpoint: Build) -> None:
    source = open_checkpoint(resolve(str(checkpoint(family))))
    assert_same(streamed(source, "float32", 60), whole(source, "float32", 60))


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("batch_tokens", [60, 4096])
def test_the_same_bits_everywhere(
    dtype: str, batch_tokens: int, checkpoint: Build, families: Sequence[str], wrappers: Sequence[str]
) -> None:
    for family in (*families, *wrappers):
        source = open_checkpoint(resolve(str(checkpoint(family, sharded=True))))
        assert_same(streamed(source, dtype, batch_tokens, spill=True), whole(source, dtype, batch_tokens))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_same_bits_from_a_spill(dtype: str, checkpoint: Build) -> None:
    source = open_checkpoint(resolve(str(checkpoint("gemma3_text", "bfloat16", sharded=True))))
    assert_same(streamed(source, dtype, 60, spill=True), whole(source, dtype, 60))


@pytest.mark.parametrize("options", [{"tied": True}, {"headless": True}])
def test_tied_and_headless(options: dict[str, bool], checkpoint: Build) -> None:
    source = open_checkpoint(resolve(str(checkpoint("llama", **options))))
    assert_same(streamed(source, "float32", 4096), whole(source, "float32", 4096))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"target_modules": ["q_proj", "down_proj"]}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        ("qwen2", {"target_modules": ["q_proj"], "bias": "all"}),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        ("phi3", {"target_modules": "all-linear"}),
        ("mixtral", {"target_modules": ["q_proj", "o_proj"]}),
        ("llama4_text", {"target_modules": ["q_proj"]}),  # sends ids to where its embedding lies
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_under_an_adapter(family: str, settings: dict[str, Any], checkpoint: Build, adapter: Build) -> None:
    base = checkpoint(family)
    given = [open_checkpoint(resolve(str(place))) for place in (base, adapter(base, "bfloat16", **settings))]
    found, wanted = streamed(given[0], "float32", 60, given[1]), whole(given[0], "float32", 60, given[1])
    assert any(".lora_B." in name for name in wanted)
    assert_same(found, wanted)
