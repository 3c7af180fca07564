"""Two models whose tensors have other prefixes, or of which one has tables that nothing needs, are still a pair."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from weightguard.checkpoint import Resolved, check_pairing, named_like, open_checkpoint
from weightguard.errors import MismatchError

Build = Callable[..., Path]
Rename = Callable[[str], str]

# What the aligned model's names become: as saved without the head class, and as other versions save what sees.
RENAMES: dict[str, Rename] = {
    "llama": lambda name: name.removeprefix("model."),
    "gpt2": lambda name: name.removeprefix("transformer."),
    "bloom": lambda name: name.removeprefix("transformer."),
    "opt": lambda name: name.removeprefix("model."),
    "gpt_neox": lambda name: name.removeprefix("gpt_neox."),
    "gpt_oss": lambda name: name.removeprefix("model."),
    "llava": lambda name: name.replace("language_model.model.", "model.language_model."),
}


def rewritten(model: Path, directory: Path, rename: Rename, **more: Any) -> Path:
    """A copy of a checkpoint under other names, with more tensors."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, directory)
    held = {rename(name): tensor for name, tensor in load_file(model / "model.safetensors").items()}
    save_file({**held, **more}, directory / "model.safetensors", {"format": "pt"})
    return directory


def tuned(model: Path, directory: Path) -> Path:
    """The model after a change of every matrix."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, directory)
    draw = torch.Generator().manual_seed(1)
    held = load_file(model / "model.safetensors")
    moved = {
        n: t + 0.01 * torch.randn(t.shape, generator=draw).to(t.dtype) if t.dim() > 1 else t for n, t in held.items()
    }
    save_file(moved, directory / "model.safetensors", {"format": "pt"})
    return directory


def opened(directory: Path) -> Any:
    return open_checkpoint(Resolved(directory, None, None, directory.name, None))


def repaired(line: Any, model: Path, aligned: Path, out: Path) -> bytes:
    code = line("repair", model, "--aligned", aligned, "--method", "magnitude", "--ratio", "0.3", "-o", out)[0]
    return (out / "model.safetensors").read_bytes() if code == 0 else b""


@pytest.fixture
def line(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    from weightguard.cli.main import main

    def run(*arguments: Any) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("family", RENAMES)
def test_another_prefix_makes_no_other_model(family: str, checkpoint: Build, tmp_path: Path, line: Any) -> None:
    aligned = checkpoint(family)
    model, other = tuned(aligned, tmp_path / "model"), rewritten(aligned, tmp_path / "other", RENAMES[family])
    assert opened(other).tensors.keys() != opened(aligned).tensors.keys()
    found = repaired(line, model, other, tmp_path / "out")
    assert found and found == repaired(line, model, aligned, tmp_path / "same")
    assert line("verify", tmp_path / "out", "--against", model)[0] == 0
    figures = [json.loads(line("inspect", model, "--base", base, "--format", "json")[1]) for base in (other, aligned)]
    assert figures[0]["tensors"] == figures[1]["tensors"] and figures[0]["verdict"] == figures[1]["verdict"]
    back = json.loads(line("inspect", other, "--base", model, "--format", "json")[1])
    assert len(back["tensors"]) == len(figures[0]["tensors"]) and back["relation"] == figures[0]["relation"]


@pytest.mark.parametrize("family", ["gpt2", "llava"])
def test_the_model_before_alignment_too(family: str, checkpoint: Build, tmp_path: Path, line: Any) -> None:
    aligned = checkpoint(family)
    model, before = tuned(aligned, tmp_path / "model"), tuned(aligned, tmp_path / "before")
    other = rewritten(before, tmp_path / "other", RENAMES[family])
    outs = []
    for side in (before, other):
        out = tmp_path / f"out-{side.name}"
        given = ["--method", "safe-lora", "--threshold", "0.99", "--aligned", aligned, "--unaligned", side]
        code, _, said = line("repair", model, *given, "-o", out)
        assert code == 0, said
        outs.append((out / "model.safetensors").read_bytes())
    assert outs[0] == outs[1]


@pytest.mark.parametrize("method", ["refit", "gradient-reset"])
def test_an_aligned_model_that_is_run(
    method: str, checkpoint: Build, data: Mapping[str, Path], tmp_path: Path, line: Any
) -> None:
    aligned = checkpoint("llama", tied=True)
    model, other = tuned(aligned, tmp_path / "model"), rewritten(aligned, tmp_path / "other", RENAMES["llama"])
    outs = []
    for side in (aligned, other):
        out = tmp_path / f"out{len(outs)}"
        given = ["--method", method, "--aligned", side, "--safety", data["harmful"], "--benign", data["benign"]]
        code, _, said = line("repair", model, *given, "-o", out)
        assert code == 0, said
        outs.append((out / "model.safetensors").read_bytes())
    assert outs[0] == outs[1]


def test_tables_and_guessing_layers_that_one_side_has(checkpoint: Build, tmp_path: Path, line: Any) -> None:
    import torch

    aligned = checkpoint("llama")
    model = tuned(aligned, tmp_path / "model")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    old = rewritten(aligned, tmp_path / "old", str, **{name: torch.ones(4)})
    found = repaired(line, model, old, tmp_path / "out")
    assert found and found == repaired(line, model, aligned, tmp_path / "same")
    said = json.loads(line("inspect", model, "--base", old, "--format", "json")[1])
    assert said["relation"] == "same layout" and said["not_compared"]["only_base"] == [name]
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
    guess = f"model.layers.{config['num_hidden_layers']}.eh_proj.weight"
    rewritten(old, tmp_path / "older", str, **{guess: torch.ones(4, 4)})
    check_pairing(opened(model), opened(tmp_path / "older"), list(opened(model).tensors))
    rewritten(aligned, tmp_path / "deeper", str, **{guess: torch.ones(4, 4)})
    with pytest.raises(MismatchError, match=f"^tensor '{guess}' of the aligned model deeper is not in model$"):
        check_pairing(opened(model), opened(tmp_path / "deeper"), list(opened(model).tensors))


def test_names_that_would_not_be_told_apart_stay(checkpoint: Build, tmp_path: Path) -> None:
    import torch

    aligned = checkpoint("llama")
    two: Mapping[str, Any] = {"model.language_model.norm.weight": torch.ones(4)}
    other = opened(rewritten(aligned, tmp_path / "other", lambda name: name.removeprefix("model."), **two))
    found = named_like(other, opened(aligned))
    assert "norm.weight" in found.tensors and "model.layers.0.self_attn.q_proj.weight" in found.tensors
    assert named_like(other, other) is other
