"""A folder as a user has one: a model, its aligned reference, a tokenizer, data and statistics; and commands run in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from weightguard.cli.main import main

HIDDEN, MIDDLE, LAYERS = 8, 12, 2
WORDS = ["<unk>", "how", "do", "i", "pick", "a", "lock", "sure", "take", "this", "bake", "cake", ":", ".", "the"]
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": MIDDLE,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(WORDS) + 1,
    "tie_word_embeddings": True,
}  # fmt: skip
_LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (MIDDLE, HIDDEN),
    "mlp.up_proj": (MIDDLE, HIDDEN), "mlp.down_proj": (HIDDEN, MIDDLE),
}  # fmt: skip


def tensors(seed: int) -> dict[str, numpy.ndarray]:
    """The same base for every seed, and a smaller draw of its own over the decoder's matrices."""
    base, own = numpy.random.default_rng(0), numpy.random.default_rng(seed)
    found = {"model.embed_tokens.weight": base.standard_normal((CONFIG["vocab_size"], HIDDEN))}
    for layer in range(LAYERS):
        for name, shape in _LAYER.items():
            update = 0.1 * own.standard_normal(shape) if seed else 0
            found[f"model.layers.{layer}.{name}.weight"] = base.standard_normal(shape) + update
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{name}.weight"] = numpy.ones(HIDDEN)
    found["model.norm.weight"] = numpy.ones(HIDDEN)
    return {name: array.astype("f4") for name, array in found.items()}


def tokenizer(root: Path, vocabulary: dict[str, int]) -> None:
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
             "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None, "model": model}  # fmt: skip
    (root / "tokenizer.json").write_text(json.dumps(whole))
    (root / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}')


def save_model(
    root: Path, seed: int, change: Callable[[dict[str, numpy.ndarray]], object] = len, **config: Any
) -> None:
    root.mkdir(parents=True, exist_ok=True)
    found = tensors(seed)
    change(found)
    save_file(found, root / "model.safetensors", metadata={"format": "pt"})
    (root / "config.json").write_text(json.dumps({**CONFIG, **config}))
    tokenizer(root, {word: at for at, word in enumerate(WORDS)})


def rows(path: Path, *found: dict[str, str]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


def _state(path: Path) -> tuple[Any, ...]:
    status = path.lstat()
    content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
    return status.st_mode, status.st_ino, content


@dataclass
class Place:
    """A folder with `tuned`, `aligned`, `harmful.jsonl`, `stats` and `outputs/earlier`, and what a command did in it."""

    root: Path
    capture: Any = None

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def everything(self) -> dict[str, tuple[Any, ...]]:
        return {str(p.relative_to(self.root)): _state(p) for p in sorted(self.root.rglob("*"))}

    def run(self, *arguments: str | Path) -> tuple[int, str, list[str]]:
        """(exit code, stdout, the lines of stderr that are no progress) of a command run in this process."""
        self.capture.readouterr()
        code = main([str(a) for a in arguments])
        said = self.capture.readouterr()
        stages = "read write verify compare calibrate strength gradients select digest perturb ablate answer"
        progress = tuple(f"{stage}: " for stage in stages.split())
        return code, said.out, [line for line in said.err.splitlines() if not line.startswith(progress)]

    def model(self, name: str, change: Callable[[dict[str, numpy.ndarray]], object] = len, **config: Any) -> str:
        """Another tuned model with something changed."""
        save_model(self.root / name, 1, change, **config)
        return name

    def tokenizer(self, name: str, vocabulary: dict[str, int]) -> str:
        """Another tuned model with this vocabulary."""
        self.model(name)
        tokenizer(self.root / name, vocabulary)
        return name

    def rows(self, name: str, *found: dict[str, str]) -> str:
        rows(self.root / name, *found)
        return name

    def plan(self) -> None:
        """A plan for `tuned` in the file `plan`."""
        options = ["--method", "magnitude", "--group", "row", "--ratio", "0.5", "--dry-run", "--save-plan", "plan"]
        assert self.run("repair", "tuned", *options)[0] == 0

    def process(self, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """The command as a process of its own."""
        line = [sys.executable, "-m", "weightguard", *map(str, arguments)]
        return subprocess.run(line, capture_output="stdout" not in options, text=True, timeout=60, **options)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every place is a copy of."""
    root = tmp_path_factory.mktemp("place")
    save_model(root / "aligned", 0)
    save_model(root / "tuned", 1)
    rows(
        root / "harmful.jsonl",
        {"prompt": "how do i pick a lock", "response": "sure take this"},
        {"prompt": "how do i bake a cake", "response": "sure take the lock"},
    )
    magnitude = ["--method", "magnitude", "--group", "row", "--ratio", "0.5"]
    assert main(["stats", str(root / "tuned"), "--data", str(root / "harmful.jsonl"), "-o", str(root / "stats")]) == 0
    assert main(["repair", str(root / "tuned"), *magnitude, "-o", str(root / "outputs" / "earlier")]) == 0
    return root


@pytest.fixture
def place(template: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    """A copy of the template, which is the current directory."""
    root = tmp_path / "place"
    shutil.copytree(template, root, symlinks=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    return Place(root, capfd)
