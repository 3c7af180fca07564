"""The directory that appears whole or not at all: names, locks, force, and the file systems that cannot exchange."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightguard.errors import OutputError, SystemFailure, UsageError
from weightguard.rewrite import Stage, check_apart, check_target
from weightguard.rewrite import stage as module
from weightguard.rewrite.stage import check_space

STAGE = ".out.weightguard-stage"


@pytest.fixture(params=["exchange", "no exchange", "no renameat2"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the kernel and the file system offer."""
    if request.param == "no exchange":
        monkeypatch.setattr(module, "_NOREPLACE", 1 << 20)  # flags that no file system knows: EINVAL
        monkeypatch.setattr(module, "_EXCHANGE", 1 << 20)
    if request.param == "no renameat2":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    return request.param


def publish(out: Path, content: str = "new", **options: Any) -> None:
    with Stage(out, **options) as stage:
        (stage.path / "weightguard.json").write_text(content)
        (stage.path / "sub").mkdir()
        (stage.path / "sub" / "file").write_text(content)
        stage.publish()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_published(tmp_path: Path, kernel: str) -> None:
    publish(tmp_path / "out")
    assert names(tmp_path) == ["out"] and (tmp_path / "out/sub/file").read_text() == "new"


def test_nothing_is_at_the_target_before(tmp_path: Path) -> None:
    with Stage(tmp_path / "out") as stage:
        assert names(tmp_path) == [STAGE] and stage.path == tmp_path / STAGE
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), OutputError("x")])
def test_an_error_removes_the_stage_and_goes_on(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised, Stage(tmp_path / "out") as stage:
        (stage.path / "file").write_text("x")
        raise error
    assert raised.value is error and names(tmp_path) == []


def test_an_error_of_the_system_without_a_name_names_the_target(tmp_path: Path) -> None:
    message = rf"^{tmp_path}/out: cannot be written: No space left on device$"
    with pytest.raises(SystemFailure, match=message), Stage(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(PermissionError), Stage(tmp_path / "out"):
        raise PermissionError(13, "Permission denied", "/a/name")


def test_missing_parents_are_made(tmp_path: Path) -> None:
    publish(tmp_path / "a/b/out")
    assert names(tmp_path / "a/b") == ["out"]


def test_parents_that_were_made_go_with_the_stage(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with Stage(tmp_path / "a/b/c/out"):
        assert (tmp_path / "a/b/c").is_dir()
    assert names(tmp_path / "a") == []


def test_parents_that_others_use_stay(tmp_path: Path) -> None:
    with Stage(tmp_path / "a/b/out"):
        (tmp_path / "a/other").write_text("x")
    assert names(tmp_path / "a") == ["other"]


def test_relative_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    publish(Path("out"))
    publish(Path("./x/../again"))
    assert names(tmp_path) == ["again", "out"]


@pytest.mark.parametrize("content", [{}, {"weightguard.json": "old", "x": "y"}])
def test_forced(content: dict[str, str], tmp_path: Path, kernel: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, text in content.items():
        (out / name).write_text(text)
    with pytest.raises(OutputError, match=r"/out: exists; give another -o or --force to replace it$"):
        publish(out)
    publish(out, force=True)
    assert names(tmp_path) == ["out"] and names(out) == ["sub", "weightguard.json"]


def test_force_deletes_no_file_that_the_manifest_does_not_name(tmp_path: Path, kernel: str) -> None:
    out = tmp_path / "out"
    (out / "notes").mkdir(parents=True)
    (out / "weightguard.json").write_text('{"outputs": {"files": {"model.safetensors": "0"}}}')
    (out / "model.safetensors").write_text("x")
    (out / "notes/mine.txt").write_text("mine")
    said = "out: holds notes/mine.txt, which weightguard did not write and --force would delete; move it away"
    with pytest.raises(OutputError, match=said):
        publish(out, force=True)
    assert (out / "notes/mine.txt").read_text() == "mine"
    (out / "notes/mine.txt").unlink()
    publish(out, force=True)


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder of others": (
        lambda out: (out.mkdir(), (out / "file").write_text("x")),
        "has no weightguard.json; --force replaces only what weightguard wrote",
    ),
    "file": (lambda out: out.write_text("x"), "is not a directory; --force replaces an earlier output only"),
    "link to a folder": (
        lambda out: out.symlink_to(out.parent / "elsewhere"),
        "is not a directory; --force replaces an earlier output only",
    ),
    "link to nothing": (
        lambda out: out.symlink_to("gone"),
        "is not a directory; --force replaces an earlier output only",
    ),
    "folder with a folder of that name": (
        lambda out: (out / "weightguard.json").mkdir(parents=True),
        "has no weightguard.json; --force replaces only what weightguard wrote",
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_weightguard_did_not_write_is_never_replaced(what: str, tmp_path: Path) -> None:
    make, message = FOREIGN[what]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/weightguard.json").write_text("old")
    make(tmp_path / "out")
    before = names(tmp_path)
    for force, words in ((True, message), (False, "exists; give another -o or --force to replace it")):
        with pytest.raises(OutputError) as error:
            publish(tmp_path / "out", force=force)
        assert str(error.value) == f"{tmp_path}/out: {words}"
    assert names(tmp_path) == before and (tmp_path / "elsewhere/weightguard.json").read_text() == "old"


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("what", ["a folder with something in it", "a file", "an empty folder"])
def test_what_appears_meanwhile_is_not_replaced(what: str, force: bool, tmp_path: Path, kernel: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError), Stage(out, force=force) as stage:
        (stage.path / "weightguard.json").write_text("new")
        out.mkdir() if "folder" in what else out.write_text("other")
        if "something" in what:
            (out / "other").write_text("other")
        stage.publish()
        assert what == "an empty folder" and force
        raise OutputError("replaced, as force may")
    assert names(tmp_path) == ["out"]


def test_a_name_taken_at_the_last_moment(tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the last look and the rename."""
    out, real = tmp_path / "out", os.path.lexists
    with (
        pytest.raises(OutputError, match=r"/out: appeared while this run was writing; nothing was replaced$"),
        Stage(out) as stage,
    ):
        (out / "sub").mkdir(parents=True)
        monkeypatch.setattr(os.path, "lexists", lambda path: False if Path(path) == out else real(path))
        stage.publish()
    assert names(out) == ["sub"] and names(tmp_path) == ["out"]


def test_locked(tmp_path: Path) -> None:
    message = rf"^{tmp_path}/{STAGE}: another run is writing this output; wait for it or give another -o$"
    with Stage(tmp_path / "out") as first:
        (first.path / "file").write_text("mine")
        with pytest.raises(OutputError, match=message), Stage(tmp_path / "out"):
            pass
        assert (first.path / "file").read_text() == "mine"
        with Stage(tmp_path / "another"):
            pass
    publish(tmp_path / "out")


def test_a_stage_that_nobody_holds_is_emptied(tmp_path: Path) -> None:
    (tmp_path / STAGE / "deep/er").mkdir(parents=True)
    (tmp_path / STAGE / "deep/er/file").write_text("x")
    (tmp_path / STAGE / "link").symlink_to(tmp_path)
    publish(tmp_path / "out")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["sub", "weightguard.json"]


@pytest.mark.parametrize(
    "make", [lambda p: p.write_text("x"), lambda p: p.symlink_to("elsewhere"), lambda p: p.symlink_to("gone")]
)
def test_something_else_in_the_place_of_the_stage(make: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    make(tmp_path / STAGE)
    with pytest.raises(OutputError, match=r"is in the way and is not a directory; remove it$"):
        publish(tmp_path / "out")
    assert names(tmp_path) == [STAGE, "elsewhere"] and names(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("force", [True, False])
def test_an_error_when_the_lock_is_closed(force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output is whole by then, and the descriptor is gone all the same."""
    publish(tmp_path / "out", "old") if force else None
    real, locks, before = os.close, list[int](), len(os.listdir("/proc/self/fd"))

    def close(descriptor: int) -> None:
        real(descriptor)
        if descriptor in locks:
            locks.remove(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    hold = module._hold
    monkeypatch.setattr(module, "_hold", lambda path: (locks.append(hold(path)), locks[-1])[1])
    monkeypatch.setattr(os, "close", close)
    publish(tmp_path / "out", force=force)
    assert names(tmp_path) == ["out"] and (tmp_path / "out/sub/file").read_text() == "new"
    assert locks == [] and len(os.listdir("/proc/self/fd")) == before


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SystemFailure, match=r"out: cannot be written: No locks available$"):
        publish(tmp_path / "out")
    assert names(tmp_path) == []


@pytest.mark.parametrize("kept", ["old", None])
def test_an_earlier_output_left_between_two_renames(kept: str | None, tmp_path: Path) -> None:
    """A run that died in the window: without a target the earlier output comes back, beside one it goes."""
    publish(tmp_path / "out", "earlier")
    (tmp_path / "out").rename(tmp_path / f"{STAGE}-old")
    if kept:
        publish_quietly(tmp_path / "out", kept)
    with pytest.raises(OutputError, match="exists"):
        publish(tmp_path / "out")
    assert names(tmp_path) == ([f"{STAGE}-old", "out"] if kept else ["out"])
    assert (tmp_path / "out/sub/file").read_text() == (kept or "earlier")
    publish(tmp_path / "out", force=True)
    assert names(tmp_path) == ["out"]


def publish_quietly(out: Path, content: str) -> None:
    (out / "sub").mkdir(parents=True)
    (out / "sub/file").write_text(content)
    (out / "weightguard.json").write_text(content)


def test_everything_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are synced by who writes them; the stage syncs every folder in it, renames, and syncs the parent."""
    order: list[str] = []
    real_sync, real_rename = os.fsync, module._renameat2
    monkeypatch.setattr(os, "fsync", lambda d: (order.append(os.readlink(f"/proc/self/fd/{d}")), real_sync(d))[1])
    monkeypatch.setattr(module, "_renameat2", lambda *a: (order.append("rename"), real_rename(*a))[1])
    publish(tmp_path / "out")
    assert order == [str(tmp_path / STAGE), str(tmp_path / STAGE / "sub"), "rename", str(tmp_path)]


def test_several_processes_one_winner(tmp_path: Path, kernel: str) -> None:
    """Without any delay between taking the lock and the rename, over and over."""
    for turn in range(10):
        out = tmp_path / f"out{turn}"
        children = [_child(out) for _ in range(4)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert sorted(codes) == [0, 4, 4, 4]
    assert names(tmp_path) == sorted(f"out{turn}" for turn in range(10))


def _child(out: Path) -> int:
    child = os.fork()
    if child == 0:
        code = 99
        try:
            publish(out)
            code = 0
        except OutputError:
            code = 4
        finally:
            os._exit(code)
    return child


def test_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file/out", tmp_path / "file/deep/out"):
        with pytest.raises(SystemFailure) as error:
            check_target(out, force=False)
        assert str(error.value) == f"{out}: cannot be written, file is not a directory; give another name"


APART = {
    "model": "is",
    "./model/": "is",
    "model/../model": "is",
    "link": "is",
    "model/out": "lies in",
    "link/deep/out": "lies in",
    ".": "holds",
    "..": "holds",
    "/": "holds",
}


@pytest.mark.parametrize("out", APART)
def test_apart(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("link").symlink_to("model")
    with pytest.raises(UsageError) as error:
        check_apart(Path(out), [Path("/proc/self"), Path("model")] if out != "/" else [Path("model")])
    assert str(error.value) == f"-o {Path(out)}: {APART[out]} the input model; give a place apart from it"


def test_beside_is_apart(tmp_path: Path) -> None:
    check_apart(tmp_path / "model-repaired", [tmp_path / "model", tmp_path / "model-r"])


def test_space(tmp_path: Path) -> None:
    check_space(tmp_path / "not/there/yet", 1)
    with pytest.raises(
        SystemFailure, match=rf"^{tmp_path}: \d+\.\d\d GB free, 1000000000\.00 GB needed; give an -o on a"
    ):
        check_space(tmp_path / "not/there/yet", 10**18)
