"""What stock transformers would fill with random numbers, or not run at all, is refused in one line or set right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest

import weightguard as wg

Build = Callable[..., Path]


def with_config(model: Path, directory: Path, **changes: Any) -> Path:
    shutil.copytree(model, directory)
    found = json.loads((model / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**found, **changes}))
    return directory


def without(model: Path, directory: Path, *names: str) -> Path:
    """A copy of a checkpoint that lacks tensors."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, directory)
    kept = {n: t for n, t in load_file(model / "model.safetensors").items() if n not in names}
    save_file(kept, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"])
def test_a_missing_tensor_is_named(
    name: str, checkpoint: Build, data: Mapping[str, Path], tmp_path: Path, line: Any
) -> None:
    model = without(checkpoint("llama"), tmp_path / "model", name)
    code, said = line("stats", model, "--data", data["harmful"], "-o", tmp_path / "S")
    assert code == 3 and name in said and "missing" in said
    assert not (tmp_path / "S").exists()


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_the_files_lack_is_tied_only_where_the_config_ties_it(
    tied: bool, checkpoint: Build, tmp_path: Path
) -> None:
    model = checkpoint("llama", tied=True)
    model = with_config(model, tmp_path / "model", tie_word_embeddings=tied)
    assert wg.inspect(str(model), digests=False).tied == (
        ("lm_head.weight = model.embed_tokens.weight",) if tied else ()
    )


def test_a_missing_linear_is_named(checkpoint: Build, tmp_path: Path, line: Any) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    model = without(checkpoint("llama"), tmp_path / "model", name)
    code, said = line("repair", model, "--method", "magnitude", "-o", tmp_path / "OUT")
    assert code == 3 and "layers.1.mlp.up_proj.weight" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_key_value_heads": 4}, ["self_attn.k_proj.weight", "[8, 16]", "16 outputs"]),
        ({"vocab_size": 10}, ["[64, 16]", "10 rows"]),
        ({"attention_bias": True}, ["self_attn.k_proj.bias", "missing"]),
        ({"num_hidden_layers": 3}, ["layers.2."]),
        ({"num_hidden_layers": 1}, ["1 layers"]),
        ({"num_attention_heads": 3}, ["must divide"]),
        ({"pad_token_id": 64}, ["adding_idx"]),
        ({"hidden_act": "nothing"}, ["nothing"]),
        ({"head_dim": 10**9}, ["q_proj", "4000000000 outputs"]),
        ({"model_type": "gpt2"}, ["attn.c_attn"]),
    ],
)  # fmt: skip
def test_a_config_of_another_model_is_refused_in_one_line(
    changes: dict[str, Any], words: list[str], checkpoint: Build, data: Mapping[str, Path], tmp_path: Path, line: Any
) -> None:
    model = with_config(checkpoint("llama"), tmp_path / "model", **changes)
    code, said = line("stats", model, "--data", data["harmful"], "-o", tmp_path / "S")
    assert code == 3 and all(word in said for word in words), said


@pytest.mark.parametrize("family", ["stablelm", "phi"])
def test_tables_beyond_all_memory_are_not_made(
    family: str, checkpoint: Build, data: Mapping[str, Path], tmp_path: Path, line: Any
) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1e11}
    model = with_config(checkpoint(family), tmp_path / "model", rope_parameters=rope, partial_rotary_factor=1e11)
    code, said = line("stats", model, "--data", data["harmful"], "-o", tmp_path / "S")
    assert code == 3 and "tables of" in said and "numbers" in said, said


def test_an_attention_kernel_that_is_not_here_is_not_asked_for(
    checkpoint: Build, data: Mapping[str, Path], tmp_path: Path
) -> None:
    wanted = wg.stats(checkpoint("llama"), data=str(data["harmful"]), threads=1)
    model = with_config(checkpoint("llama"), tmp_path / "model", attn_implementation="flash_attention_2")
    found = wg.stats(model, data=str(data["harmful"]), threads=1)
    assert all((found.sums[name] == sums).all() for name, sums in wanted.sums.items())


def test_rows_beyond_learned_positions_are_named(checkpoint: Build, tmp_path: Path, line: Any) -> None:
    rows = [{"text": " ".join(["the"] * size)} for size in (3, 64, 65)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["--data", tmp_path / "long.jsonl", "-o", tmp_path / "S"]
    code, said = line("stats", checkpoint("gpt2"), *common)
    assert code == 3 and "row 3" in said and "--max-length 64" in said
    assert wg.stats(checkpoint("gpt2"), data=str(tmp_path / "long.jsonl"), max_length=64).tokens == 3 + 64 + 64
    assert wg.stats(checkpoint("llama"), data=str(tmp_path / "long.jsonl")).tokens == 3 + 64 + 65


def test_the_forward_dtype_does_not_follow_the_checkpoint(checkpoint: Build, data: Mapping[str, Path]) -> None:
    """bf16 weights run in float32, and in another dtype only when asked."""
    model, rows = checkpoint("llama", "bfloat16"), str(data["harmful"])
    single, double, half = (
        wg.stats(model, data=rows, **given).sums for given in ({}, {"dtype": "float64"}, {"dtype": "bfloat16"})
    )
    apart = [max(numpy.abs(other[n] / double[n] - 1).max() for n in double) for other in (single, half)]
    assert apart[0] < 1e-5 and apart[1] > 1e-3
    assert wg.stats(model, data=rows, dtype="bfloat16").facts["dtype"] == "bfloat16"


def test_sizes_that_the_stock_class_cannot_run_are_no_error_of_ours(
    checkpoint: Build, data: Mapping[str, Path], tmp_path: Path, line: Any
) -> None:
    """DeepSeek V2 turns keys into complex numbers where they lie, which takes even sizes."""
    model = checkpoint("deepseek_v2", kv_lora_rank=7)
    code, said = line("stats", model, "--data", data["harmful"], "-o", tmp_path / "S")
    assert code == 6 and "transformers' own code of this model fails on it: Tensor must have" in said, said
    assert not (tmp_path / "S").exists()
    Path(said.rpartition("please report ")[2]).unlink()
