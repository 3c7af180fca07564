"""Checkpoints of the lab, built once: <cache>/lab/<digest>/.

A build happens in a sibling directory and is published by one rename, under a lock: two processes do not build the
same thing twice, and a run that is killed leaves nothing that looks finished.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def root() -> Path:
    """The lab's part of the cache: $WEIGHTGUARD_CACHE, else $XDG_CACHE_HOME/weightguard, else ~/.cache/weightguard."""
    named = os.environ.get("WEIGHTGUARD_CACHE")
    if named:
        return Path(named).expanduser().absolute() / "lab"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home).absolute() / "weightguard" / "lab"


def digest(parts: object, sources: list[Path]) -> str:
    """20 hexadecimal digits of `parts` (anything JSON can write) and of the bytes of `sources`."""
    total = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for source in sources:
        total.update(hashlib.sha256(source.read_bytes()).digest())
    return total.hexdigest()[:20]


def cached(name: str, build: Callable[[Path], None], base: Path | None = None) -> Path:
    """The directory `name` of the cache; `build(directory)` makes it when it is not there."""
    home = root() if base is None else base
    target = home / name
    if target.is_dir():
        return target
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / f".{name}.lock"):
        if not target.is_dir():  # another process may have built it while this one waited
            _build(target, build)
    return target


def _build(target: Path, build: Callable[[Path], None]) -> None:
    stage = target.with_name(f".{target.name}.building")
    shutil.rmtree(stage, ignore_errors=True)  # what a killed run left; the lock says that nobody uses it
    stage.mkdir()
    try:
        build(stage)
        os.rename(stage, target)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The lock file stays: removing it would let two processes hold locks on two files of one name.
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
