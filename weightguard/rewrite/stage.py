"""A directory that appears whole or not at all.

Everything is written into `.NAME.weightguard-stage` beside the target, which holds an exclusive lock while its writer
lives. A killed run leaves a stage that nobody holds; the next run at the same target empties it. One rename publishes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType

from weightguard.errors import OutputError, SystemFailure

_NOREPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100
_NOT_OFFERED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


class Stage:
    """Use as a context manager: write into `path`, then `publish()`. Leaving without publishing removes the stage."""

    def __init__(self, target: Path, *, force: bool = False) -> None:
        self.target, self.force = Path(os.path.abspath(target)), force
        self.path = self.target.with_name(f".{self.target.name}.weightguard-stage")
        self._lock: int | None = None

    def __enter__(self) -> Stage:
        check_target(self.target, self.force)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.path)
        try:
            check_target(self.target, self.force)
            _empty(self.path)
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None:
            self._discard()

    def publish(self) -> None:
        """fsync the stage, rename it to the target, fsync the parent. Error: OutputError when the name was taken."""
        sync_directory(self.path)
        if os.path.lexists(self.target):
            self._replace()
        else:
            _rename_new(self.path, self.target)
        sync_directory(self.target.parent)
        self._unlock()

    def _replace(self) -> None:
        check_target(self.target, self.force)
        if not _renameat2(self.path, self.target, _EXCHANGE):
            # No atomic exchange here: between these two renames the target does not exist.
            old = self.path.with_name(self.path.name + "-old")
            shutil.rmtree(old, ignore_errors=True)
            self.target.rename(old)
            self.path.rename(self.target)
            shutil.rmtree(old)
            return
        # After the exchange the old output lies at the stage's path.
        shutil.rmtree(self.path) if self.path.is_dir() and not self.path.is_symlink() else self.path.unlink()

    def _discard(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def check_target(target: Path, force: bool) -> None:
    """Refuse an existing target unless forced; with force only a directory that weightguard wrote may go."""
    if not os.path.lexists(target):
        return
    if not force:
        raise OutputError(f"{target}: exists; give another -o or --force to replace it")
    if target.is_symlink() or not target.is_dir():
        raise OutputError(f"{target}: is not a directory; --force replaces an earlier output only")
    if any(target.iterdir()) and not (target / "weightguard.json").is_file():
        raise OutputError(f"{target}: has no weightguard.json; --force replaces only what weightguard wrote")


def _locked(path: Path) -> int:
    for _ in range(100):
        with contextlib.suppress(FileExistsError):
            path.mkdir()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # another run published or removed it in between
        except NotADirectoryError:
            raise OutputError(f"{path}: is in the way and is not a directory; remove it") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise OutputError(f"{path}: another run is writing this output; wait for it or give another -o") from None
        if _same(descriptor, path):
            return descriptor
        os.close(descriptor)
    raise SystemFailure(f"{path}: cannot be locked")


def _same(descriptor: int, path: Path) -> bool:
    try:
        here, there = os.fstat(descriptor), os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _empty(path: Path) -> None:
    for entry in path.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _rename_new(source: Path, target: Path) -> None:
    try:
        if _renameat2(source, target, _NOREPLACE):
            return
    except FileExistsError:
        raise OutputError(f"{target}: appeared while this run was writing; nothing was replaced") from None
    source.rename(target)


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


def sync_directory(path: Path) -> None:
    """fsync a directory, so that the names in it survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_space(directory: Path, needed: int) -> None:
    """Refuse before writing when the file system cannot hold `needed` bytes. Error: SystemFailure."""
    while not directory.exists():
        directory = directory.parent
    stat = os.statvfs(directory)
    free = stat.f_bavail * stat.f_frsize
    if free < needed:
        raise SystemFailure(
            f"{directory}: {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB needed; give an -o on a larger disk"
        )
