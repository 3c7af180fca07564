"""SNIP's gradients and the probe against code that takes one sample and one step at a time, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from weightguard.checkpoint import Checkpoint, Linear, decoder_linears, open_checkpoint, resolve
from weightguard.data import Encoded
from weightguard.errors import DataError
from weightguard.statistics.gradients import absolute_gradients, predicted, row_gradients
from weightguard.statistics.loading import load_model
from weightguard.statistics.losses import answer_losses
from weightguard.statistics.probe import fit_probe, last_states

FAMILIES = ("llama", "qwen3", "gemma2", "phi3", "gpt2")


def drawn(count: int) -> list[Encoded]:
    """Rows of 3 to 14 ids below 64 whose answer is a tail; one has no answer, one is an answer from the first token on."""
    random = numpy.random.default_rng(0)
    rows = []
    for at in range(count):
        size = int(random.integers(3, 15))
        start = {0: size, 1: 0}.get(at, int(random.integers(1, size)))
        rows.append(Encoded(random.integers(1, 64, size), numpy.arange(size) >= start, at + 1))
    return rows


def naive_gradients(directory: Path, rows: list[Encoded]) -> dict[str, numpy.ndarray]:
    """Σ_n |∂L_n/∂W| by parameter name, everything in float64: a full forward pass and a loss written out a row."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="float64").eval()
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in rows:
        wanted = [at for at in range(1, len(row.ids)) if row.counted[at]]
        if not wanted:
            continue
        logits = model(input_ids=torch.tensor(row.ids)[None]).logits[0]
        losses = [torch.logsumexp(logits[at - 1], 0) - logits[at - 1, int(row.ids[at])] for at in wanted]
        model.zero_grad()
        (sum(losses) / len(losses)).backward()
        for name, p in model.named_parameters():
            sums[name] += p.grad.abs() if p.grad is not None else 0
    return {name: total.detach().numpy() for name, total in sums.items()}


def opened(directory: Path) -> tuple[Checkpoint, dict[str, Linear]]:
    checkpoint = open_checkpoint(resolve(str(directory)))
    return checkpoint, decoder_linears(checkpoint.config, checkpoint.tensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_snip_sums_the_size_of_each_samples_gradient(family: str, checkpoint) -> None:
    directory, rows = checkpoint(family), drawn(6)
    source, linears = opened(directory)
    naive = naive_gradients(directory, rows)
    for dtype, close in (("float64", 1e-6), ("float32", 2e-4)):
        model = load_model(source, dtype=dtype)
        found = absolute_gradients(model, source.config, linears, rows, lambda *_: None)
        for name, linear in linears.items():
            wanted = next(each for key, each in naive.items() if key.endswith(name))
            wanted = wanted.T if linear.transposed else wanted
            assert found[name].dtype == torch.float32
            assert numpy.abs(found[name].numpy() - wanted).max() <= close * wanted.max(), (name, dtype)


def test_the_gradient_of_the_sum_would_be_another_score(checkpoint) -> None:
    source, linears = opened(checkpoint("llama"))
    model = load_model(source)
    rows = drawn(6)
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, _weight: torch.Tensor, gradient: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0) + gradient

    for _ in row_gradients(model, source.config, linears, rows, add, lambda *_: None):
        pass
    found = absolute_gradients(model, source.config, linears, rows, lambda *_: None)
    assert all((found[name] >= sums[name].abs() - 1e-5).all() for name in linears)
    assert all(float((found[name] - sums[name].abs()).max()) > 1e-3 * float(found[name].max()) for name in linears)


def test_bf16_gradients_are_summed_in_float32(checkpoint) -> None:
    """Many equal samples: in bf16 the sum would stop growing at 256 times the first gradient."""
    source, linears = opened(checkpoint("llama"))
    model = load_model(source, dtype="bfloat16")
    row = drawn(3)[2]
    single = absolute_gradients(model, source.config, linears, [row], lambda *_: None)
    many = absolute_gradients(model, source.config, linears, [row] * 300, lambda *_: None)
    name = next(iter(linears))
    assert torch.allclose(many[name], 300 * single[name], rtol=1e-3)


def test_a_visit_sees_weights_in_logical_order_and_leaves_no_gradient(checkpoint) -> None:
    source, linears = opened(checkpoint("gpt2"))
    model, seen = load_model(source), {}
    rows = [row for row in drawn(4) if predicted(row)]

    def reduce(name: str, weight: torch.Tensor, gradient: torch.Tensor) -> int:
        seen[name] = (tuple(weight.shape), tuple(gradient.shape))
        return 7

    kept = list(row_gradients(model, source.config, linears, rows, reduce, lambda *_: None))
    assert len(kept) == len(rows) and all(each == dict.fromkeys(linears, 7) for each in kept)
    shapes = {n: (source.info(n).shape[1], source.info(n).shape[0]) for n in linears}
    assert seen == {n: (shape, shape) for n, shape in shapes.items()}
    assert all(p.grad is None for p in model.parameters())


def test_data_without_an_answer_is_refused(checkpoint) -> None:
    source, linears = opened(checkpoint("llama"))
    first = Encoded(numpy.array([3]), numpy.array([True]), 1)  # an answer with nothing before it
    with pytest.raises(DataError, match="no token of the data is an answer"):
        absolute_gradients(load_model(source), source.config, linears, [first, drawn(1)[0]], lambda *_: None)


def test_a_row_that_is_too_long_is_named(checkpoint) -> None:
    source, linears = opened(checkpoint("gpt2"))
    row = Encoded(numpy.ones(65, int), numpy.ones(65, bool), 9)
    with pytest.raises(DataError, match="row 9 of the data has 65 tokens"):
        absolute_gradients(load_model(source), source.config, linears, [row], lambda *_: None)


def test_losses_in_one_pass_are_those_of_each_row(checkpoint) -> None:
    source, _ = opened(checkpoint("gemma2"))
    model, rows = load_model(source, dtype="float64"), [row for row in drawn(7) if predicted(row)]
    found = answer_losses(model, rows, batch_tokens=40)
    for row, loss in zip(rows, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(row.ids)[None]).logits[0]
        each = [torch.logsumexp(logits[at - 1], 0) - logits[at - 1, int(row.ids[at])] for at in predicted(row)]
        assert float(loss) == pytest.approx(float(sum(each)) / len(each), rel=1e-6)


def test_last_states_are_those_of_the_last_token_in_the_order_of_the_rows(checkpoint) -> None:
    source, _ = opened(checkpoint("llama"))
    model, rows = load_model(source), drawn(7)
    found = last_states(model, rows, lambda *_: None, batch_tokens=40)
    with torch.no_grad():
        alone = [model.base_model(torch.tensor(row.ids)[None]).last_hidden_state[0, -1] for row in rows]
    assert found.dtype == torch.float64
    assert torch.allclose(found, torch.stack(alone).double(), atol=1e-5)


def test_the_probe_is_ridge_regression_with_classes_of_equal_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    harmful = torch.randn(12, 5, generator=generator, dtype=torch.float64) + 1
    benign = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    probe = fit_probe(harmful, benign)
    mean = (harmful.mean(0) + benign.mean(0)) / 2
    scale = ((((harmful - mean) ** 2).mean(0) + ((benign - mean) ** 2).mean(0)) / 2).sqrt()
    weights = torch.tensor([1 / 12] * 12 + [1 / 30] * 30, dtype=torch.float64)
    x, y = (torch.cat([harmful, benign]) - mean) / scale, torch.cat([torch.ones(12), -torch.ones(30)]).double()
    loss_gradient = (x * (weights * (x @ probe.weight - y))[:, None]).sum(0) + 2e-2 * probe.weight
    assert float(loss_gradient.abs().max()) < 1e-12
    told = ((harmful - mean) / scale) @ probe.weight > 0, ((benign - mean) / scale) @ probe.weight < 0
    assert probe.accuracy(harmful, benign) == pytest.approx(sum(float(t.double().mean()) for t in told) / 2)


def test_states_that_do_not_differ_are_a_coin() -> None:
    states = torch.ones(6, 4, dtype=torch.float64)
    probe = fit_probe(states, states)
    assert probe.accuracy(states, states) <= 0.5
