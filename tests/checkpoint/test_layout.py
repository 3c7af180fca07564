"""Which files hold the weights, in which order, and what is said of them. What is refused is in tests/hostile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightguard.checkpoint import header
from weightguard.checkpoint.layout import ADAPTER, MODEL, header_of, opened, read_layout, total_size
from weightguard.errors import CheckpointError, SystemFailure

Write = Callable[..., Path]
A, B = {"a": ("U8", (2,), b"aa")}, {"b": ("U8", (3,), b"bbb"), "c": ("U8", (), b"c")}
INDEX = "model.safetensors.index.json"
MAP = {"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-1.safetensors"}


def shards(**index: Any) -> dict[str, Any]:
    return {"model-2.safetensors": A, "model-1.safetensors": B, INDEX: {"weight_map": MAP, **index}}


def test_single(write: Write) -> None:
    layout = read_layout(write("m", {"model.safetensors": A | B}))
    assert (layout.kind, layout.files, layout.index, layout.index_name) == (MODEL, ("model.safetensors",), None, None)
    assert list(layout.headers["model.safetensors"].tensors) == ["a", "b", "c"] and layout.notes == ()


def test_shards_in_the_order_of_their_names(write: Write) -> None:
    layout = read_layout(write("m", shards(metadata={"total_size": 6})))
    assert layout.files == ("model-1.safetensors", "model-2.safetensors") and layout.index_name == INDEX
    assert layout.index == {"weight_map": MAP, "metadata": {"total_size": 6}} and layout.notes == ()
    assert total_size(layout.headers) == 6


@pytest.mark.parametrize("said", [5, 7, -1, 6.5, "6", [6], {}, True, 10**40])
def test_a_wrong_total_size_is_a_note(said: Any, write: Write) -> None:
    layout = read_layout(write("m", shards(metadata={"total_size": said})))
    assert layout.notes == (f"{INDEX}: total_size says {str(said)[:40]}, the tensors hold 6 bytes",)


@pytest.mark.parametrize("metadata", [{}, {"total_size": None}, {"total_size": 6}, {"total_size": 6.0}, None, [], "x"])
def test_a_total_size_that_is_right_or_missing_is_none(metadata: Any, write: Write) -> None:
    assert read_layout(write("m", shards(metadata=metadata))).notes == ()


@pytest.mark.parametrize("sharded", [False, True])
def test_adapter(sharded: bool, write: Write) -> None:
    name = "adapter_model-1.safetensors" if sharded else "adapter_model.safetensors"
    files: dict[str, Any] = {name: A, "adapter_config.json": {}, "model.safetensors": B}
    if sharded:
        files["adapter_model.safetensors.index.json"] = {"weight_map": {"a": name}}
    layout = read_layout(write("m", files))
    assert layout.kind == ADAPTER and layout.files == (name,)


def test_no_weights(write: Write) -> None:
    with pytest.raises(CheckpointError, match=r"/m: no adapter_model\.safetensors and no adapter_model\.saf.*json$"):
        read_layout(write("m", {"adapter_config.json": {}}))
    for whole, held in {"model.safetensors": A, "model.safetensors.index.json": {}}.items():
        with pytest.raises(
            CheckpointError, match=r"json; adapter_config\.json makes it an adapter: take that file away"
        ):
            read_layout(write(f"left-{whole}", {"adapter_config.json": {}, whole: held}))
    with pytest.raises(CheckpointError, match=r"; a\.pth is not read \(pickles can run code\)"):
        read_layout(write("n", {"b.bin": b"", "a.pth": b""}))


def test_opened_gives_a_descriptor_and_closes_it(write: Write) -> None:
    root = write("m", {"x": b"content"})
    with opened(root, "x") as descriptor:
        assert os.read(descriptor, 9) == b"content"
        assert not os.get_inheritable(descriptor)
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_opened_closes_after_an_error(write: Write) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(CheckpointError):
            header_of(write("m", {"x": b"short"}), "x")
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_cannot_be_opened_is_no_traceback(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root, real = write("m", {"model.safetensors": A}), os.open

    def denied(path: Any, *more: Any, **options: Any) -> int:
        if str(path).endswith(".safetensors"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *more, **options)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(SystemFailure, match=r"^model\.safetensors: cannot be opened: Permission denied$"):
        read_layout(root)


def test_a_header_cut_between_two_reads(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root, real = write("m", {"model.safetensors": A}), os.pread
    monkeypatch.setattr(header.os, "pread", lambda d, n, at: real(d, n, at)[: 12 if n != 256 else n])
    with pytest.raises(CheckpointError, match=r"^model\.safetensors: the file became shorter while it was read"):
        read_layout(root)
