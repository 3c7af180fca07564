"""Opening a checkpoint and reading its tensors: the bytes of the file, whatever the dtype, or one line that says why not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from weightguard.checkpoint import Checkpoint, Resolved, check_editable, open_checkpoint, read_exactly
from weightguard.checkpoint.header import BITS
from weightguard.errors import CheckpointError, SystemFailure, UnsupportedError

Write = Callable[..., Path]
FLOATS = {
    "F64": numpy.arange(6, dtype="<f8").reshape(2, 3) / 4,
    "F32": numpy.arange(6, dtype="<f4").reshape(2, 3) / 4,
    "F16": numpy.arange(6, dtype="<f2").reshape(2, 3) / 4,
    "BF16": (numpy.arange(6, dtype="<f4").reshape(2, 3).view("<u4") >> 16).astype("<u2"),
}


def opened(root: Path) -> Checkpoint:
    return open_checkpoint(Resolved(root, None, None, root.name))


def model(write: Write, tensors: dict[str, Any], **config: Any) -> Checkpoint:
    return opened(write("m", {"model.safetensors": tensors, "config.json": config}))


def entry(dtype: str, array: numpy.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return dtype, array.shape, array.tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_read(dtype: str, write: Write) -> None:
    array = FLOATS[dtype]
    tensor = model(write, {"pad": ("U8", (3,), b"abc"), "x": entry(dtype, array)}).read("x")
    assert tuple(tensor.shape) == (2, 3)
    numpy.testing.assert_array_equal(
        tensor.float().numpy(), numpy.arange(6).reshape(2, 3) / (1 if dtype == "BF16" else 4)
    )


def test_a_tensor_is_memory_of_its_own(write: Write) -> None:
    source = model(write, {"x": entry("F32", FLOATS["F32"])})
    first = source.read("x")
    first.zero_()
    assert source.read("x").sum() > 0
    (source.directory / "model.safetensors").unlink()
    assert first.sum() == 0


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (1, 1, 1)])
def test_scalars_and_empty_tensors(shape: tuple[int, ...], write: Write) -> None:
    array = numpy.ones(shape, "<f4")
    assert tuple(model(write, {"x": entry("F32", array)}).read("x").shape) == shape


@pytest.mark.parametrize("dtype", sorted(set(BITS) - set(FLOATS)))
def test_what_is_no_editable_float_is_not_read(dtype: str, write: Write) -> None:
    source = model(write, {"x": (dtype, (8,), bytes(BITS[dtype]))})
    with pytest.raises(UnsupportedError, match=rf"^model\.safetensors: tensor 'x' is {dtype}, not a float type"):
        source.read("x")


def test_views(write: Write) -> None:
    source = opened(
        write(
            "m",
            {"model.safetensors": {"b": ("U8", (5,), bytes(5)), "a": ("U8", (2,), bytes(2))}, "config.json": {"k": 1}},
        )
    )
    assert list(source.tensors) == ["b", "a"] and source.largest == 5 and source.config == {"k": 1}
    assert not source.is_adapter and source.label == "m"
    with pytest.raises(CheckpointError, match=r"^m: no tensor 'c'$"):
        source.info("c")


def test_a_checkpoint_without_a_tensor(write: Write) -> None:
    assert model(write, {}).largest == 0


CHANGED = r"^model\.safetensors: changed while it was read; start again once nothing writes to it$"


@pytest.mark.parametrize("left", [0, 1, -1])
def test_a_file_cut_while_it_is_open(left: int, write: Write) -> None:
    source = model(write, {"x": entry("F32", FLOATS["F32"])})
    path = source.directory / "model.safetensors"
    shorter = r"^model\.safetensors: the file became shorter while it was read; copy it"
    with pytest.raises(CheckpointError, match=shorter), source.streaming("x") as read:
        path.write_bytes(path.read_bytes()[: source.info("x").start + left if left >= 0 else left])
        read(0, 2)
    with pytest.raises(CheckpointError, match=CHANGED):
        source.read("x")


def rewrite(path: Path) -> None:
    """One byte in place; the clock of the file system may not have moved on."""
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    os.utime(path, ns=(1, 1))


def replace(path: Path) -> None:
    """Another file of the same size and time."""
    status, other = path.stat(), path.with_name("other")
    other.write_bytes(path.read_bytes()[:-1] + b"\1")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


def relink(path: Path) -> None:
    """What was a link to a file is one to another."""
    path.unlink()
    path.symlink_to("second")


@pytest.mark.parametrize("change", [rewrite, replace, relink])
def test_a_file_of_the_same_size(change: Callable[[Path], None], write: Write) -> None:
    source = model(write, {"x": entry("F32", FLOATS["F32"])})
    path = source.directory / "model.safetensors"
    if change is relink:
        for name in ("first", "second"):
            path.with_name(name).write_bytes(path.read_bytes())
        path.unlink()
        path.symlink_to("first")
        source = opened(source.directory)
    source.check_unchanged()
    change(path)
    for look in (source.check_unchanged, lambda: source.read("x"), lambda: source.read_rows("x", 0, 1)):
        with pytest.raises(CheckpointError, match=CHANGED):
            look()


def test_a_file_written_to_while_it_is_open(write: Write) -> None:
    source = model(write, {"x": entry("F32", FLOATS["F32"])})
    with pytest.raises(CheckpointError, match=CHANGED), source.opened("model.safetensors"):
        rewrite(source.directory / "model.safetensors")


def test_a_file_that_is_gone(write: Write) -> None:
    source = model(write, {"x": entry("F32", FLOATS["F32"])})
    (source.directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"^model\.safetensors: missing$"):
        source.read("x")


def test_a_file_that_became_a_link_out(write: Write, tmp_path: Path) -> None:
    source = model(write, {"x": entry("F32", FLOATS["F32"])})
    path = source.directory / "model.safetensors"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"^model\.safetensors: a link out of the checkpoint"):
        source.read("x")


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda d, buffers, at: real(d, [buffers[0][:3]], at))
    (tmp_path / "x").write_bytes(bytes(range(100)))
    buffer = bytearray(50)
    with (tmp_path / "x").open("rb") as file:
        read_exactly(file.fileno(), memoryview(buffer), 7, "x")
    assert buffer == bytes(range(7, 57))


def test_a_disk_that_fails(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    source = model(write, {"x": entry("F32", FLOATS["F32"])})
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(SystemFailure, match=r"^model\.safetensors: cannot be read: Input/output error$"):
        source.read("x")


@pytest.mark.parametrize("dtype", [d for d in BITS if not d.startswith(("F8_", "F6_", "F4"))])
def test_editable_with(dtype: str, write: Write) -> None:
    check_editable(model(write, {"x": (dtype, (8,), bytes(BITS[dtype]))}, quantization_config=None))


@pytest.mark.parametrize("dtype", [d for d in BITS if d.startswith(("F8_", "F6_", "F4"))])
def test_quantised_by_dtype(dtype: str, write: Write) -> None:
    with pytest.raises(UnsupportedError, match=rf"^model\.safetensors: tensor 'x' is {dtype}, quantised; repair the"):
        check_editable(model(write, {"x": (dtype, (8,), bytes(BITS[dtype]))}))


def test_opening_imports_neither_torch_nor_numpy(write: Write) -> None:
    root = write("m", {"model.safetensors": {"x": entry("F32", FLOATS["F32"])}, "config.json": {}})
    code = (
        "import sys; from pathlib import Path; from weightguard.checkpoint import Resolved, open_checkpoint\n"
        f"open_checkpoint(Resolved(Path({str(root)!r}), None, None, 'm'))\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'safetensors'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
