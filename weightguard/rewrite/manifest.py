"""`weightguard.json`: the proof of what went in, what was done and what came out.

It holds no time, host, user, thread count or absolute path, so the same repair gives the same bytes anywhere.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from weightguard.checkpoint import Checkpoint, opened, strict_json
from weightguard.errors import CheckpointError
from weightguard.plan import Plan
from weightguard.rewrite.stream import Written

NAME = "weightguard.json"
FORMAT = 1
_PACKAGES = ("weightguard", "torch", "transformers", "peft", "safetensors", "numpy")


@dataclass(frozen=True)
class Manifest:
    """The parsed file; `data` is exactly what is written."""

    data: Mapping[str, Any]

    @property
    def edits(self) -> dict[str, dict[str, Any]]:
        return self.data["edits"]

    @property
    def outputs(self) -> dict[str, dict[str, str]]:
        return self.data["outputs"]

    def to_bytes(self) -> bytes:
        return strict_json.dump(self.data)

    @staticmethod
    def read(directory: Path) -> Manifest:
        path = directory / NAME
        if not path.is_file():
            raise CheckpointError(f"{directory}: no {NAME}; this was not written by weightguard")
        data = strict_json.read(path, NAME)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise CheckpointError(f"{NAME}: not a manifest this version reads (format {FORMAT})")
        missing = {"method", "options", "inputs", "outputs", "edits"} - data.keys()
        if missing:
            raise CheckpointError(f"{NAME}: lacks {', '.join(sorted(missing))}")
        return Manifest(data)


def build(
    plan: Plan,
    written: Written,
    inputs: Mapping[str, Mapping[str, Any]],
    others: Mapping[str, str],
    facts: Mapping[str, Any],
) -> Manifest:
    """Manifest of a rewrite. `inputs`: identity by role (see `identity`); `others`: digests of copied small files;
    `facts`: what the caller knows besides (statistics, data, strength, notes)."""
    model = {**inputs["model"], "files": written.files_in, "tensors": written.tensors_in}
    read = {**inputs, "model": model}
    if written.aligned:
        read["aligned"] = {**inputs["aligned"], "tensors": written.aligned}
    return Manifest(
        {
            "format": FORMAT,
            "method": plan.method,
            "paper": plan.paper,
            "target": plan.target,
            "options": dict(plan.options),
            "plan": plan.digest(),
            "inputs": read,
            **facts,
            "edits": {name: _edit(name, plan, written) for name in written.changes},
            "outputs": {"files": {**written.files_out, **others}, "tensors": written.tensors_out},
            "versions": versions(),
        }
    )


def _edit(name: str, plan: Plan, written: Written) -> dict[str, Any]:
    edit = plan.edits.get(name)
    kind = "merge" if edit is None else type(edit).__name__.lower()
    return {
        "edit": kind,
        **plan.evidence.get(name, {}),
        **written.changes[name].as_dict(),
        "sha256": written.tensors_out.get(name),
    }


def identity(checkpoint: Checkpoint, *, whole: bool = False) -> dict[str, Any]:
    """What names an input without a path: hub id and commit where there is one, digests of config and headers.

    `whole` adds the digest of every weight file, for inputs that are not streamed through the rewrite.
    """
    config = "adapter_config.json" if checkpoint.is_adapter else "config.json"
    said: dict[str, Any] = {}
    if checkpoint.revision:
        said |= {"repo": checkpoint.label.partition("@")[0], "revision": checkpoint.revision}
    said["config"] = hashlib.sha256((checkpoint.directory / config).read_bytes()).hexdigest()
    said["headers"] = {file: hashlib.sha256(h.raw).hexdigest() for file, h in checkpoint.headers.items()}
    if whole:
        said["files"] = {file: _digest(checkpoint, file) for file in checkpoint.layout.files}
    return said


def _digest(checkpoint: Checkpoint, file: str) -> str:
    with opened(checkpoint.directory, file) as descriptor, os.fdopen(os.dup(descriptor), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
