"""Every file of a checkpoint counts, by content; what is not part of it does not, and links lead nowhere else."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from weightguard.checkpoint.digests import digest_of, file_digests
from weightguard.errors import CheckpointError, SystemFailure


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "original").mkdir(parents=True)
    (root / ".git").mkdir()
    for name in ("model.safetensors", "config.json", "original/params.json", ".gitattributes", ".git/HEAD"):
        (root / name).write_bytes(name.encode() * 1000)
    return root


def test_names_and_digests(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = file_digests(folder, lambda done, total: seen.append((done, total)))
    names = [".gitattributes", "config.json", "model.safetensors", "original/params.json"]
    assert list(found) == names
    assert found == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    total = sum((folder / name).stat().st_size for name in names)
    assert seen[-1] == (total, total) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_hub_cache_is_read_through_its_links(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot, blob = repository / "snapshots" / ("0" * 40), repository / "blobs" / "abc"
    snapshot.mkdir(parents=True)
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert file_digests(snapshot) == {"model.safetensors": hashlib.sha256(b"weights").hexdigest()}


def test_a_name_that_is_no_text_is_refused(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.bin")).write_text("x")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        file_digests(folder)


@pytest.mark.parametrize("kind", ["out", "nothing", "folder", "fifo"])
def test_what_is_no_file_of_the_checkpoint_is_refused(folder: Path, kind: str) -> None:
    place = folder / "extra"
    outside = folder.parent / "secret"
    outside.mkdir()
    (outside / "file").write_text("x")
    if kind == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to({"out": outside / "file", "nothing": folder / "gone", "folder": outside}[kind])
    with pytest.raises(CheckpointError, match="extra"):
        file_digests(folder)


def test_a_disk_that_fails() -> None:
    """The first page of a process is never mapped: reading this regular file gives EIO."""
    with (
        open("/proc/self/mem", "rb", buffering=0) as file,
        pytest.raises(SystemFailure, match=r"^x: cannot be read: Input/output error$"),
    ):
        digest_of(file, "x")
