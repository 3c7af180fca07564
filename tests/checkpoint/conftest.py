"""Safetensors files written by hand, and directories made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

# name -> (dtype, shape, bytes)
Tensors = Mapping[str, tuple[str, tuple[int, ...], bytes]]


def safetensors(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(data)]}
        position += len(data)
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(directory, {name: content}): tensors become a safetensors file, other objects JSON, bytes stay."""

    def write(directory: str, files: Mapping[str, Any]) -> Path:
        root = tmp_path / directory
        root.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            if name.endswith(".safetensors") and isinstance(content, dict):
                content = safetensors(content)
            elif isinstance(content, dict | list):
                content = json.dumps(content).encode()
            (root / name).write_bytes(content)
        return root

    return write
