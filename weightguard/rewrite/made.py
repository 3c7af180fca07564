"""An adapter that was trained, published like everything else: whole or not at all, with manifest and card."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from weightguard.checkpoint import Checkpoint, Resolved, open_checkpoint, read_exactly
from weightguard.rewrite import manifest as manifests
from weightguard.rewrite.card import adapter_card
from weightguard.rewrite.companions import all_names, write_companion
from weightguard.rewrite.manifest import Manifest
from weightguard.rewrite.publish import Options, Progress, counted
from weightguard.rewrite.stage import Stage
from weightguard.rewrite.verify import verify_output


def publish_adapter(
    target: Path,
    make: Callable[[Path], None],
    said: tuple[str, str, Mapping[str, Any]],
    inputs: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
    progress: Progress,
    options: Options,
) -> Manifest:
    """`make` writes an adapter into a directory, which then appears at `target`. said: method, paper and options.

    Errors: OutputError (exists, locked), CheckpointError (what was made is no adapter), SystemFailure.
    """
    with Stage(target, force=options.force) as stage:
        make(stage.path)
        (stage.path / "README.md").unlink(missing_ok=True)  # peft's own, which names the base by its place on this disk
        made = open_checkpoint(Resolved(stage.path, None, None, str(target), None))
        tensors = {name: _tensor_digest(made, name) for name in made.tensors}
        files = {name: _file_digest(stage.path / name) for name in all_names(stage.path)}
        card = adapter_card(manifests.build_made(*said, inputs, {"files": files, "tensors": tensors}, facts))
        files["README.md"] = write_companion(stage.path / "README.md", card)
        manifest = manifests.build_made(*said, inputs, {"files": files, "tensors": tensors}, facts)
        write_companion(stage.path / manifests.NAME, manifest.to_bytes())
        if options.verify_write:
            total = sum(info.nbytes for info in made.tensors.values())
            verify_output(made, manifest, counted(progress, "verify", total))
        stage.publish()
    return manifest


def _tensor_digest(made: Checkpoint, name: str) -> str:
    info = made.info(name)
    data = bytearray(info.nbytes)
    with made.opened(info.file) as descriptor:
        read_exactly(descriptor, memoryview(data), info.start, info.file)
    return hashlib.sha256(data).hexdigest()


def _file_digest(path: Path) -> str:
    """sha256 of a file, once it is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
