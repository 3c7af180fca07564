"""The file a rewrite makes: the bytes it was given whatever the pieces and the file system, written directly where that goes."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from weightguard.errors import CheckpointError
from weightguard.rewrite import output
from weightguard.rewrite.output import BLOCK, ROOM, Output

Write = Callable[[int, memoryview], int]
REAL: Write = os.write
SIZES = (0, 1, 511, BLOCK - 1, BLOCK, BLOCK + 1, ROOM - 1, ROOM, ROOM + 1, 2 * ROOM + 12345)


def bytes_of(length: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(length)


def written(path: Path, pieces: list[bytes]) -> bytes:
    with path.open("xb", buffering=0) as file:
        out = Output(file.fileno())
        for piece in pieces:
            out.write(piece)
        out.close()
    return path.read_bytes()


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """(directly?, bytes) of every write."""
    seen: list[tuple[bool, int]] = []
    monkeypatch.setattr(os, "write", lambda d, data: (seen.append((is_direct(d), len(data))), REAL(d, data))[1])
    return seen


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("first", [0, 2264])
def test_the_bytes_are_those_given(size: int, first: int, tmp_path: Path) -> None:
    pieces = [bytes_of(first, 1), bytes_of(size, 2), bytes_of(777, 3), bytes_of(size, 4)]
    assert written(tmp_path / "file", pieces) == b"".join(pieces)


def test_many_small_pieces(tmp_path: Path) -> None:
    draw = random.Random(0)
    pieces = [bytes_of(draw.randrange(5000), seed) for seed in range(1000)]
    assert written(tmp_path / "file", pieces) == b"".join(pieces)


def test_all_but_the_end_is_written_directly(tmp_path: Path, writes: list[tuple[bool, int]]) -> None:
    try:
        os.close(os.open(tmp_path / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no direct writes")
    written(tmp_path / "file", [bytes(2264), bytes(3 * ROOM)])
    assert writes == [(True, ROOM), (True, ROOM), (True, ROOM), (False, 2264)]


def test_a_range_of_another_file_lies_between(tmp_path: Path) -> None:
    data, (before, behind) = bytes_of(3 * ROOM, 1), (bytes_of(BLOCK + 5, 2), bytes_of(2 * ROOM + 9, 3))
    (tmp_path / "source").write_bytes(data)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "file").open("xb", buffering=0) as file:
        out = Output(file.fileno())
        out.write(before)
        out.copy(source.fileno(), 1000, 2 * ROOM, "source")
        out.write(behind)
        out.close()
        assert (tmp_path / "file").read_bytes() == before + data[1000 : 1000 + 2 * ROOM] + behind
        with pytest.raises(CheckpointError, match="source: the file became shorter"):
            out.copy(source.fileno(), len(data) - 10, 11, "source")


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_kernel_that_does_not_copy(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "copy_file_range", refused)
    test_a_range_of_another_file_lies_between(tmp_path)


def test_a_file_system_without_direct_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def without(descriptor: int, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, command, flags)

    monkeypatch.setattr(fcntl, "fcntl", without)
    pieces = [bytes_of(2264, 1), bytes_of(3 * ROOM, 2)]
    assert written(tmp_path / "file", pieces) == b"".join(pieces)


@pytest.mark.parametrize("taken", [0, ROOM // 2])
def test_one_that_takes_the_flag_and_no_such_write(
    taken: int, tmp_path: Path, writes: list[tuple[bool, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = os.write

    def refusing(descriptor: int, data: memoryview) -> int:
        if is_direct(descriptor) and (not taken or len(data) < ROOM):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return counted(descriptor, data[:taken] if is_direct(descriptor) else data)

    monkeypatch.setattr(os, "write", refusing)
    pieces = [bytes_of(2264, 1), bytes_of(3 * ROOM, 2)]
    assert written(tmp_path / "file", pieces) == b"".join(pieces)
    assert [direct for direct, _ in writes].count(True) == bool(taken)  # it is not tried again


def test_other_errors_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path / "file", [bytes(ROOM)])


def test_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "DIRECT", 0)
    monkeypatch.setattr(os, "write", lambda descriptor, data: REAL(descriptor, data[:1000]))
    data = bytes_of(ROOM + 5, 1)
    assert written(tmp_path / "file", [data]) == data
