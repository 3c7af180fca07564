"""The files beside the weights: what is carried over, what is changed on the way, and what is left behind and why."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from weightguard.checkpoint import Checkpoint, allowed_target, named_code, strict_json, total_size, without_code
from weightguard.errors import CheckpointError
from weightguard.rewrite.manifest import NAME
from weightguard.rewrite.output import write_all

MAX_FILE = 1 << 30
# The files in which transformers and peft look for names of code.
_CONFIGS = (
    "config.json", "adapter_config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json",
    "preprocessor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
# Weights in another format are the unrepaired model; code is never carried; the rest is litter of training and git.
_WEIGHTS = (
    ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".npz", ".npy", ".onnx", ".onnx_data",
    ".pkl", ".pickle", ".tflite", ".mlmodel", ".nemo", ".llamafile", ".joblib", ".safetensors", ".mar", ".engine",
)  # fmt: skip
_CODE = (".py", ".pyc", ".so", ".sh")
_SKIPPED_DIRECTORIES = ("original", "onnx", "__pycache__", "runs")


def copy_companions(model: Checkpoint, directory: Path) -> tuple[dict[str, str], list[str]]:
    """Copy tokenizer, templates, licences and configs into `directory`.

    Returns sha256 by relative name, and notes in words about what was left behind or changed. The config that makes the
    directory loadable is written last.
    """
    digests: dict[str, str] = {}
    config = _config_name(model)
    kept, left = _sorted_out(model)
    notes = [f"left behind, not repaired and not needed to load: {', '.join(left)}"] if left else []
    for name in kept:
        digests[name] = _copy(model.directory, name, directory, notes)
    if model.layout.index is not None and model.layout.index_name is not None:
        digests[model.layout.index_name] = _write(directory / model.layout.index_name, _index_bytes(model))
        notes += [f"{note}; corrected" for note in model.layout.notes]
    data = _same_again(model, config, model.config)
    digests[config] = _write(directory / config, _clean(config, data, model.config, notes))
    return digests, notes


def check_companions(model: Checkpoint) -> int:
    """Refuse what `copy_companions` would refuse, before hours of work; returns the bytes that it will copy.

    Error: CheckpointError.
    """
    size = 0
    for name in _sorted_out(model)[0]:
        source = _source(model.directory, name)
        size += source.stat().st_size
        if Path(name).name in _CONFIGS:
            strict_json.read(source, name)
    return size


def _config_name(model: Checkpoint) -> str:
    return "adapter_config.json" if model.is_adapter else "config.json"


def _sorted_out(model: Checkpoint) -> tuple[list[str], list[str]]:
    """(names that are carried over as they are, names that are left behind)."""
    handled = (_config_name(model), model.layout.index_name, NAME, "README.md")
    kept: list[str] = []
    left: list[str] = []
    for name in all_names(model.directory):
        if name in handled or name in model.layout.files:
            continue
        if not name.isprintable():
            raise CheckpointError(f"{name!r}: a file name that is not printable text; rename it, or move it away")
        kind = "".join(Path(name).suffixes[-1:]).lower()
        adapts = Path(name).name == "adapter_config.json"  # of another adapter, whose weights are left behind
        (left if kind in _WEIGHTS or kind in _CODE or name.endswith("/") or adapts else kept).append(name)
    return kept, left


def all_names(root: Path, below: Path = Path()) -> Iterator[str]:
    """Relative names in a fixed order, hidden ones left out; a folder that holds no companion is one name with a /."""
    for entry in sorted(os.scandir(root / below), key=lambda e: e.name):
        name = below / entry.name
        if entry.name.startswith("."):
            continue
        if not entry.is_dir(follow_symlinks=False):
            yield str(name)
        elif entry.name in _SKIPPED_DIRECTORIES or entry.name.startswith("checkpoint-"):
            yield f"{name}/"
        elif len(name.parts) < 8:
            yield from all_names(root, name)


def _copy(root: Path, name: str, directory: Path, notes: list[str]) -> str:
    data = strict_json.raw(_source(root, name), name, max_bytes=MAX_FILE)
    if Path(name).name in _CONFIGS:
        data = _clean(name, data, strict_json.parse(data, name), notes)
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    return _write(directory / name, data)


def _source(root: Path, name: str) -> Path:
    """The regular file behind a companion's name, inside the checkpoint and of a size that is read at once."""
    source = allowed_target(root / name, root)
    if source.stat().st_size > MAX_FILE:
        raise CheckpointError(
            f"{name}: {source.stat().st_size} bytes, too large for a file beside the weights; move it away"
        )
    return source


def _same_again(model: Checkpoint, name: str, value: object) -> bytes:
    """The bytes of a file that was parsed when the checkpoint was opened, and still say the same."""
    data = strict_json.raw(_source(model.directory, name), name, max_bytes=MAX_FILE)
    if strict_json.parse(data, name) != value:
        raise CheckpointError(f"{name}: changed while the checkpoint was read; nothing was written")
    return data


def _write(path: Path, data: bytes) -> str:
    with path.open("xb", buffering=0) as file:
        write_all(file.fileno(), data)
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def write_companion(path: Path, data: bytes) -> str:
    """Write one small file of ours, synced; returns its sha256."""
    return _write(path, data)


def _clean(name: str, data: bytes, value: object, notes: list[str]) -> bytes:
    """The file's own bytes, or, where it names code to run, the JSON without those keys, and a note."""
    removed = named_code(value)
    if not removed:
        return data
    notes.append(f"{name}: {', '.join(removed)} can name code and was removed")
    return strict_json.dump(without_code(value))


def _index_bytes(model: Checkpoint) -> bytes:
    assert model.layout.index is not None and model.layout.index_name is not None
    data = _same_again(model, model.layout.index_name, model.layout.index)
    if not model.layout.notes:
        return data
    size = total_size(model.headers)
    metadata = {**model.layout.index["metadata"], "total_size": size}
    return strict_json.dump({**model.layout.index, "metadata": metadata})
