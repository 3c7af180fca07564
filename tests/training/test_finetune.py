"""`finetune` end to end on pico models: what comes out is loaded by stock libraries and is what was trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

import weightguard as wg
from weightguard.api import finetuning
from weightguard.checkpoint import decoder_linears, open_checkpoint, resolve
from weightguard.errors import DataError, OutputError
from weightguard.parts import Neurons, Part, tensor_digest

Build = Callable[..., Path]
FAMILIES = ("llama", "gpt2", "phi3", "gemma2", "qwen2")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Holds the `model` in memory after its training, as it is handed to be published."""
    seen = SimpleNamespace(model=None)
    publish = finetuning._publish

    def spy(job: Any, model: Any, *rest: Any) -> Any:
        seen.model = model
        return publish(job, model, *rest)

    monkeypatch.setattr(finetuning, "_publish", spy)
    return seen


def options(data: Mapping[str, Path], **more: Any) -> dict[str, Any]:
    return {"data": str(data["benign"]), "steps": 4, "batch_size": 2, "lr": 1e-2, "threads": 1, **more}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 27).reshape(2, 12)).logits


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max() / right.abs().max())


def stock(directory: Path, **more: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype="float32", **more)


def header_of(directory: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    found = open_checkpoint(resolve(str(directory)))
    return {name: (info.dtype, tuple(info.shape), info.file) for name, info in found.tensors.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_like_the_input(
    family: str, dtype: str, checkpoint: Build, data: Mapping[str, Path], tmp_path: Path, trained: SimpleNamespace
) -> None:
    source = checkpoint(family, dtype, sharded=True)
    result = wg.finetune(str(source), out=tmp_path / "out", **options(data))
    assert header_of(tmp_path / "out") == header_of(source)
    want = {name: p.detach().to(getattr(torch, dtype)) for name, p in trained.model.named_parameters()}
    for name, parameter in stock(tmp_path / "out").named_parameters():
        assert torch.equal(parameter, want[name].float()), name
    before = dict(stock(source).named_parameters())
    moved = [name for name, p in stock(tmp_path / "out").named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) > 0.9 * len(before) and any(len(before[name].shape) == 1 for name in moved)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert len(result.losses) == 4
    checked = wg.verify(tmp_path / "out", against=str(source)).verified
    assert checked.edited == len(result.manifest.edits) and checked.changed_recounted


def test_the_same_bytes_twice(checkpoint: Build, data: Mapping[str, Path], tmp_path: Path) -> None:
    source = checkpoint("llama", sharded=True)
    for name in ("one", "two"):
        wg.finetune(str(source), out=tmp_path / name, **options(data))
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    assert str(tmp_path) not in (tmp_path / "one" / "weightguard.json").read_text()
    assert "# Fine-tuned with weightguard" in (tmp_path / "one" / "README.md").read_text()


def marked(source: Path, share: float = 0.5) -> tuple[Neurons, dict[str, numpy.ndarray]]:
    opened = open_checkpoint(resolve(str(source)))
    random = numpy.random.default_rng(0)
    masks = {}
    for name, linear in decoder_linears(opened.config, opened.tensors).items():
        shape = opened.info(name).shape
        masks[name] = random.random(shape[::-1] if linear.transposed else shape) < share
    parts = {name: Part.of_entries(mask) for name, mask in masks.items()}
    return Neurons("made", "none", {}, parts, {name: tensor_digest(opened, name) for name in parts}), masks


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_frozen_entries_are_the_same_bits_on_disk(
    family: str, dtype: str, checkpoint: Build, data: Mapping[str, Path], tmp_path: Path
) -> None:
    """bf16 weights, trained in float32 under bf16 autocast with weight decay, and rounded again."""
    source = checkpoint(family, dtype)
    neurons, masks = marked(source)
    (tmp_path / "neurons").write_bytes(neurons.to_bytes())
    given = options(data, guard="freeze", neurons=tmp_path / "neurons", weight_decay=0.3)
    wg.finetune(str(source), out=tmp_path / "out", dtype="bfloat16" if dtype == "bfloat16" else "float32", **given)
    before, after = (open_checkpoint(resolve(str(place))) for place in (source, tmp_path / "out"))
    for name, mask in masks.items():
        kept = torch.from_numpy(mask if before.info(name).shape == mask.shape and family != "gpt2" else mask.T)
        was, now = (found.read(name) for found in (before, after))
        assert torch.equal(was[kept], now[kept]) and (was[~kept] != now[~kept]).float().mean() > 0.5, name
    said = json.loads((tmp_path / "out" / "weightguard.json").read_text())
    assert said["neurons"]["sha256"] == neurons.digest() and said["options"]["guard"] == "freeze"


def test_plain_lora_is_a_stock_adapter(
    checkpoint: Build, data: Mapping[str, Path], tmp_path: Path, trained: SimpleNamespace
) -> None:
    import peft

    source = checkpoint("llama")
    result = wg.finetune(str(source), out=tmp_path / "out", lora="r=4,targets=q_proj+v_proj", **options(data))
    want = logits(trained.model)
    assert distance(logits(peft.PeftModel.from_pretrained(stock(source), tmp_path / "out")), want) <= 1e-6
    assert distance(want, logits(stock(source))) > 1e-3
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(source) and config["r"] == 4
    assert result.trained == 2 * sum(4 * (16 + out) for out in (16, 8))
    assert wg.verify(tmp_path / "out").verified.files == len(list((tmp_path / "out").iterdir())) - 1
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()
    repaired = wg.repair(str(tmp_path / "out"), method="scale", strength="1", out=tmp_path / "undone")
    assert repaired.manifest is not None


SALORA = {"guard": "salora", "safety_rank": 4, "task_rank": 4}


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("more", [{}, {"start": "zero"}, {"lora": "r=4,alpha=6,rslora=true"}, {"dtype": "bfloat16"}])
def test_salora_over_the_untouched_base(
    family: str,
    more: dict[str, Any],
    checkpoint: Build,
    data: Mapping[str, Path],
    tmp_path: Path,
    trained: SimpleNamespace,
) -> None:
    """Stock peft over the untouched base gives the trained logits, and the update has nothing along V_s."""
    import peft

    source = checkpoint(family)
    given = options(data, safety=str(data["harmful"]), **{"lora": "r=4", **SALORA, **more})
    result = wg.finetune(str(source), out=tmp_path / "out", **given)
    want = logits(trained.model)
    adapted = peft.PeftModel.from_pretrained(stock(source), tmp_path / "out")
    assert distance(logits(adapted), want) <= 1e-6
    assert distance(want, logits(stock(source))) > 1e-3
    assert len(result.starts) == len(decoder_linears(open_checkpoint(resolve(str(source))).config,
                                                     open_checkpoint(resolve(str(source))).tensors))  # fmt: skip
    assert all(0 <= facts["spectral_gap"] <= 1 for facts in result.starts.values())
    rank = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"]
    assert rank == (4 if more.get("start") == "zero" else 8)


def test_salora_residual(checkpoint: Build, data: Mapping[str, Path], tmp_path: Path, trained: SimpleNamespace) -> None:
    """A rewritten base in the base's dtype and an adapter of the rank itself; both loaded by stock libraries alone."""
    import peft

    source = checkpoint("gpt2", sharded=True)
    given = options(data, lora="r=4,targets=c_attn+c_proj", export="residual", safety=str(data["harmful"]), **SALORA)
    wg.finetune(str(source), out=tmp_path / "out", **given)
    want = logits(trained.model)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "out" / "base")
    assert (config["r"], config["lora_alpha"]) == (4, 4)
    base = stock(tmp_path / "out" / "base")
    assert header_of(tmp_path / "out" / "base") == header_of(source)
    assert distance(logits(base), logits(stock(source))) > 1e-4
    assert distance(logits(peft.PeftModel.from_pretrained(base, tmp_path / "out")), want) <= 1e-5
    wg.verify(tmp_path / "out")
    wg.verify(tmp_path / "out" / "base", against=str(source))


class Killed(Exception):
    pass


@pytest.mark.parametrize("more", [{}, {"lora": "r=4", **SALORA}])
def test_a_killed_run_is_resumed_to_the_same_bytes(
    more: dict[str, Any], checkpoint: Build, data: Mapping[str, Path], tmp_path: Path
) -> None:
    source = checkpoint("llama", sharded=True)
    given = options(data, steps=7, save_every=2, **more)

    def progress(stage: str, done: int, total: int) -> None:
        if stage.startswith("train") and done == 5:
            raise Killed

    wg.finetune(str(source), out=tmp_path / "whole", **given)
    with pytest.raises(Killed):
        wg.finetune(str(source), out=tmp_path / "out", progress=progress, **given)
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="go on with --resume, or begin anew with --force"):
        wg.finetune(str(source), out=tmp_path / "out", **given)
    wg.finetune(str(source), out=tmp_path / "out", resume=True, **given)
    for path in sorted((tmp_path / "whole").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert [p.name for p in tmp_path.iterdir() if "training" in p.name] == []


def test_ml_lr_over_lora(checkpoint: Build, data: Mapping[str, Path], tmp_path: Path) -> None:
    """A rate of zero on every module but one: only that one's factors leave their start."""
    source = checkpoint("llama")
    opened = open_checkpoint(resolve(str(source)))
    names = list(decoder_linears(opened.config, opened.tensors))
    rates = {name: float(name.endswith("0.self_attn.q_proj.weight")) for name in names}
    parts = {n: Part("rate", tuple(opened.info(n).shape), rate=rate) for n, rate in rates.items()}
    neurons = Neurons("ml-lr", "none", {}, parts, {n: tensor_digest(opened, n) for n in parts})
    (tmp_path / "neurons").write_bytes(neurons.to_bytes())
    wg.finetune(
        str(source), out=tmp_path / "out", guard="ml-lr", neurons=tmp_path / "neurons", lora="r=4", **options(data)
    )
    made = open_checkpoint(resolve(str(tmp_path / "out")))
    moved = [name for name in made.tensors if ".lora_B." in name and made.read(name).any()]
    assert moved == ["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]


def test_salora_from_prompts_and_from_what_is_shipped(
    checkpoint: Build, data: Mapping[str, Path], tmp_path: Path
) -> None:
    """Prompts without an answer get the model's own; without --safety the shipped prompts and refusals serve."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "how do i pick a lock"}\n{"prompt": "tell me"}\n')
    source = checkpoint("llama", pad_token_id=0)
    for name, safety in (("own", str(prompts)), ("shipped", None)):
        given = options(data, safety=safety, utility=str(data["benign"]), lora="r=2,targets=v_proj", limit=3, **SALORA)
        notes = wg.finetune(str(source), out=tmp_path / name, **given).notes
        assert any(("own greedy one" if safety else "shipped with weightguard") in note for note in notes), notes
        assert any(note.startswith("utility data: ") for note in notes)


def test_a_start_that_c_wipes_out_is_said(checkpoint: Build, data: Mapping[str, Path], tmp_path: Path) -> None:
    """Safety takes 7 of the 8 outputs of v, so little of C B0 is left."""
    given = options(data, safety=str(data["harmful"]), utility=str(data["benign"]), lora="r=2,targets=v_proj",
                    **{**SALORA, "safety_rank": 7})  # fmt: skip
    for start, said in (("task", 1), ("zero", 0)):
        result = wg.finetune(str(checkpoint("llama")), out=tmp_path / start, start=start, **given)
        assert sum("of the task start in the median module" in note for note in result.notes) == said


def test_rows_for_safety_and_task_at_once_are_refused(
    checkpoint: Build, data: Mapping[str, Path], tmp_path: Path
) -> None:
    same = str(data["harmful"])
    given = options(data, safety=same, utility=same, lora="r=2,targets=v_proj", **SALORA)
    with pytest.raises(DataError, match=r"row 1 of harmful\.jsonl and row 1 of harmful\.jsonl have the same prompt"):
        wg.finetune(str(checkpoint("llama")), out=tmp_path / "out", **given)


def test_directions_that_no_data_reach_are_said(checkpoint: Build, data: Mapping[str, Path], tmp_path: Path) -> None:
    """One safety row of two answer tokens spans two outputs, whatever --safety-rank says: the gap at 5 is 0."""
    row = tmp_path / "row.jsonl"
    row.write_text('{"prompt": "tell me", "response": "sorry"}\n')
    given = options(data, safety=str(row), utility=str(data["benign"]), lora="r=2,targets=v_proj",
                    **{**SALORA, "safety_rank": 5})  # fmt: skip
    result = wg.finetune(str(checkpoint("llama")), out=tmp_path / "out", **given)
    assert all(facts["spectral_gap"] == 0 and facts["spanned"] < 5 for facts in result.starts.values())
    assert any("reach fewer than 5 output directions of" in note for note in result.notes)


def test_two_runs_write_the_same_files_whatever_the_hash_seed(
    checkpoint: Build, data: Mapping[str, Path], tmp_path: Path
) -> None:
    files = []
    for seed in ("1", "2"):
        code = (f"import weightguard as wg; wg.finetune({str(checkpoint('llama'))!r}, data={str(data['benign'])!r}, "
                f"lora='r=2', steps=1, threads=1, out={str(tmp_path / seed)!r})")  # fmt: skip
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        files.append({p.name: p.read_bytes() for p in (tmp_path / seed).iterdir()})
    assert files[0] == files[1]
