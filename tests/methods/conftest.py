"""A pico checkpoint made of integers: the same bytes on every machine, no training, no random generator."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy
import pytest

from weightguard.checkpoint import open_checkpoint, resolve
from weightguard.checkpoint.writer import safetensors_bytes
from weightguard.parts import Neurons, Part, tensor_digest

HIDDEN, MIDDLE, LAYERS, VOCABULARY = 12, 20, 2, 17
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (MIDDLE, HIDDEN),
    "mlp.up_proj": (MIDDLE, HIDDEN),
    "mlp.down_proj": (HIDDEN, MIDDLE),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": MIDDLE,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
}  # fmt: skip


def integers(name: str, shape: tuple[int, ...], scale: int) -> numpy.ndarray:
    """float32 multiples of 1/32 in [-scale, scale]/32, drawn by sha256 of the name: exact in every dtype, with ties."""
    count = int(numpy.prod(shape))
    blocks = b"".join(hashlib.sha256(f"{name}:{i}".encode()).digest() for i in range(count // 32 + 1))
    raw = numpy.frombuffer(blocks, numpy.uint8)[:count].astype(numpy.int64)
    return ((raw % (2 * scale + 1) - scale) / 32).astype(numpy.float32).reshape(shape)


def linears() -> dict[str, tuple[int, int]]:
    return {f"model.layers.{i}.{path}.weight": shape for i in range(LAYERS) for path, shape in SHAPES.items()}


def weights(salt: str) -> dict[str, numpy.ndarray]:
    tensors = {"model.embed_tokens.weight": integers("embed", (VOCABULARY, HIDDEN), 31)}
    for name, shape in linears().items():
        tensors[name] = integers(name, shape, 31)
        if salt:
            tensors[name] = tensors[name] + integers(salt + name, shape, 4)
    norms = [
        f"model.layers.{i}.{n}.weight" for i in range(LAYERS) for n in ("input_layernorm", "post_attention_layernorm")
    ]
    return tensors | {name: numpy.ones(HIDDEN, numpy.float32) for name in [*norms, "model.norm.weight"]}


def save(directory: Path, salt: str) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "model.safetensors").write_bytes(safetensors_bytes(weights(salt), {"format": "pt"}))
    return directory


def statistics_bytes() -> bytes:
    """Sums of squares that are small integers: their square roots are rounded once, the same everywhere."""
    sums = {
        name: numpy.abs(integers("s" + name, shape[1:], 31)).astype(numpy.float64) * 32
        for name, shape in linears().items()
    }
    said = {
        "format": 1,
        "counted_tokens": 64,
        "tokens": "all",
        "data": {"source": "made.jsonl", "sha256": "", "rows": 4},
    }
    return safetensors_bytes(sums, {"format": "np", "weightguard_statistics": json.dumps(said)})


def neurons_bytes(model: Path, method: str) -> bytes:
    """Neurons of the forms the method takes, found in `model` by nobody: entries, whole rows and columns, or ranks."""
    checkpoint = open_checkpoint(resolve(str(model)))
    parts = {
        name: _ranks(name, shape) if method == "remove-ranks" else _marks(name, shape)
        for name, shape in linears().items()
    }
    digests = {name: tensor_digest(checkpoint, name) for name in parts}
    return Neurons("made", "none", {}, parts, digests).to_bytes()


def _marks(name: str, shape: tuple[int, int]) -> Part:
    form = {"q_proj": "rows", "down_proj": "columns"}.get(name.split(".")[-2], "entries")
    if form == "entries":
        return Part.of_entries(integers("m" + name, shape, 3) > 0)
    return Part.of_units(form, numpy.arange(shape[form == "columns"]) % 3 == 0, shape)


def _ranks(name: str, shape: tuple[int, int]) -> Part:
    left, right = integers("l" + name, (shape[0], 2), 8), integers("r" + name, (2, shape[1]), 8)
    return Part("rank", shape, left=left, right=right)


def tokens_bytes(name: str) -> bytes:
    """Six pre-tokenised rows of 4 to 9 ids, of which the last two or more belong to the answer."""
    ids = numpy.abs(integers(name, (6, 9), 500) * 32).astype(numpy.int64) % VOCABULARY
    lengths = numpy.arange(4, 10)[:, None]
    mask = (numpy.arange(9) < lengths).astype(numpy.int64)
    labels = numpy.where((numpy.arange(9) >= lengths - 3) & (mask == 1), ids, -100)
    return safetensors_bytes({"input_ids": ids, "attention_mask": mask, "labels": labels}, {})


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tuned`, `aligned` and `unaligned` checkpoints, the statistics file `stats` and pre-tokenised rows."""
    root = tmp_path_factory.mktemp("pico")
    save(root / "aligned", "")
    save(root / "tuned", "tuned")
    save(root / "unaligned", "before")
    (root / "stats").write_bytes(statistics_bytes())
    for method in ("restore", "prune", "remove-ranks"):
        (root / f"neurons-{method}").write_bytes(neurons_bytes(root / "tuned", method))
    for name in ("safety", "benign"):
        (root / f"{name}.safetensors").write_bytes(tokens_bytes(name))
    return root


def digests(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.iterdir())}


@pytest.fixture
def digest_of():
    """A function: digests of every file of a directory."""
    return digests
