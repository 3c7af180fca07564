"""Odd surroundings of a repair: the same bytes, or one line, the right exit code and nothing left behind."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import os
import resource
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import weightguard as wg
from weightguard.checkpoint import strict_json
from weightguard.checkpoint.digests import file_digests
from weightguard.errors import CheckpointError

Held = dict[str, tuple[Any, ...]]


def contents(held: Held) -> dict[str, str]:
    return {name: digest for name, (_, digest) in held.items()}


def one_line(ended: Any, code: int, words: str) -> None:
    assert ended.code == code and len(ended.errors) == 1, ended.said
    assert ended.errors[0].startswith("weightguard: ") and words in ended.errors[0]


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o177, 0o777])
def test_a_umask(mask: int, place: Any, reference: Held) -> None:
    """Root can write where the mask forbids it; others are told."""
    ended = place.run(*place.arguments(), prepare=lambda: os.umask(mask))
    if mask & 0o700 and os.geteuid() != 0:
        one_line(ended, 5, "Permission denied")
        assert place.held() == {} and place.litter() == []
        return
    assert ended.code == 0 and contents(place.held()) == contents(reference)
    assert place.out.stat().st_mode & 0o777 == 0o777 & ~mask
    assert all(path.stat().st_mode & mask == 0 for path in place.out.rglob("*"))


def without_override() -> None:
    """Root like everybody else: modes count for it too."""
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    assert ctypes.CDLL(None).capset(header, none) == 0


@pytest.mark.parametrize("mask", [0o177, 0o277, 0o777])
@pytest.mark.parametrize("below", ["out", "out/of/many"])
def test_a_umask_that_leaves_no_way_in(mask: int, below: str, place: Any) -> None:
    def prepare() -> None:
        without_override()
        os.umask(mask)

    ended = place.run(*place.arguments()[:-1], str(place.root / below), prepare=prepare)
    one_line(ended, 5, "Permission denied")
    assert not place.out.exists() and place.litter() == []


FREE = (0, 1, 2, 3, 8)  # descriptors that are free beyond those of the test itself


@pytest.mark.parametrize("free", FREE)
def test_few_open_files(free: int, place: Any, reference: Held) -> None:
    def prepare() -> None:
        taken = os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free
        os.close(taken)
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken + free, taken + free))

    ended = place.run(*place.arguments(), prepare=prepare)
    if ended.code == 0:
        assert place.held() == reference
        return
    one_line(ended, 5, "Too many open files")
    assert free < FREE[-1] and place.held() == {} and place.litter() == []


def in_hub_cache(model: Path, damaged: str) -> Path:
    """The model as huggingface_hub keeps it: links to blobs that go by their sha256, one with a bit turned."""
    repository = model / "models--org--name"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in [path for path in model.iterdir() if path.is_file()]:
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blob)
        (snapshot / path.name).symlink_to(blob)
        if path.name == damaged:
            data = blob.read_bytes()
            blob.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    return snapshot


@pytest.mark.parametrize("damaged", ["", "model-00002-of-00003.safetensors"])
def test_a_blob_of_the_hub_cache_that_is_not_what_its_name_says(damaged: str, place: Any) -> None:
    snapshot = in_hub_cache(place.model, damaged)
    ended = place.run("repair", str(snapshot), *place.arguments()[2:])
    found = wg.inspect(str(snapshot)).problems
    if not damaged:
        assert ended.code == 0 and found == () and len(file_digests(snapshot)) == 11
        return
    words = f"{damaged}: damaged: its sha256 is "
    one_line(ended, 3, words)
    assert place.held() == {} and place.litter() == []
    assert [problem.partition(words)[0] for problem in found] == [""] and "download it again" in found[0]
    with pytest.raises(CheckpointError, match="damaged"):
        file_digests(snapshot)


@pytest.mark.parametrize("damaged", ["", "model-00002-of-00003.safetensors"])
def test_such_a_blob_of_the_aligned_model(damaged: str, place: Any) -> None:
    """Its bytes may end in the output, and nothing else reads it as a whole."""
    from safetensors.torch import load_file, save_file

    tuned = place.root / "tuned"
    shutil.copytree(place.model, tuned)
    for path in tuned.glob("*.safetensors"):
        save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    aligned = in_hub_cache(place.model, damaged)
    ended = place.run("repair", str(tuned), "--aligned", str(aligned), *place.arguments()[2:])
    if not damaged:
        assert ended.code == 0
        return
    one_line(ended, 3, f"{damaged}: damaged: its sha256 is ")
    assert place.held() == {} and place.litter() == ["tuned"]


def test_no_network(place: Any, reference: Held) -> None:
    """A local path asks nobody."""

    def refuse(*_: Any, **__: Any) -> Any:
        os._exit(77)

    def prepare() -> None:
        socket.socket.connect = refuse  # type: ignore[method-assign]
        socket.getaddrinfo = refuse

    assert place.run(*place.arguments(), prepare=prepare).code == 0 and place.held() == reference


def test_a_full_disk_is_seen_before_anything_is_written(place: Any) -> None:
    def prepare() -> None:
        os.statvfs = lambda _: SimpleNamespace(f_blocks=10_000, f_bavail=200, f_frsize=4096, f_flag=0)  # type: ignore[assignment]

    ended = place.run(*place.arguments(), prepare=prepare, how="count")
    one_line(ended, 5, "0.82 MB free, 1.05 MB needed; give an -o on a larger disk")
    assert (place.root / "calls").read_text() == "" and place.held() == {}


def test_a_small_model_needs_no_large_disk(place: Any, reference: Held) -> None:
    def prepare() -> None:
        os.statvfs = lambda _: SimpleNamespace(f_blocks=10_000, f_bavail=500, f_frsize=4096, f_flag=0)  # type: ignore[assignment]

    assert place.run(*place.arguments(), prepare=prepare).code == 0 and place.held() == reference


def test_what_lies_beside_the_weights_needs_room_as_well(place: Any) -> None:
    def prepare() -> None:
        os.statvfs = lambda _: SimpleNamespace(f_blocks=10_000, f_bavail=500, f_frsize=4096, f_flag=0)  # type: ignore[assignment]

    (place.model / "tokenizer.model").write_bytes(bytes(2_000_000))
    one_line(place.run(*place.arguments(), prepare=prepare), 5, "2.05 MB free, 3.05 MB needed")


def test_a_file_system_that_takes_nothing_says_so_before_it_speaks_of_room(place: Any) -> None:
    def prepare() -> None:
        os.statvfs = lambda _: SimpleNamespace(f_blocks=10, f_bavail=0, f_frsize=4096, f_flag=os.ST_RDONLY)  # type: ignore[assignment]

    one_line(
        place.run(*place.arguments(), prepare=prepare), 5, f"{place.root}: cannot be written: Read-only file system"
    )
    assert place.held() == {} and place.litter() == []


PLACES: dict[str, tuple[Callable[[Any], Path], int, str]] = {
    "the input": (lambda place: place.model, 4, "exists; give another -o"),
    "inside the input": (lambda place: place.model / "out", 2, "lies in the input"),
    "deep inside the input": (lambda place: place.model / "a/b/out", 2, "lies in the input"),
    "above the input": (lambda place: place.root, 4, "exists; give another -o"),
    "a link to nothing": (lambda place: place.root / "dangling", 4, "exists; give another -o"),
    "below a link to nothing": (lambda place: place.root / "dangling/out", 5, "dangling is not a directory"),
    "below a file": (lambda place: place.model / "config.json/out", 5, "config.json is not a directory"),
    "a name too long": (lambda place: place.root / ("x" * 256), 5, "File name too long"),
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("force", [False, True])
def test_where_no_output_can_be(where: str, force: bool, place: Any) -> None:
    find, code, words = PLACES[where]
    (place.root / "dangling").symlink_to("gone")
    before = place.held("model")
    arguments = [*place.arguments()[:-1], str(find(place)), *(["--force"] if force else [])]
    ended = place.run(*arguments)
    if force and code == 4:
        assert ended.code in (2, 4) and len(ended.errors) == 1, ended.said
    else:
        one_line(ended, code, words)
    assert place.held("model") == before and place.litter() == ["dangling"]


def test_a_shard_that_is_a_link_to_nothing(place: Any) -> None:
    shard = place.model / "model-00002-of-00003.safetensors"
    shard.unlink()
    shard.symlink_to("gone")
    one_line(place.run(*place.arguments()), 3, f"{shard.name}: a link to nothing")
    assert place.held() == {} and place.litter() == []


def test_parents_that_are_not_there_yet(place: Any, reference: Held) -> None:
    arguments = [*place.arguments()[:-1], str(place.root / "out/of/many")]
    assert place.run(*arguments).code == 0 and place.held("out/of/many") == reference


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_counts(threads: int, place: Any, reference: Held) -> None:
    def prepare() -> None:
        import torch

        torch.set_num_threads(threads)

    assert place.run(*place.arguments(), prepare=prepare).code == 0 and place.held() == reference


def test_another_working_directory(place: Any, reference: Held) -> None:
    """Relative names from elsewhere: no path gets into the output."""
    arguments = ["repair", "../model", *place.arguments()[2:-1], "./../out"]
    ended = place.run(*arguments, prepare=lambda: os.chdir(place.root / "other"))
    assert ended.code == 0 and place.held() == reference


SHARD = "model-0000{}-of-00003.safetensors"
# The file that cannot be read, and which of the times that it is read is the first to fail.
UNREADABLE = [
    (SHARD.format(1), 0), (SHARD.format(3), 1), (SHARD.format(2), 3), ("config.json", 0), ("config.json", 1),
    ("config.json", 2), ("model.safetensors.index.json", 0), ("tokenizer.json", 0), ("tokenizer_config.json", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "at"), UNREADABLE)
def test_a_read_that_fails_names_the_file(name: str, at: int, place: Any) -> None:
    """What the kernel says of a bad sector, in place of the bytes."""

    def prepare() -> None:
        left = at

        def failing(descriptor: int) -> int:
            nonlocal left
            left -= os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"model/{name}")
            if left < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return descriptor

        class Reading(io.FileIO):
            def read(self, count: int | None = -1) -> bytes:
                return super().read(count) if failing(self.fileno()) else b""

        pread, preadv = os.pread, os.preadv
        os.pread = lambda descriptor, *more: pread(failing(descriptor), *more)
        os.preadv = lambda descriptor, *more: preadv(failing(descriptor), *more)
        strict_json.open = Reading  # type: ignore[attr-defined]

    ended = place.run(*place.arguments(), prepare=prepare)
    assert (ended.code, ended.errors) == (5, [f"weightguard: {name}: cannot be read: Input/output error"])
    assert place.held() == {} and place.litter() == []
