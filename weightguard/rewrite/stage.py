"""A directory that appears whole or not at all.

Everything is written into `.NAME.weightguard-stage` beside the target, which holds an exclusive lock while its writer
lives. A killed run leaves a stage that nobody holds; the next run at the same target empties it. One rename publishes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Container
from pathlib import Path
from types import TracebackType

from weightguard.checkpoint.writer import beside, check_parent, sync_directory
from weightguard.errors import OutputError, SystemFailure

MANIFEST = "weightguard.json"
_NOREPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100
_NOT_OFFERED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


class Stage:
    """Use as a context manager: write into `path`, then `publish()`. Leaving without publishing removes the stage.

    resume: what a killed run left in `path` is still there at the start; `clear` what is not wanted.
    """

    def __init__(self, target: Path, *, force: bool = False, resume: bool = False) -> None:
        self.target, self.force, self.resume = Path(os.path.abspath(target)), force, resume
        check_target(self.target, self.force)
        self.path = beside(self.target, ".weightguard-stage")
        # Where the earlier output waits between two renames, on file systems that cannot exchange two names.
        self._old = self.path.with_name(self.path.name + "-old")
        self._made = [p for p in self.target.parents if not os.path.lexists(p)]
        self._lock: int | None = None

    def __enter__(self) -> Stage:
        try:
            self._lock = _locked(self.path)
            self._recover()
            check_target(self.target, self.force)
            if not self.resume:
                self.clear()
        except OSError as error:  # it names the stage, of which the user knows nothing
            self._discard()
            raise self._unwritten(error) from error
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._discard()
        if isinstance(error, OSError) and error.filename is None:
            raise self._unwritten(error) from error

    def _unwritten(self, error: OSError) -> SystemFailure:
        return SystemFailure(f"{self.target}: cannot be written: {error.strerror or error}")

    def clear(self, kept: Container[str] = ()) -> None:
        """Remove everything but the files of these names."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name not in kept:
                entry.unlink()

    def left_over(self) -> int:
        """Bytes that a killed run left, which this one removes or keeps in place of its own."""
        return sum(entry.lstat().st_size for entry in self.path.rglob("*")) if self.path.is_dir() else 0

    def publish(self) -> None:
        """fsync the stage, rename it to the target, fsync the parent; what fails on the way is taken back.

        Error: OutputError when the name was taken.
        """
        for folder, _, _ in os.walk(self.path):
            sync_directory(Path(folder))
        if os.path.lexists(self.target):
            self._replace()
        else:
            self._appear(lambda: _rename_new(self.path, self.target))
        self._made = []
        self._unlock()

    def _replace(self) -> None:
        check_target(self.target, self.force)
        # Held until it is gone: after an exchange the old output lies where another run would put its stage.
        lock = _hold(self.target)
        try:
            self._appear(self._exchange)
            shutil.rmtree(self._old if os.path.lexists(self._old) else self.path)
        except OSError as error:
            if self._published():
                raise SystemFailure(
                    f"{self.target}: written, but removing the earlier output failed: {error}"
                ) from error
            raise
        finally:
            _let_go(lock)

    def _exchange(self) -> None:
        if not _renameat2(self.path, self.target, _EXCHANGE):
            # No atomic exchange here: between these two renames the target does not exist.
            self.target.rename(self._old)
            self.path.rename(self.target)

    def _appear(self, rename: Callable[[], None]) -> None:
        try:
            rename()
            sync_directory(self.target.parent)
        except BaseException:
            if self._published():
                self._take_back()
            self._recover()
            raise

    def _published(self) -> bool:
        """Whether the directory that we hold the lock of is the one at the target."""
        return self._lock is not None and _same(self._lock, self.target)

    def _take_back(self) -> None:
        if not os.path.lexists(self.path) or not _renameat2(self.path, self.target, _EXCHANGE):
            self.target.rename(self.path)

    def _recover(self) -> None:
        """What a run left that ended between two renames: the earlier output is put back, or removed."""
        if os.path.lexists(self._old):
            shutil.rmtree(self._old) if os.path.lexists(self.target) else self._old.rename(self.target)

    def _discard(self) -> None:
        if self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()  # without a descriptor, of which rmtree needs one and may have got none
            if os.path.lexists(self.target):
                shutil.rmtree(self._old, ignore_errors=True)
        for folder in self._made:  # where another run has its stage in one, it stays
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            lock, self._lock = self._lock, None
            _let_go(lock)


def check_target(target: Path, force: bool) -> None:
    """Refuse an existing target unless forced; with force only a directory that weightguard wrote may go."""
    check_parent(target)
    if not os.path.lexists(target):
        return
    if not force:
        raise OutputError(f"{target}: exists; give another -o or --force to replace it")
    if target.is_symlink() or not target.is_dir():
        raise OutputError(f"{target}: is not a directory; --force replaces an earlier output only")
    if any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise OutputError(f"{target}: has no weightguard.json; --force replaces only what weightguard wrote")
    foreign = _foreign(target)
    if foreign is not None:
        raise OutputError(
            f"{target}: holds {foreign}, which weightguard did not write and --force would delete; move it away"
        )


def _foreign(target: Path) -> Path | None:
    """A file below the target that its manifest does not name; None where there is none, or no manifest that can be read."""
    try:
        own = {*json.loads((target / MANIFEST).read_bytes())["outputs"]["files"], MANIFEST}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    found = (path.relative_to(target) for path in sorted(target.rglob("*")) if path.is_symlink() or not path.is_dir())
    return next((path for path in found if str(path) not in own), None)


def _locked(path: Path) -> int:
    for _ in range(100):
        path.parent.mkdir(parents=True, exist_ok=True)
        made = _make(path)
        try:
            descriptor = _hold(path)
        except FileNotFoundError:
            continue  # another run published or removed it in between
        except BaseException as error:
            if made and not isinstance(error, OutputError):
                path.rmdir()
            raise
        if _same(descriptor, path):
            return descriptor
        _let_go(descriptor)
    raise SystemFailure(f"{path}: cannot be locked")


def _make(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _hold(path: Path) -> int:
    """A descriptor of a directory with an exclusive lock on it; the lock goes with the descriptor."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except NotADirectoryError:
        raise OutputError(f"{path}: is in the way and is not a directory; remove it") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise OutputError(f"{path}: another run is writing this output; wait for it or give another -o") from None
        raise
    return descriptor


def _let_go(lock: int) -> None:
    """Close a descriptor of `_hold`. Nothing was written through it, and it is gone also where the kernel tells an error."""
    with contextlib.suppress(OSError):
        os.close(lock)


def _same(descriptor: int, path: Path) -> bool:
    try:
        here, there = os.fstat(descriptor), os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _rename_new(source: Path, target: Path) -> None:
    try:
        if _renameat2(source, target, _NOREPLACE):
            return
    except FileExistsError:
        raise OutputError(f"{target}: appeared while this run was writing; nothing was replaced") from None
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        raise OutputError(f"{target}: appeared while this run was writing; nothing was replaced") from None


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """True when done, False when the kernel or file system does not offer it."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_OFFERED:
        return False
    raise OSError(number, os.strerror(number), str(target))


def check_space(directory: Path, needed: int) -> None:
    """Refuse before writing when the file system takes nothing, or cannot hold `needed` bytes. Error: SystemFailure."""
    while not directory.exists():
        directory = directory.parent
    stat = os.statvfs(directory)
    if stat.f_flag & os.ST_RDONLY:  # said first: room would not help
        raise SystemFailure(f"{directory}: cannot be written: {os.strerror(errno.EROFS)}")
    free = stat.f_bavail * stat.f_frsize
    if stat.f_blocks and free < needed:  # /proc and its like have no blocks at all: writing there fails in other words
        scale, unit = (1e9, "GB") if needed >= 1e9 else (1e6, "MB")
        raise SystemFailure(
            f"{directory}: {free / scale:.2f} {unit} free, {needed / scale:.2f} {unit} needed; give an -o on a larger disk"
        )
