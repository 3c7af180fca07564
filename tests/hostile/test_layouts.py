"""Directories in which the files are not what they should be: links, pipes, indexes that lead astray."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
S, I = f"{SHARD}: ", f"{INDEX}: "  # noqa: E741
NORM, UP, DOWN = "model.norm.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n"
Case = tuple[Callable[[Any], object], str]


def in_index(change: Callable[[dict[str, Any]], object], **top: Any) -> Callable[[Any], None]:
    def damage(m: Any) -> None:
        m.sharded()
        m.index(change, **top)

    return damage


def index_text(data: bytes | str | list | dict) -> Callable[[Any], None]:
    def damage(m: Any) -> None:
        m.sharded()
        m.write(INDEX, data)

    return damage


def on_shard(change: Callable[[Any], object]) -> Callable[[Any], None]:
    def damage(m: Any) -> None:
        m.sharded()
        change(m)

    return damage


def point(file: Any) -> Callable[[Any], None]:
    return lambda m: m.point(file)


def cut(m: Any) -> None:
    path = m / SHARD
    path.write_bytes(path.read_bytes()[:-1])


def listen(m: Any) -> None:
    m.remove("model.safetensors")
    here = os.getcwd()
    os.chdir(m.path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as it:
        it.bind("model.safetensors")
    os.chdir(here)


OUT_OF = "{}: a link out of the checkpoint, to TMP/in/outside; copy the file itself"
FILES: dict[str, Case] = {
    "directory instead of the weights": (
        lambda m: m.directory("model.safetensors"),
        "model.safetensors: not a regular file (drwxr-xr-x)",
    ),
    "pipe instead of the weights": (
        lambda m: m.fifo("model.safetensors"),
        "model.safetensors: not a regular file (prw-r--r--)",
    ),
    "socket instead of the weights": (listen, "model.safetensors: not a regular file (srwxr-xr-x)"),
    "link to a device": (
        lambda m: m.link("model.safetensors", "/dev/zero"),
        "model.safetensors: not a regular file (crw-rw-rw-)",
    ),
    "link out of the directory": (
        lambda m: m.link("model.safetensors", "../outside"),
        OUT_OF.format("model.safetensors"),
    ),
    "absolute link out of the directory": (
        lambda m: m.link("model.safetensors", m.path.parent / "outside"),
        OUT_OF.format("model.safetensors"),
    ),
    "link out over a link": (
        lambda m: (m.link("inner", "../outside"), m.link("model.safetensors", "inner")),
        OUT_OF.format("model.safetensors"),
    ),
    "link to nothing": (
        lambda m: m.link("model.safetensors", "gone"),
        "model.safetensors: a link to nothing",
    ),
    "link to itself": (
        lambda m: m.link("model.safetensors", "model.safetensors"),
        "model.safetensors: leads nowhere (Too many levels of symbolic links)",
    ),
    "no weights": (
        lambda m: m.remove("model.safetensors"),
        f"MODEL: no model.safetensors and no {INDEX}",
    ),
    "pickles only": (
        lambda m: (m.remove("model.safetensors"), m.write("pytorch_model.bin", b"PK")),
        f"MODEL: no model.safetensors and no {INDEX}; pytorch_model.bin is not read (pickles can run code): "
        "convert it to safetensors first",
    ),
    "a single file and an index": (
        on_shard(lambda m: m.single()),
        f"model.safetensors and {INDEX}: two layouts at once; keep the one that is meant",
    ),
    "shard that is missing": (
        on_shard(lambda m: m.remove(SHARD)),
        f"{S}missing shard, named by {INDEX}; download it again",
    ),
    "shard that is a directory": (on_shard(lambda m: m.directory(SHARD)), f"{S}not a regular file (drwxr-xr-x)"),
    "shard that is a pipe": (on_shard(lambda m: m.fifo(SHARD)), f"{S}not a regular file (prw-r--r--)"),
    "shard that is a link out": (on_shard(lambda m: m.link(SHARD, "../outside")), OUT_OF.format(SHARD)),
    "shard that is a link to nothing": (on_shard(lambda m: m.link(SHARD, "gone")), f"{S}a link to nothing"),
    "shard that is a git-lfs pointer": (
        on_shard(lambda m: m.write(SHARD, LFS)),
        f"{S}a git-lfs pointer, not the weights; run `git lfs pull` in that directory",
    ),
    "shard cut by one byte": (
        on_shard(cut),
        f"{S}truncated, 771 bytes where the header needs 772; download the shard again",
    ),
    "shard twice under two names": (
        on_shard(lambda m: (m.write("again.safetensors", (m / SHARD).read_bytes()), m.index(twice_under_two_names))),
        f"{I}tensor {DOWN!r} is in again.safetensors and in {SHARD}",
    ),
}


def twice_under_two_names(weight_map: dict[str, Any]) -> None:
    weight_map[UP] = "again.safetensors"


INDEXES: dict[str, Case] = {
    "empty": (index_text(b""), f"{I}is empty, JSON was expected"),
    "not JSON": (index_text("{]"), f"{I}line 1 column 2: Expecting property name enclosed in double quotes"),
    "cut": (index_text('{"weight_map": {"a'), f"{I}line 1 column 17: Unterminated string starting at"),
    "git-lfs pointer": (index_text(LFS), f"{I}is a git-lfs pointer, not the file itself; run `git lfs pull`"),
    "HTML page": (index_text("<html></html>"), f"{I}is an HTML or XML page, not JSON; download the file again"),
    "deep": (index_text("[" * 100_000), f"{I}nested deeper than 64 levels"),
    "a tensor twice": (
        index_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'),
        f'{I}the key "a" appears twice in one object',
    ),
    "a list": (index_text([]), f"{I}no weight_map; it must map tensor names to shard files"),
    "without a weight_map": (index_text({}), f"{I}no weight_map; it must map tensor names to shard files"),
    "weight_map that is a list": (
        index_text({"weight_map": [SHARD]}),
        f"{I}no weight_map; it must map tensor names to shard files",
    ),
    "weight_map that is empty": (
        index_text({"weight_map": {}}),
        f"{I}no weight_map; it must map tensor names to shard files",
    ),
    "a directory": (on_shard(lambda m: m.directory(INDEX)), f"{I}not a regular file (drwxr-xr-x)"),
    "a pipe": (on_shard(lambda m: m.fifo(INDEX)), f"{I}not a regular file (prw-r--r--)"),
    "a link out": (on_shard(lambda m: m.link(INDEX, "../outside")), OUT_OF.format(INDEX)),
    "a link to nothing": (on_shard(lambda m: m.link(INDEX, "gone")), f"{I}a link to nothing"),
    "shard above the directory": (
        point("../model.safetensors"),
        f"{I}tensor {NORM!r} points to '../model.safetensors', outside the directory",
    ),
    "shard by an absolute path": (
        point("/etc/passwd"),
        f"{I}tensor {NORM!r} points to '/etc/passwd', outside the directory",
    ),
    "shard in a folder": (
        point("sub/x.safetensors"),
        f"{I}tensor {NORM!r} points to 'sub/x.safetensors', outside the directory",
    ),
    "shard here by a detour": (
        point(f"./{SHARD}"),
        f"{I}tensor {NORM!r} points to './{SHARD}', outside the directory",
    ),
    "shard that is two dots": (point(".."), f"{I}tensor {NORM!r} points to '..', outside the directory"),
    "shard that is a dot": (point("."), f"{I}tensor {NORM!r} points to '.', outside the directory"),
    "shard without a name": (point(""), f"{I}tensor {NORM!r} points to '', outside the directory"),
    "shard that is a number": (point(1), f"{I}tensor {NORM!r} points to '1', outside the directory"),
    "shard that is null": (point(None), f"{I}tensor {NORM!r} points to 'None', outside the directory"),
    "shard that is a list": (point([SHARD]), f"{I}tensor {NORM!r} points to \"['{SHARD}']\", outside the directory"),
    "shard that is a pickle": (
        point("pytorch_model.bin"),
        f"{I}tensor {NORM!r} points to 'pytorch_model.bin', not a safetensors file",
    ),
    "shard that is the config": (
        point("config.json"),
        f"{I}tensor {NORM!r} points to 'config.json', not a safetensors file",
    ),
    "shard with a NUL in its name": (
        point("a\0.safetensors"),
        f"{I}tensor {NORM!r} points to 'a\\x00.safetensors', not a safetensors file",
    ),
    "shard with a new line in its name": (
        point("a\n.safetensors"),
        f"{I}tensor {NORM!r} points to 'a\\n.safetensors', not a safetensors file",
    ),
    "shard that is not there": (
        point("gone.safetensors"),
        f"gone.safetensors: missing shard, named by {INDEX}; download it again",
    ),
    "shard with a name of a megabyte": (
        point("n" * 1_000_000 + ".safetensors"),
        f"{'n' * 80}: missing shard, named by {INDEX}; download it again",
    ),
    "phantom tensor": (
        in_index(lambda weight_map: weight_map.update(ghost=SHARD)),
        f"{I}tensor 'ghost' is not in {SHARD}",
    ),
    "phantom tensor with a name of a megabyte": (
        in_index(lambda weight_map: weight_map.update({"g" * 1_000_000: SHARD})),
        f"{I}tensor '{'g' * 1000}' is not in {SHARD}",
    ),
    "stray tensor": (
        in_index(lambda weight_map: weight_map.pop(NORM)),
        f"{I}tensor {NORM!r} is in {SHARD} but not in the index",
    ),
    "shard that is left out": (
        in_index(lambda weight_map: [weight_map.pop(name) for name in [*weight_map] if weight_map[name] == SHARD]),
        f"{I}leaves out {SHARD}, which lies beside its shards; download the index again",
    ),
    "tensor in the other shard": (
        point("model-00001-of-00002.safetensors"),
        f"{I}tensor {NORM!r} is not in model-00001-of-00002.safetensors",
    ),
}

ALL = {f"{k}: {name}": case for k, table in (("files", FILES), ("index", INDEXES)) for name, case in table.items()}


@pytest.mark.parametrize("case", ALL)
def test_refused(case: str, model: Any, refused: Callable[..., None], tmp_path: Path) -> None:
    damage, message = ALL[case]
    damage(model)
    refused(model.path, message.replace("TMP", str(tmp_path)))


REFERENCES = {
    "nothing there": ("gone/", "no such model: gone/ is neither a directory nor a hub id (org/name[@revision])"),
    "an empty reference": ("", "no such model: '' is neither a directory nor a hub id (org/name[@revision])"),
    "a file": ("file", "file: a file; give the directory it lies in"),
    "a pipe": ("pipe", "pipe: not a directory"),
    "a link to nothing": ("dangling", "dangling: a link to nothing"),
    "an empty directory": (
        "empty",
        "empty: not a checkpoint, there is no config.json, adapter_config.json or .safetensors file in it",
    ),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_references(case: str, refused: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(b"")
    os.mkfifo("pipe")
    Path("dangling").symlink_to("gone")
    Path("empty").mkdir()
    refused(*REFERENCES[case])


def test_a_blob_of_another_repository(model: Any, refused: Callable[..., None], tmp_path: Path) -> None:
    """In a hub cache a link may lead to the blobs of its own repository, and to no other's."""
    hub, commit = tmp_path / "hub", "0123456789abcdef0123456789abcdef01234567"
    snapshot = hub / "models--org--model" / "snapshots" / commit
    blob = hub / "models--org--other" / "blobs" / "secret"
    blob.parent.mkdir(parents=True)
    (model / "model.safetensors").rename(blob)
    snapshot.parent.mkdir(parents=True)
    model.path.rename(snapshot)
    (snapshot / "model.safetensors").symlink_to("../../../models--org--other/blobs/secret")
    refused(snapshot, f"model.safetensors: a link out of the checkpoint, to {blob}; copy the file itself")


@pytest.mark.parametrize("name", ["tokenizer.json", "LICENSE", "chat_template.jinja", "sub/notes.txt"])
@pytest.mark.parametrize("kind", ["link out", "link to nothing", "pipe"])
def test_companions(name: str, kind: str, model: Any, refused: Callable[..., None], tmp_path: Path) -> None:
    model.write(name, b"")
    how: dict[str, tuple[Callable[[], None], str]] = {
        "link out": (lambda: model.link(name, tmp_path / "in" / "outside"), OUT_OF.format(name)),
        "link to nothing": (lambda: model.link(name, "gone"), f"{name}: a link to nothing"),
        "pipe": (lambda: model.fifo(name), f"{name}: not a regular file (prw-r--r--)"),
    }
    how[kind][0]()
    refused(model.path, how[kind][1].replace("TMP", str(tmp_path)))
