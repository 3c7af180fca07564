"""From what a user types (a path, org/name[@revision], MODEL+ADAPTER) to a directory, and which of its files to read.

A local path that exists always wins, with every `+` and `@` in it, and never causes a network request.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NoReturn

from weightguard.checkpoint import download
from weightguard.errors import CheckpointError, SystemFailure

Kind = Literal["model", "adapter"]

_NAME = r"\w(?:[\w.-]{0,94}\w)?"
_HUB_ID = re.compile(rf"(?P<repo>(?:{_NAME}/)?{_NAME})(?:@(?P<revision>\w[\w./-]{{0,199}}))?", re.ASCII)
_FILES = (".safetensors", ".json", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".zip", ".gz", ".tar", ".txt", ".jsonl")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARED_BLOB = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}")


@dataclass(frozen=True)
class Resolved:
    """Where a reference leads; `adapter` is set for MODEL+ADAPTER, `repo` and `revision` (a commit) for the hub."""

    directory: Path
    repo: str | None
    revision: str | None
    label: str
    adapter: Resolved | None = None

    def __str__(self) -> str:
        return self.label if self.adapter is None else f"{self.label}+{self.adapter}"


def resolve(ref: str, *, offline: bool = False, kind: Kind = "model") -> Resolved:
    """The directory behind `ref`, downloaded when it is a hub id that is not in the cache yet.

    Errors: CheckpointError (not there, gated, not a checkpoint), SystemFailure (network, disk).
    """
    pair = None if _exists(ref) else _split(ref)
    if pair is None:
        return _one(ref, offline, kind)
    model, adapter = pair
    return replace(_one(model, offline, kind), adapter=_one(adapter, offline, "adapter"))


def allowed_target(path: Path, root: Path) -> Path:
    """The regular file behind `path`, without links; it must lie in `root` or among the blobs of root's hub repository.

    Open what is returned, not `path`: a link that is exchanged afterwards then no longer matters.
    """
    if root not in path.parents or ".." in path.parts[len(root.parts) :]:
        raise CheckpointError(f"{shown(str(path))}: outside of {shown(str(root))}")
    name = shown(str(path.relative_to(root)))
    try:
        target = Path(os.path.realpath(path, strict=True))
        status, base = target.stat(), Path(os.path.realpath(root, strict=True))
    except FileNotFoundError:
        raise CheckpointError(f"{name}: {'a link to nothing' if os.path.islink(path) else 'missing'}") from None
    except (OSError, ValueError) as error:
        raise _cannot_follow(name, error) from None
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{name}: not a regular file ({stat.filemode(status.st_mode)})")
    if base not in target.parents and not _is_own_blob(path, target, base):
        raise CheckpointError(f"{name}: a link out of the checkpoint, to {shown(str(target))}; copy the file itself")
    return target


def promised_sha256(path: Path, root: Path) -> str | None:
    """What a blob of the hub cache goes by, if that is a sha256, as of every large file; of other files nothing is promised."""
    blob = _first_hop(path)
    own = _SHA256.fullmatch(blob.name) and _is_own_blob(path, blob, Path(os.path.realpath(root)))
    return blob.name if own else None


def check_sha256(path: Path, root: Path, found: str) -> None:
    """Refuse a file of a hub cache whose content, of sha256 `found`, is not what the hub promised. Error: CheckpointError."""
    promised = promised_sha256(path, root)
    if promised not in (None, found):
        raise CheckpointError(
            f"{shown(str(path.relative_to(root)))}: damaged: its sha256 is {found[:12]}..., and the hub says "
            f"{str(promised)[:12]}...; delete it from the hub cache and download it again"
        )


def _cannot_follow(name: str, error: OSError | ValueError) -> CheckpointError | SystemFailure:
    if isinstance(error, ValueError) or error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG):
        return CheckpointError(f"{name}: leads nowhere ({error.strerror if isinstance(error, OSError) else error})")
    return SystemFailure(f"{name}: cannot be read: {error.strerror}")


def shown(text: str) -> str:
    """`text` fit for one line of a message: quoted and escaped when it is empty or not printable."""
    return text if text and text.isprintable() else ascii(text)


def _one(ref: str, offline: bool, kind: Kind) -> Resolved:
    if _exists(ref):
        path = Path(os.path.expanduser(ref))
        _check_directory(path, shown(ref))
        found = Resolved(path, None, None, shown(ref))
    else:
        repo, revision = _hub_id(ref) or _refuse(ref)
        try:
            path = download.snapshot(repo, revision, offline=offline)
        except SystemFailure as failure:
            if not os.path.isdir(repo.partition("/")[0]):
                raise
            # Some part of it is here, and no hub to ask: rather a name mistyped than a repository.
            raise CheckpointError(str(failure)) from failure
        if not _COMMIT.fullmatch(path.name):
            raise SystemFailure(f"{ref}: the hub cache names no commit ({path.name}); delete that snapshot")
        found = Resolved(path, repo, path.name, f"{repo}@{path.name[:12]}")
    _check_content(found, kind)
    return found


def _exists(ref: str) -> bool:
    return os.path.lexists(os.path.expanduser(ref))


def _hub_id(ref: str) -> tuple[str, str | None] | None:
    """(repo, revision) if `ref` can be a hub id; never for what looks like a path."""
    match = _HUB_ID.fullmatch(ref)
    if match is None or ref.endswith(_FILES) or ".." in ref or "--" in match["repo"] or match["repo"].endswith(".git"):
        return None
    return match["repo"], match["revision"]


def _split(ref: str) -> tuple[str, str] | None:
    """The `+` that parts MODEL from ADAPTER: the one with the most existing paths around it, the rest hub ids."""
    cuts = [(ref[:at], ref[at + 1 :]) for at, letter in enumerate(ref) if letter == "+"]
    ranked = [(sum(map(_exists, cut)), cut) for cut in cuts if all(_exists(side) or _hub_id(side) for side in cut)]
    most = max((local for local, _ in ranked), default=0)
    best = [cut for local, cut in ranked if local == most]
    if len(best) > 1:
        raise CheckpointError(f"{shown(ref)}: more than one + could part MODEL from ADAPTER; rename a directory")
    return best[0] if best else None


def _refuse(ref: str) -> NoReturn:
    also = ", and no + in it has one on each side" if "+" in ref else ""
    raise CheckpointError(
        f"no such model: {shown(ref)} is neither a directory nor a hub id (org/name[@revision]){also}"
    )


def _check_directory(path: Path, label: str) -> None:
    if path.is_dir():
        return
    if path.is_file():
        raise CheckpointError(f"{label}: a file; give the directory it lies in")
    raise CheckpointError(f"{label}: {'not a directory' if path.exists() else 'a link to nothing'}")


def _check_content(found: Resolved, kind: Kind) -> None:
    try:
        names = os.listdir(found.directory)
    except OSError as error:
        raise SystemFailure(f"{found.label}: cannot be read: {error.strerror}") from None
    if kind == "adapter" and "adapter_config.json" not in names:
        raise CheckpointError(f"{found.label}: not an adapter, there is no adapter_config.json in it")
    if not any(n in ("config.json", "adapter_config.json") or n.endswith(".safetensors") for n in names):
        raise CheckpointError(
            f"{found.label}: not a checkpoint, there is no config.json, adapter_config.json or .safetensors file in it"
        )


def _is_own_blob(path: Path, target: Path, base: Path) -> bool:
    """Whether `base` is .../models--*/snapshots/<commit> and `target` a blob of that repository.

    huggingface_hub 2 makes the blob itself a link into a store that all repositories of one cache share
    (<cache>/blobs/ab/ab...); that store counts when the way there leads over the repository's own blobs.
    """
    repository = base.parent.parent
    named = base.parent.name == "snapshots" and repository.name.startswith("models--")
    if not named or not _COMMIT.fullmatch(base.name):
        return False
    blobs, store = repository / "blobs", repository.parent / "blobs"
    if target.parent == blobs:
        return True
    inside = os.path.relpath(target, store)
    return _first_hop(path).parent == blobs and _SHARED_BLOB.fullmatch(inside) is not None


def _first_hop(path: Path) -> Path:
    """Where `path` leads if it is a link, with the folders on the way resolved but no further link followed."""
    first = Path(os.path.realpath(path.parent), os.readlink(path)) if path.is_symlink() else path
    return Path(os.path.normpath(first))
