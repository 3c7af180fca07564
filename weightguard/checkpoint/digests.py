"""sha256 of every file of a checkpoint directory: what a report and a verdict are bound to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from weightguard.checkpoint.hub import allowed_target, check_sha256
from weightguard.errors import CheckpointError, SystemFailure

_BLOCK = 2**22


def _silent(done: int, total: int) -> None:
    """Progress that shows nothing."""


def file_digests(directory: Path, progress: Callable[[int, int], None] = _silent) -> dict[str, str]:
    """Name within the directory -> sha256, sorted by name. Folders whose name begins with a dot (.git, the hub's
    .cache) are not part of a checkpoint; every other file is, whatever it is called.

    Errors: CheckpointError for a link that leads out of the checkpoint or to no regular file, or a file of the hub cache
    that is not what the hub says; SystemFailure.
    """
    files = {name: allowed_target(directory / name, directory) for name in sorted(_names(directory))}
    total, done = sum(path.stat().st_size for path in files.values()), 0
    found = {}
    for name, path in files.items():
        digest = hashlib.sha256()
        for block in _blocks(path, name):
            digest.update(block)
            done += len(block)
            progress(min(done, total), total)
        found[name] = digest.hexdigest()
        check_sha256(directory / name, directory, found[name])
    return found


def digest_of(file: BinaryIO, name: str) -> str:
    """sha256 of the rest of an open file. Error: SystemFailure."""
    try:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise SystemFailure(f"{name}: cannot be read: {error.strerror}") from error


def _names(directory: Path) -> Iterator[str]:
    for folder, inner, files in os.walk(directory, onerror=_refuse):
        inner[:] = [name for name in inner if not name.startswith(".")]
        linked = [name for name in inner if (Path(folder) / name).is_symlink()]
        for name in (os.path.relpath(os.path.join(folder, each), directory) for each in [*files, *linked]):
            yield _text(name)


def _text(name: str) -> str:
    """A name that a report can hold. Error: CheckpointError."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{name!a}: the name of this file is not UTF-8; rename it") from None
    return name


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed must not be a folder without files."""
    raise SystemFailure(f"{error.filename}: cannot be read: {error.strerror}") from error


def _blocks(path: Path, name: str) -> Iterator[bytes]:
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                yield block
    except OSError as error:
        raise SystemFailure(f"{name}: cannot be read: {error.strerror}") from error
