"""Gram matrices against Y = X Wᵀ written out row by row in float64, and the directions against its SVD."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from weightguard.checkpoint import Checkpoint, decoder_linears, open_checkpoint, resolve
from weightguard.data import Encoded
from weightguard.errors import DataError, UsageError
from weightguard.statistics.forward import BATCH_TOKENS
from weightguard.statistics.grams import Grams, collect_grams, spectrum, top_directions
from weightguard.statistics.loading import load_model

SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64}  # fmt: skip


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A small random model with grouped keys and values, or with weights stored (in, out)."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp(request.param)
    small = GPT2Config(n_embd=16, n_layer=2, n_head=4, vocab_size=64, n_positions=64)
    model = LlamaForCausalLM(LlamaConfig(**SIZE)) if request.param == "llama" else GPT2LMHeadModel(small)
    model.save_pretrained(directory)
    return open_checkpoint(resolve(str(directory)))


def drawn(count: int) -> list[Encoded]:
    random = numpy.random.default_rng(0)
    lengths = random.integers(4, 24, count)
    return [
        Encoded(random.integers(0, 64, n), numpy.arange(n) >= random.integers(1, n), at) for at, n in enumerate(lengths)
    ]


def collected(
    source: Checkpoint, rows: list[Encoded], batch_tokens: int = BATCH_TOKENS, layer: int | None = None
) -> Grams:
    linears = decoder_linears(source.config, source.tensors)
    kept = {name: linear for name, linear in linears.items() if layer in (None, linear.layer)}
    return collect_grams(load_model(source), source.config, kept, rows, lambda *_: None, batch_tokens)


def naive_inputs(source: Checkpoint, rows: list[Encoded]) -> dict[str, torch.Tensor]:
    """Module path -> X (tokens, in) in float64, one row a pass, hooks on every module of the decoder."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(source.directory, dtype="float64").eval()
    seen: dict[str, list[torch.Tensor]] = {}
    counted = torch.zeros(0)
    linears = decoder_linears(source.config, source.tensors)
    for path, module in model.named_modules():
        if f"{path}.weight" in linears or f"{path.removeprefix('transformer.')}.weight" in linears:
            module.register_forward_pre_hook(
                lambda _, args, path=path: seen.setdefault(path, []).append(args[0][0][counted])
            )
    for row in rows:
        counted = torch.tensor(row.counted)
        with torch.no_grad():
            model(input_ids=torch.tensor(row.ids)[None])
    return {path: torch.cat(parts) for path, parts in seen.items()}


def test_grams_are_those_of_the_counted_inputs(source: Checkpoint) -> None:
    rows = drawn(7)
    found = collected(source, rows)
    assert found.tokens == sum(int(row.counted.sum()) for row in rows)
    inputs = naive_inputs(source, rows)
    assert {f"{path}.weight".removeprefix("transformer.") for path in inputs} == {
        name.removeprefix("transformer.") for name in found.keys
    }
    for path, x in inputs.items():
        name = next(n for n in found.keys if f"{path}.weight".endswith(n) or n.endswith(f"{path}.weight"))
        wanted = x.T @ x
        assert found.gram(name).dtype == torch.float64
        assert (found.gram(name) - wanted).norm() <= 5e-6 * wanted.norm(), name


def test_any_batch_size_and_some_layers_only(source: Checkpoint) -> None:
    rows = drawn(6)
    whole, alone, second = collected(source, rows), collected(source, rows, 1), collected(source, rows, layer=1)
    for name in whole.keys:
        assert (whole.gram(name) - alone.gram(name)).norm() <= 5e-6 * whole.gram(name).norm()
    assert second.keys and len(second.keys) * 2 == len(whole.keys) and len(second.sums) * 2 == len(whole.sums)
    assert all(torch.equal(second.gram(name), whole.gram(name)) for name in second.keys)


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (16, 16)])
def test_directions_are_the_right_singular_vectors_of_the_outputs(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(300, shape[1], dtype=torch.float64), torch.randn(shape)
    _, values, vectors = torch.linalg.svd(x @ weight.double().T, full_matrices=False)
    found = top_directions(weight, x.T @ x, 5)
    assert found.shape == (shape[0], 5) and found.dtype == torch.float64
    assert (found.T @ found - torch.eye(5)).abs().max() < 1e-12
    assert (found @ found.T - vectors[:5].T @ vectors[:5]).abs().max() < 1e-9
    least = min(shape)
    assert torch.allclose(spectrum(weight, x.T @ x)[0], values[:least] ** 2, rtol=1e-9)
    sizes = found.abs().argmax(0)
    assert all(found[sizes[i], i] > 0 for i in range(5))
    assert torch.equal(found, top_directions(weight, x.T @ x, 5))


@pytest.mark.parametrize("shape", [(20, 12), (12, 20)])
def test_data_that_span_few_directions_still_give_orthonormal_ones(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(3, shape[1], dtype=torch.float64), torch.randn(shape)
    values, vectors = spectrum(weight, x.T @ x)
    assert (vectors.T @ vectors - torch.eye(12)).abs().max() < 1e-12
    assert (values[3:] <= 1e-9 * values[0]).all()
    y = x @ weight.double().T
    assert (y - y @ vectors[:, :3] @ vectors[:, :3].T).norm() <= 1e-9 * y.norm()


@pytest.mark.parametrize("k", [0, -1, 13])
def test_ranks_beyond_the_weight_are_refused(k: int) -> None:
    with pytest.raises(UsageError, match="must be 1 to 12"):
        top_directions(torch.ones(20, 12), torch.eye(12, dtype=torch.float64), k)


def test_data_without_a_response_and_unknown_tensors(source: Checkpoint) -> None:
    nothing = [Encoded(numpy.array([1, 2]), numpy.array([False, False]), 1)]
    with pytest.raises(DataError, match="no token of the data counts"):
        collected(source, nothing)
    with pytest.raises(DataError, match=r"'lm_head\.weight'"):
        collected(source, drawn(2)).gram("lm_head.weight")
