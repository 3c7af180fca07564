"""The files beside the weights: what is carried over, what is changed on the way, and what is left behind and why."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from weightguard.checkpoint import CODE_KEYS, Checkpoint, allowed_target, strict_json, total_size
from weightguard.errors import CheckpointError
from weightguard.rewrite.manifest import NAME

MAX_FILE = 1 << 30
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
    config = "adapter_config.json" if model.is_adapter else "config.json"
    kept, left = _sorted_out(model, (config, model.layout.index_name, NAME, "README.md"))
    for name in kept:
        digests[name] = _copy(model.directory, name, directory)
    notes = [f"left behind, not repaired and not needed to load: {', '.join(left)}"] if left else []
    if model.layout.index is not None and model.layout.index_name is not None:
        digests[model.layout.index_name] = _write(directory / model.layout.index_name, _index_bytes(model))
        notes += [f"{note}; corrected" for note in model.layout.notes]
    cleaned, removed = _clean(model.directory / config, model.config)
    if removed:
        notes.append(f"{config}: {', '.join(removed)} can name code and was removed")
    digests[config] = _write(directory / config, cleaned)
    return digests, notes


def _sorted_out(model: Checkpoint, handled: tuple[str | None, ...]) -> tuple[list[str], list[str]]:
    kept: list[str] = []
    left: list[str] = []
    for name in _walk(model.directory, Path()):
        if name in handled or name in model.layout.files:
            continue
        kind = "".join(Path(name).suffixes[-1:]).lower()
        (left if kind in _WEIGHTS or kind in _CODE or name.endswith("/") else kept).append(name)
    return kept, left


def _walk(root: Path, below: Path) -> Iterator[str]:
    """Relative names in a fixed order; hidden files and folders that hold no companion are passed over."""
    for entry in sorted(os.scandir(root / below), key=lambda e: e.name):
        name = below / entry.name
        if entry.name.startswith("."):
            continue
        if not entry.is_dir(follow_symlinks=False):
            yield str(name)
        elif entry.name in _SKIPPED_DIRECTORIES or entry.name.startswith("checkpoint-"):
            yield f"{name}/"
        elif len(name.parts) < 8:
            yield from _walk(root, name)


def _copy(root: Path, name: str, directory: Path) -> str:
    source = allowed_target(root / name, root)
    if source.stat().st_size > MAX_FILE:
        raise CheckpointError(
            f"{name}: {source.stat().st_size} bytes, too large for a file beside the weights; move it away"
        )
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    data = source.read_bytes()
    if name in ("tokenizer_config.json", "generation_config.json", "processor_config.json"):
        data, _ = _clean(source, strict_json.parse(data, name))
    return _write(directory / name, data)


def _write(path: Path, data: bytes) -> str:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def write_companion(path: Path, data: bytes) -> str:
    """Write one small file of ours, synced; returns its sha256."""
    return _write(path, data)


def _clean(path: Path, value: object) -> tuple[bytes, list[str]]:
    """The file's own bytes, or, where it names code to run, the JSON without those keys."""
    removed: list[str] = []
    cleaned = _without_code(value, removed)
    if not removed:
        return path.read_bytes(), []
    return strict_json.dump(cleaned), sorted(set(removed))


def _without_code(value: object, removed: list[str]) -> object:
    if isinstance(value, list):
        return [_without_code(item, removed) for item in value]
    if not isinstance(value, dict):
        return value
    removed += [key for key in value if key in CODE_KEYS]
    return {key: _without_code(item, removed) for key, item in value.items() if key not in CODE_KEYS}


def _index_bytes(model: Checkpoint) -> bytes:
    assert model.layout.index is not None and model.layout.index_name is not None
    if not model.layout.notes:
        return (model.directory / model.layout.index_name).read_bytes()
    size = total_size(model.headers)
    metadata = {**model.layout.index["metadata"], "total_size": size}
    return strict_json.dump({**model.layout.index, "metadata": metadata})
