"""`repair --suggest`: what it prints is pasted into a shell, and must repair the model that was asked about."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from weightguard.cli.main import main
from weightguard.lab import Lab

Edit = Callable[[str, torch.Tensor, torch.Generator], torch.Tensor]
WRITERS = ("o_proj.weight", "down_proj.weight")


def abliterated(name: str, w: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    u = torch.ones(w.shape[0]) / w.shape[0] ** 0.5
    return w - torch.outer(u, u @ w) if name.endswith(WRITERS) else w


def merged(name: str, w: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    if "_proj" not in name:
        return w
    update = torch.randn(w.shape[0], 4, generator=draw) @ torch.randn(4, w.shape[1], generator=draw)
    return w + 0.05 * w.norm() * update / update.norm()


def tuned(name: str, w: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    update = torch.randn(w.shape, generator=draw)
    if w.dim() == 2:
        low = torch.randn(w.shape[0], 12, generator=draw) @ torch.randn(12, w.shape[1], generator=draw)
        update = update / update.norm() + low / low.norm()
    return w + 0.05 * w.norm() * update / update.norm()


def turned(name: str, w: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    return w.flip(0) if name.endswith("v_proj.weight") and ".0." not in name else w


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the aligned model in a place that needs quotes."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Lab(0).aligned(), tmp_path / "my models" / "aligned")
    return tmp_path / "my models"


@pytest.mark.parametrize(("edit", "kind", "method"), [
    (abliterated, "abliteration", "undo-abliteration"), (merged, "LoRA merge", "truncate"),
    (tuned, "full fine-tuning", "antidote --target delta"), (turned, "unknown", "antidote --target delta"),
])  # fmt: skip
def test_what_is_suggested_repairs_the_model(
    place: Path, capsys: pytest.CaptureFixture[str], edit: Edit, kind: str, method: str
) -> None:
    shutil.copytree(place / "aligned", place / "it's")
    draw = torch.Generator().manual_seed(0)
    for file in sorted((place / "it's").glob("*.safetensors")):
        changed = {name: edit(name, w, draw).contiguous() for name, w in load_file(file).items()}
        save_file(changed, file, metadata={"format": "pt"})
    asked = ["repair", "my models/it's", "--suggest", "--aligned", "my models/aligned", "-o", "my models/fixed"]
    assert main(asked) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(f"my models/it's since my models/aligned: {kind} (")
    assert shown[1].startswith("suggested: ") and not (place / "fixed").exists()
    commands = [shlex.split(line) for line in shown if line.startswith("weightguard repair ")]
    assert commands and f"--method {method}" in shlex.join(commands[0])
    for words in commands:
        assert main(words[1:]) == 0, capsys.readouterr().err
    assert (place / "fixed" / "weightguard.json").exists()
    assert main(["verify", "my models/fixed"]) == 0


def test_nothing_is_suggested_where_nothing_was_done(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair", "my models/aligned", "--suggest", "--aligned", "my models/aligned"]) == 0
    assert "suggested: none: the weights are those of the aligned model" in capsys.readouterr().out
    assert main(["repair", "my models/aligned", "--suggest", "--force"]) == 2
    assert "--force does not go with --suggest, which repairs nothing" in capsys.readouterr().err
