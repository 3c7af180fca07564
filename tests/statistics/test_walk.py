"""The layer walk against the stock model run as a whole, on every family of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest

from weightguard.checkpoint import decoder_linears, family_of, open_checkpoint, resolve
from weightguard.data import Encoded
from weightguard.errors import CheckpointError, UnsupportedError

FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2", "cohere", "cohere2", "exaone4",
    "granite", "olmo", "olmo2", "smollm3", "stablelm", "glm", "glm4", "gpt_neox", "falcon", "bloom", "phi", "starcoder2",
    "ministral3", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "deepseek_v2", "deepseek_v3",
    "gpt_oss", "qwen3_next",
)  # fmt: skip

NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


def rows(seed: int = 0, count: int = 7) -> list[Encoded]:
    """Rows of 1 to 24 ids (longer than the sliding windows of 8), some positions counted."""
    random = numpy.random.default_rng(seed)
    lengths = [1, 24, *random.integers(2, 24, count - 2)]
    return [Encoded(random.integers(1, 64, n), random.random(n) < 0.7, at) for at, n in enumerate(lengths)]


def walk_of(directory: Path, given: dict[str, Sequence[Encoded]], **options: Any):
    from weightguard.statistics.layer_walk import LayerWalk

    checkpoint = open_checkpoint(resolve(str(directory)))
    return LayerWalk(checkpoint, checkpoint.read, given, **options), checkpoint


def stock(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    # gpt-oss alone has kernels for experts that round otherwise
    options = {"experts_implementation": "eager"} if "gpt_oss" in directory.name else {}
    return AutoModelForCausalLM.from_pretrained(directory, dtype="float32", **options).eval()


def batched(given: Sequence[Encoded], batch_tokens: int = 4096):
    import torch

    from weightguard.statistics.forward import batches, padded

    return [padded(batch, torch.device("cpu")) for batch in batches(given, batch_tokens)]


def forward(model: Any, ids: Any, attention: Any) -> Any:
    import torch

    with torch.inference_mode():
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        return model(input_ids=ids, attention_mask=attention, position_ids=positions, output_hidden_states=True)


@pytest.mark.parametrize("batch_tokens", [60, 4096])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_the_stock_model(family: str, batch_tokens: int, checkpoint: Callable[..., Path]):
    import torch

    directory = checkpoint(family, "bfloat16" if family == "qwen2" else "float32", sharded=True)
    walk, _ = walk_of(directory, {"one": rows(), "two": rows(1, 3)}, batch_tokens=batch_tokens)
    batches = batched(rows(), batch_tokens) + batched(rows(1, 3), batch_tokens)
    whole = [forward(stock(directory), ids, attention).hidden_states for ids, attention, _ in batches]
    for layer in range(walk.layers):
        for chunk, states in zip(walk.chunks, whole, strict=True):
            assert (chunk.hidden.get() == states[layer])[chunk.real].all(), f"layer {layer}"
        walk.enter(layer)
        walk.leave()
    # what comes out of the last layer: the stock model shows it after its final norm only
    base = stock(directory).base_model
    norm = next(module for name, module in base.named_children() if name in NORMS)
    for chunk, states in zip(walk.chunks, whole, strict=True):
        with torch.inference_mode():
            assert (norm(chunk.hidden.get()) == states[-1])[chunk.real].all()


@pytest.mark.parametrize("options", [{"tied": True}, {"headless": True}])
def test_tied_and_headless_checkpoints(options: dict[str, bool], checkpoint: Callable[..., Path]) -> None:
    directory = checkpoint("llama", **options)
    walk, _ = walk_of(directory, {"one": rows()})
    (ids, attention, _), *_ = batched(rows())
    wanted = forward(stock(directory), ids, attention).hidden_states[1]
    walk.enter(0)
    walk.leave()
    assert (walk.chunks[0].hidden.get() == wanted)[attention.bool()].all()


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_and_outputs_of_every_linear(family: str, checkpoint: Callable[..., Path]) -> None:
    directory = checkpoint(family)
    (walk, source), (giving, _) = (walk_of(directory, {"one": rows()}, batch_tokens=60) for _ in range(2))
    linears = {n: each for n, each in decoder_linears(source.config, source.tensors).items() if each.expert is None}
    wanted = hooked(stock(directory), [name.removesuffix(".weight") for name in linears], batched(rows(), 60))
    for layer in range(walk.layers):
        here = [name for name, linear in linears.items() if linear.layer == layer]
        walk.enter(layer)
        giving.enter(layer, here)
        found = {name: [x for _, x in walk.inputs(name)] for name in here}
        outputs = {name: [given[name] for _, given in giving.outputs([name])] for name in here}
        walk.leave()
        giving.leave()
        for name in here:
            for at, (x, y) in enumerate(wanted[name]):
                assert (found[name][at] == x).all() and (outputs[name][at] == y).all()
                assert len(x) == int(batched(rows(), 60)[at][2].sum())


def hooked(model: Any, paths: Sequence[str], batches: Any) -> dict[str, list[tuple[Any, Any]]]:
    """Input and output of each linear at the counted positions, batch by batch, on the stock model as a whole."""
    found: dict[str, list[tuple[Any, Any]]] = {f"{path}.weight": [] for path in paths}
    counted: Any = None

    def flat(values: Any) -> Any:
        return values.reshape(*counted.shape, -1)

    for path in paths:
        model.get_submodule(path).register_forward_hook(
            lambda _, args, out, n=f"{path}.weight": found[n].append((flat(args[0])[counted], flat(out)[counted]))
        )
    for ids, attention, counted in batches:  # noqa: B007  the hooks look at it
        forward(model, ids, attention)
    return found


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_new_weights_count_from_the_next_run_on(family: str, checkpoint: Callable[..., Path]) -> None:
    """A walk that is given another model's linears on the way ends where that model ends."""
    import torch

    directory, other = checkpoint(family), checkpoint(family, kind="aligned")
    walk, source = walk_of(directory, {"one": rows()})
    replacement = open_checkpoint(resolve(str(other)))
    linears = decoder_linears(source.config, source.tensors)
    mixed = stock(directory)
    with torch.no_grad():  # embeddings, norms and biases stay the first model's
        for name in linears:
            mixed.get_submodule(name.removesuffix(".weight")).weight.copy_(replacement.read(name))
    wanted = hooked(mixed, [n.removesuffix(".weight") for n in linears], batched(rows()))
    for layer in range(walk.layers):
        walk.enter(layer)
        for name in [n for n, linear in linears.items() if linear.layer == layer]:
            (_, x), *_ = walk.inputs(name)
            torch.testing.assert_close(x, wanted[name][0][0], rtol=1e-6, atol=1e-6)
            values = replacement.read(name)
            walk.put(name, values.T if linears[name].transposed else values)
        walk.leave()


@pytest.mark.parametrize("ask", ["inputs", "outputs"])
def test_a_linear_multiplies_a_chunk_once(
    ask: str, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And attention runs once, or for inputs once more on zeros; all but a few outputs are gone when the layer has run."""
    import torch

    ran: list[int] = []
    attended: list[bool] = []
    linear, attention = torch.nn.Linear.forward, torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: ran.append(id(self)) or linear(self, x))
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, *more, **options: attended.append(bool(q.any())) or attention(q, *more, **options),
    )
    walk, source = walk_of(checkpoint("llama"), {"one": rows()}, batch_tokens=60)
    here = [name for name, linear in decoder_linears(source.config, source.tensors).items() if linear.layer == 0]
    walk.enter(0, here if ask == "outputs" else ())
    for name in here:
        list(walk.inputs(name) if ask == "inputs" else walk.outputs([name]))
    kept = {name for each in walk._so_far.values() for name, y in each.outputs.items() if not y.get().is_meta}
    assert kept <= {name for name in here if "o_proj" in name or "down_proj" in name}
    walk.leave()
    assert len(ran) == len(here) * len(walk.chunks) and len(set(ran)) == len(here)
    assert attended == [True] * len(walk.chunks) + [False] * (len(walk.chunks) if ask == "inputs" else 0)


def test_weights_put_late_undo_what_was_run_with_the_old(checkpoint: Callable[..., Path]) -> None:
    q = "model.layers.0.self_attn.q_proj.weight"
    ends = []
    for look_first in (False, True):
        walk, _ = walk_of(checkpoint("llama"), {"one": rows()})
        walk.enter(0)
        if look_first:
            list(walk.inputs("model.layers.0.mlp.down_proj.weight"))
        walk.put(q, walk._module(q).weight.detach() * 3)
        walk.leave()
        ends.append(walk.chunks[0].hidden.get())
    assert (ends[0] == ends[1]).all()


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_padding_behind_a_sliding_window_does_no_harm(family: str, checkpoint: Callable[..., Path]) -> None:
    """Such positions see no key; in float64 their attention is NaN, which must not reach the rows they pad."""
    walk, source = walk_of(checkpoint(family), {"one": rows()}, dtype="float64")
    for layer in range(walk.layers):
        walk.enter(layer)
        for name in [
            n for n, linear in decoder_linears(source.config, source.tensors).items() if linear.layer == layer
        ]:
            assert all(x.isfinite().all() for _, x in walk.inputs(name))
        walk.leave()


def test_only_one_layer_has_weights(checkpoint: Callable[..., Path]) -> None:
    walk, _source = walk_of(checkpoint("llama"), {"one": rows()})
    assert all(p.is_meta for p in walk.model.parameters())
    walk.enter(1)
    real = {name for name, p in walk.model.named_parameters() if not p.is_meta}
    assert real and all(name.startswith("model.layers.1.") for name in real)
    walk.leave()
    assert all(p.is_meta for p in walk.model.parameters())


def test_a_missing_tensor_is_named(checkpoint: Callable[..., Path]) -> None:
    from weightguard.statistics.layer_walk import LayerWalk

    source = open_checkpoint(resolve(str(checkpoint("llama"))))

    def read(name: str) -> Any:
        tensor = source.read(name)
        return tensor[:-1] if "layers.1.input_layernorm" in name else tensor

    walk = LayerWalk(source, read, {"one": rows()})
    walk.enter(0)
    walk.leave()
    with pytest.raises(CheckpointError, match=r"layers\.1\.input_layernorm.* is \[15\], config.json makes it \[16\]"):
        walk.enter(1)


@pytest.mark.parametrize(
    "family, said",
    [("llama4_text", "its router scales"), ("llava", "a vision tower"), ("opt", "its layers lie deeper")],
)
def test_what_is_not_walked_is_refused(family: str, said: str, checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedError, match=said):
        walk_of(checkpoint(family), {"one": rows()})


def test_a_row_longer_than_the_positions_is_named(checkpoint: Callable[..., Path]) -> None:
    from weightguard.errors import DataError

    long = [Encoded(numpy.ones(65, numpy.int64), numpy.ones(65, bool), 3)]
    with pytest.raises(DataError, match="row 3 of the data has 65 tokens"):
        walk_of(checkpoint("gpt2"), {"one": long})
    assert family_of({"model_type": "gpt2"}).learned_positions
