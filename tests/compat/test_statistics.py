"""Input norms against hooks on every linear of its own, one row at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

import weightguard as wg

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2")
CLOSE = 5e-6
Rows = Sequence[tuple[list[int], list[bool]]]


def drawn(count: int, seed: int = 0) -> Rows:
    """Rows of 1 to 24 ids below 64, none of them padding, with a response that is a random tail, never empty."""
    random = numpy.random.default_rng(seed)
    rows = []
    for length in [1, 24, *random.integers(2, 24, count - 2)]:
        start = int(random.integers(0, length))
        rows.append((random.integers(1, 64, length).tolist(), [at >= start for at in range(length)]))
    return rows


def naive_norms(model: Any, rows: Rows, everything: bool) -> dict[str, numpy.ndarray]:
    """sqrt of the mean square of each input of every Linear and Conv1D below the decoder, by module path; one row a pass."""
    import torch
    from transformers.pytorch_utils import Conv1D

    sums: dict[str, torch.Tensor] = {}
    counted: list[bool] = []

    def hook(path: str) -> Callable[..., None]:
        def add(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
            assert args[0].dtype == torch.float64
            sums[path] = sums.get(path, 0) + (args[0][0][torch.tensor(counted)] ** 2).sum(0)

        return add

    modules = {p: m for p, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D))}
    handles = [m.register_forward_pre_hook(hook(p)) for p, m in modules.items() if "lm_head" not in p]
    with torch.no_grad():
        for ids, response in rows:
            counted[:] = [True] * len(ids) if everything else response
            model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    total = sum(len(ids) if everything else sum(response) for ids, response in rows)
    return {path: (s / total).sqrt().numpy() for path, s in sums.items()}


def in_float64(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype="float64").eval()


def write_padded(path: Path, rows: Rows, side: str, labels: bool = True) -> Path:
    """The rows as a pre-tokenised file, padded on one side; the ids under the padding are not the padding id."""
    from safetensors.numpy import save_file

    width = max(len(ids) for ids, _ in rows)
    shape = (len(rows), width)
    arrays = {
        "input_ids": numpy.full(shape, 7),
        "attention_mask": numpy.zeros(shape, int),
        "labels": numpy.full(shape, -100),
    }
    for at, (ids, response) in enumerate(rows):
        place = slice(width - len(ids), width) if side == "left" else slice(0, len(ids))
        arrays["input_ids"][at, place] = ids
        arrays["attention_mask"][at, place] = 1
        arrays["labels"][at, place] = numpy.where(response, ids, -100)
    save_file({name: array for name, array in arrays.items() if labels or name != "labels"}, path)
    return path


def assert_close(found: Mapping[str, numpy.ndarray], wanted: Mapping[str, numpy.ndarray]) -> None:
    assert set(found) == set(wanted)
    for name, norms in wanted.items():
        assert found[name].shape == norms.shape
        assert numpy.abs(found[name] / norms - 1).max() <= CLOSE, name


def norms_of(found: Any) -> dict[str, numpy.ndarray]:
    return {name: numpy.sqrt(sums / found.tokens) for name, sums in found.sums.items()}


@pytest.mark.parametrize("tokens", ["all", "response"])
@pytest.mark.parametrize("family", FAMILIES)
def test_norms_equal_hooks_on_every_linear(
    family: str, tokens: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    rows = drawn(9)
    directory = checkpoint(family, "bfloat16" if tokens == "response" else "float32")
    wanted = naive_norms(in_float64(directory), rows, tokens == "all")
    for side in ("left", "right"):
        data = write_padded(tmp_path / f"{side}.safetensors", rows, side)
        found = wg.stats(directory, data=str(data), tokens=tokens)
        assert found.tokens == sum(len(ids) if tokens == "all" else sum(response) for ids, response in rows)
        assert_close(norms_of(found), {f"{path}.weight": norms for path, norms in wanted.items()})


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [1, 30, 60, 4096])
def test_any_batch_size(family: str, batch_tokens: int, checkpoint: Callable[..., Path]) -> None:
    from weightguard.checkpoint import decoder_linears, open_checkpoint, resolve
    from weightguard.data import Encoded
    from weightguard.statistics.forward import batches, input_square_sums
    from weightguard.statistics.loading import load_model

    rows = drawn(11, seed=1)
    given = [Encoded(numpy.array(ids), numpy.array(response), at) for at, (ids, response) in enumerate(rows)]
    sizes = [len(batch) for batch in batches(given, batch_tokens)]
    assert sizes == [1] * 11 if batch_tokens == 1 else max(sizes) > 1 and sum(sizes) == 11
    source = open_checkpoint(resolve(str(checkpoint(family))))
    named = decoder_linears(source.config, source.tensors)
    sums = input_square_sums(load_model(source), source.config, named, given, lambda *_: None, None, batch_tokens)
    total = sum(sum(response) for _, response in rows)
    wanted = naive_norms(in_float64(source.directory), rows, everything=False)
    assert_close({n: numpy.sqrt(s / total) for n, s in sums.items()}, {f"{p}.weight": s for p, s in wanted.items()})


@pytest.mark.parametrize("tokens", ["all", "response"])
def test_rows_of_text(
    tokens: str,
    checkpoint: Callable[..., Path],
    tokenizer: Path,
    data: Mapping[str, Path],
    rows_of: Callable[..., Rows],
) -> None:
    directory = checkpoint("llama")
    found = wg.stats(directory, data=str(data["harmful"]), tokens=tokens)
    wanted = naive_norms(in_float64(directory), rows_of(data["harmful"]), tokens == "all")
    assert_close(norms_of(found), {f"{path}.weight": norms for path, norms in wanted.items()})
    assert found.facts["template"] == "chat"


@pytest.fixture
def rows_of(tokenizer: Path) -> Callable[[Path], Rows]:
    """A function: the rows of a .jsonl as ids, and which of them belong to the response, by counting words."""
    import json

    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(tokenizer)

    def read(path: Path) -> Rows:
        rows = []
        for row in map(json.loads, path.read_text().splitlines()):
            before = f"<|user|> {row['prompt']} </s><|assistant|>"
            full = f"<|user|> {row['prompt']} </s><|assistant|> {row['response']} </s>"
            ids = words(full, add_special_tokens=False)["input_ids"]
            start = len(words(before, add_special_tokens=False)["input_ids"])
            rows.append((ids, [at >= start for at in range(len(ids))]))
        return rows

    return read


def test_the_file_holds_what_was_returned(
    checkpoint: Callable[..., Path], data: Mapping[str, Path], tmp_path: Path, files: SimpleNamespace
) -> None:
    from safetensors.numpy import load_file

    from weightguard.statistics.norms import InputNorms

    found = wg.stats(checkpoint("qwen2"), data=str(data["harmful"]), out=tmp_path / "S")
    held = load_file(tmp_path / "S")
    assert {name: array.dtype for name, array in held.items()} == dict.fromkeys(found.sums, numpy.dtype("float64"))
    assert all(files.same_bits(held[name], sums) for name, sums in found.sums.items())
    assert InputNorms.load(tmp_path / "S").digest() == found.digest()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_norms_under_an_adapter(
    family: str, checkpoint: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """The inputs of the adapted model's linears, which are those of lora_A, and of lora_B (which are A x)."""
    import peft

    base = checkpoint(family)
    targets = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"], "phi3": "all-linear"}[family]
    lora = adapter(base, target_modules=targets, fan_in_fan_out=family == "gpt2")
    rows = drawn(6, seed=2)
    data = write_padded(tmp_path / "rows.safetensors", rows, "left", labels=False)
    model = peft.PeftModel.from_pretrained(in_float64(base), lora, autocast_adapter_dtype=False).double().eval()
    wanted = {on_disk(path): norms for path, norms in naive_norms(model, rows, everything=True).items()}
    assert_close(norms_of(wg.stats(lora, data=str(data))), wanted)


def on_disk(path: str) -> str:
    """The name in the base's or in the adapter's file for a module of a peft model."""
    if ".lora_" in path:
        return path.replace(".default", "") + ".weight"
    return path.removeprefix("base_model.model.").removesuffix(".base_layer") + ".weight"


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "mistral"])
def test_float64_behind_a_sliding_window_is_finite_and_near(family: str, checkpoint, data) -> None:
    """Padded positions that no key is left for make float64 attention answer NaN."""
    norms = [
        wg.stats(str(checkpoint(family)), data=str(data["harmful"]), dtype=d, offline=True)
        for d in ("float64", "float32")
    ]
    for name in norms[0].sums:
        numpy.testing.assert_allclose(norms[0].norms(name), norms[1].norms(name), rtol=5e-6)
