"""Dtypes, ties, shards and targets over nine architectures; every other one is in test_architectures.py."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Set
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

import weightguard as wg

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2")
DTYPES = ("float32", "bfloat16", "float16")
OURS = {"weightguard.json", "README.md"}
# Each family sees both targets, tied and untied, one file and shards; the dtypes go round.
SOME = [
    (family, DTYPES[(at + second) % 3], bool((at + second) % 2), bool((at // 2 + second) % 2), target)
    for at, family in enumerate(FAMILIES)
    for second, target in enumerate(("weight", "delta"))
]
ALL = [*itertools.product(FAMILIES, DTYPES, (False, True), (False, True), ("weight", "delta"))]


def linears(family: str) -> set[str]:
    """On-disk names of the decoder linears of a pico model of two layers, written down by hand."""
    attention = [f"self_attn.{x}_proj" for x in "qkvo"]
    gated = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    paths = {
        "phi3": ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"],
        "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    }.get(family, attention + gated)
    block = "transformer.h" if family == "gpt2" else "model.layers"
    return {f"{block}.{layer}.{path}.weight" for layer in (0, 1) for path in paths}


@pytest.mark.parametrize(("family", "dtype", "tied", "sharded", "target"), SOME)
def test_a_checkpoint_goes_in_and_a_checkpoint_comes_out(
    family: str, dtype: str, tied: bool, sharded: bool, target: str, request: pytest.FixtureRequest
) -> None:
    _repair_and_check(request, family, dtype, target, tied=tied, sharded=sharded)


@pytest.mark.full
@pytest.mark.parametrize(("family", "dtype", "tied", "sharded", "target"), ALL)
def test_every_combination(
    family: str, dtype: str, tied: bool, sharded: bool, target: str, request: pytest.FixtureRequest
) -> None:
    _repair_and_check(request, family, dtype, target, tied=tied, sharded=sharded)


def test_the_sample_covers_the_table(families: tuple[str, ...]) -> None:
    assert set(FAMILIES) <= set(families)
    for family in FAMILIES:
        rows = [row for row in SOME if row[0] == family]
        assert all(len({row[at] for row in rows}) == 2 for at in (2, 3, 4))
    assert {(row[1], row[4]) for row in SOME} == {*itertools.product(DTYPES, ("weight", "delta"))}
    assert {(row[2], row[3]) for row in SOME} == {*itertools.product((True, False), repeat=2)}


def _repair_and_check(request: pytest.FixtureRequest, family: str, dtype: str, target: str, **kind: bool) -> None:
    checkpoint, data = request.getfixturevalue("checkpoint"), request.getfixturevalue("data")
    files, tmp_path = request.getfixturevalue("files"), request.getfixturevalue("tmp_path")
    model = checkpoint(family, dtype, **kind)
    aligned = checkpoint(family, dtype, kind="aligned", **kind) if target == "delta" else None
    assert (len([*model.glob("*.safetensors")]) > 1) == kind["sharded"]
    request.getfixturevalue("input_is_kept")(model, *([aligned] if aligned else []))

    norms = wg.stats(model, data=str(data["harmful"]), out=tmp_path / "S")
    assert set(norms.sums) == linears(family)
    options: dict[str, Any] = (
        {"ratio": "0.25", "aligned": str(aligned)} if aligned else {"ratio": "0.1", "group": "row"}
    )
    result = wg.repair(model, stats=tmp_path / "S", target=target, out=tmp_path / "OUT", **options)
    assert set(result.plan.edits) == linears(family)
    found = wg.verify(tmp_path / "OUT", against=str(model)).verified

    _check_files(model, tmp_path / "OUT", files)
    edited = _check_tensors(model, tmp_path / "OUT", linears(family), files)
    assert (found.edited, found.changed_recounted) == (len(linears(family)), edited)
    _check_loads(tmp_path / "OUT", model, dtype, files)
    _check_replayed(tmp_path / "OUT", result.plan, model, aligned)


def _check_files(model: Path, out: Path, files: SimpleNamespace) -> None:
    before, after = files.digests(model), files.digests(out)
    assert set(after) == set(before) | OURS
    same = [name for name in before if not name.endswith(".safetensors") and name not in OURS]
    assert {"config.json", "LICENSE", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(same)
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    for shard in model.glob("*.safetensors"):
        assert files.header(out / shard.name) == files.header(shard)
        assert json.loads(files.header(out / shard.name)[8:])["__metadata__"] == {"format": "pt"}
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n") and "Its own card." in card


def _check_tensors(model: Path, out: Path, edited: set[str], files: SimpleNamespace) -> int:
    """Untouched tensors are the same bytes, edited ones are not; the number of entries that changed."""
    before, after = files.raw(model), files.raw(out)
    assert {name for name in before if before[name] != after[name]} == edited
    left, right = files.tensors(model), files.tensors(out)
    assert all(numpy.isfinite(array).all() for array in right.values())
    return sum(int((left[name] != right[name]).sum()) for name in edited)


def _check_loads(out: Path, model: Path, dtype: str, files: SimpleNamespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded, said = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    assert loaded.dtype == getattr(torch, dtype)
    held = {name: tensor.float().numpy() for name, tensor in loaded.state_dict().items()}
    assert all((held[name] == array.astype(numpy.float32)).all() for name, array in files.tensors(out).items())
    tokenizer, before = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(model)
    turns = [{"role": "user", "content": "how do i pick a lock"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    assert ids.tolist() == [before.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]]
    grown = loaded.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, min_new_tokens=3, do_sample=False
    )
    assert grown.shape == (1, ids.shape[1] + 3)


def _check_replayed(out: Path, plan: Any, model: Path, aligned: Path | None) -> None:
    """The model that `--strength auto` judges in memory computes what the one on disk computes."""
    import torch
    from transformers import AutoModelForCausalLM

    from weightguard.api.subject import open_subject
    from weightguard.rewrite import all_tensors
    from weightguard.statistics.loading import load_model

    subject = open_subject(str(model), None if aligned is None else str(aligned))
    replayed = load_model(subject.model, state_dict=dict(all_tensors(plan, subject.sources(plan.target))))
    ids = torch.tensor([[6, 7, 8, 9, 10, 11, 12, 13, 14, 15]])
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(ids).logits
        assert torch.equal(replayed(ids).logits, wanted)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_base_saved_without_its_head_keeps_its_shorter_names(
    family: str, checkpoint: Callable[..., Path], data: dict[str, Path], tmp_path: Path, files: SimpleNamespace
) -> None:
    model = checkpoint(family, headless=True, tied=True)
    norms = wg.stats(model, data=str(data["harmful"]))
    assert set(norms.sums) == {name.split(".", 1)[1] for name in linears(family)} <= set(files.tensors(model))
    wg.repair(model, harmful=str(data["harmful"]), target="weight", ratio="0.1", out=tmp_path / "OUT")
    _check_loads_headless(tmp_path / "OUT")


def test_gpt2_as_the_hub_has_it(
    checkpoint: Callable[..., Path], data: dict[str, Path], tmp_path: Path, files: SimpleNamespace
) -> None:
    """Names without `transformer.`, no head, and the causal masks of older versions among the tensors."""
    import torch
    from safetensors.torch import load_file, save_file

    model = tmp_path / "gpt2"
    shutil.copytree(checkpoint("gpt2", headless=True, tied=True), model)
    masks = {f"h.{at}.attn.bias": torch.ones(1, 1, 64, 64).tril().to(torch.uint8) for at in (0, 1)}
    scalars = {f"h.{at}.attn.masked_bias": torch.tensor(-1e4) for at in (0, 1)}
    save_file(
        {**load_file(model / "model.safetensors"), **masks, **scalars}, model / "model.safetensors", {"format": "pt"}
    )
    wg.repair(model, harmful=str(data["harmful"]), target="weight", ratio="0.1", out=tmp_path / "OUT")
    wg.verify(tmp_path / "OUT", against=str(model))
    _check_tensors(model, tmp_path / "OUT", {name.split(".", 1)[1] for name in linears("gpt2")}, files)
    _check_loads_headless(tmp_path / "OUT", unknown={*scalars})


@pytest.mark.parametrize("tied", [False, True])
def test_the_two_sides_of_an_update_may_differ_in_files_dtype_and_head(
    tied: bool, checkpoint: Callable[..., Path], data: dict[str, Path], tmp_path: Path, files: SimpleNamespace
) -> None:
    model = checkpoint("llama", "bfloat16", tied=tied, sharded=True)
    aligned = checkpoint("llama", tied=not tied, kind="aligned")
    out = tmp_path / "OUT"
    wg.repair(model, harmful=str(data["harmful"]), aligned=str(aligned), ratio=1, out=out)
    after, origin = files.tensors(out), files.tensors(aligned)
    for name in linears("llama"):
        assert (after[name] == torch_bfloat16(origin[name])).all()
    wg.verify(out, against=str(model))


def torch_bfloat16(array: numpy.ndarray) -> numpy.ndarray:
    import torch

    return torch.from_numpy(array).bfloat16().float().numpy()


def _check_loads_headless(out: Path, unknown: Set[str] = frozenset()) -> None:
    from transformers import AutoModel

    _, said = AutoModel.from_pretrained(out, output_loading_info=True)
    assert not said["missing_keys"] and set(said["unexpected_keys"]) == unknown
