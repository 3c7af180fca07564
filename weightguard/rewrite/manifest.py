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

from weightguard.checkpoint import Checkpoint, allowed_target, check_sha256, strict_json
from weightguard.checkpoint.digests import digest_of
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
    def factors(self) -> dict[str, dict[str, Any]]:
        """Of an adapter that a repair made: for each linear under it how far it moves it, and the energy that is lost."""
        return self.data.get("factors", {})

    @property
    def computed(self) -> frozenset[str]:
        """Tensors of the output whose values are new: those edited, or all of an adapter that a repair made."""
        return frozenset(self.outputs["tensors"] if self.factors else self.edits)

    @property
    def outputs(self) -> dict[str, dict[str, str]]:
        return self.data["outputs"]

    def to_bytes(self) -> bytes:
        return strict_json.dump(self.data)

    @staticmethod
    def read(directory: Path) -> Manifest:
        """The manifest of an output, found whole: its form, and its digest over itself. Error: CheckpointError."""
        path = directory / NAME
        if not os.path.lexists(path):
            raise CheckpointError(f"{directory}: no {NAME}; this was not written by weightguard")
        raw = strict_json.raw(allowed_target(path, directory), NAME)
        data = strict_json.parse(raw, NAME)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise CheckpointError(f"{NAME}: not a manifest this version reads (format {FORMAT})")
        missing = {"method", "target", "options", "inputs", "outputs", "edits"} - data.keys()
        if missing:
            raise CheckpointError(f"{NAME}: lacks {', '.join(sorted(missing))}")
        if strict_json.dump(_sealed(data)) != raw:
            raise CheckpointError(f"{NAME}: was changed after the repair; its content does not have the digest it says")
        _check_form(data)
        return Manifest(data)


def _sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with a digest over all the rest at its end: not a signature, but damage to the manifest itself shows."""
    plain = {key: value for key, value in data.items() if key != "digest"}
    return {**plain, "digest": hashlib.sha256(strict_json.dump(plain)).hexdigest()}


def _check_form(data: Mapping[str, Any]) -> None:
    places = (
        ("outputs", "files"),
        ("outputs", "tensors"),
        ("inputs", "model", "headers"),
        ("inputs", "model", "tensors"),
    )
    digests = [_at(data, *keys) for keys in places]
    edits = data["edits"]
    if not all(_all(each, str) for each in digests) or not all(_all(t, dict) for t in (edits, data.get("factors", {}))):
        raise CheckpointError(f"{NAME}: not the digests and edits of a repair; write the output again")
    for name, edit in edits.items():
        known = name in digests[3] and edit.get("sha256") == digests[1].get(name)
        if not known or type(edit.get("changed")) is not int:
            raise CheckpointError(f"{NAME}: contradicts itself about the edited tensor {name!r}")


def _at(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _all(table: object, kind: type) -> bool:
    return isinstance(table, dict) and all(isinstance(value, kind) for value in table.values())


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
    said = {
        "format": FORMAT,
        "method": plan.method,
        "paper": plan.paper,
        "target": plan.target,
        "options": dict(plan.options),
        "plan": plan.digest(),
        "inputs": read,
        **facts,
        "edits": {name: _edit(name, plan, written) for name in written.changes},
        **_left_alone(plan, written),
        "outputs": {"files": {**written.files_out, **others}, "tensors": written.tensors_out},
        "versions": versions(),
    }
    return Manifest(_sealed(said))


def _left_alone(plan: Plan, written: Written) -> dict[str, Any]:
    """What the method says of tensors that it looked at and did not edit."""
    said = {name: dict(known) for name, known in plan.evidence.items() if name not in written.changes}
    return {"left_alone": said} if said else {}


def build_made(
    method: str,
    paper: str,
    options: Mapping[str, Any],
    inputs: Mapping[str, Mapping[str, Any]],
    outputs: Mapping[str, Mapping[str, str]],
    facts: Mapping[str, Any],
) -> Manifest:
    """Manifest of an adapter that was made anew: no tensor of it is an edit of one that went in."""
    model = {"tensors": {}, **inputs["model"]}
    said = {"format": FORMAT, "method": method, "paper": paper, "target": "adapter", "options": dict(options),
            "inputs": {**inputs, "model": model}, **facts, "edits": {}, "outputs": outputs, "versions": versions()}  # fmt: skip
    return Manifest(_sealed(said))


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
    said["config"] = hashlib.sha256(strict_json.raw(checkpoint.directory / config, config)).hexdigest()
    said["headers"] = {file: hashlib.sha256(h.raw).hexdigest() for file, h in checkpoint.headers.items()}
    if whole:
        said["files"] = {file: _digest(checkpoint, file) for file in checkpoint.layout.files}
    return said


def _digest(checkpoint: Checkpoint, file: str) -> str:
    with checkpoint.opened(file) as descriptor, os.fdopen(os.dup(descriptor), "rb") as stream:
        found = digest_of(stream, file)
    check_sha256(checkpoint.directory / file, checkpoint.directory, found)
    return found


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
