"""A new file written from its start to its end, past the page cache where the file system can.

What is written once and larger than memory gains nothing from the page cache: it costs a copy into fresh pages, more CPU
than the rest of a rewrite in a virtual machine, and pushes the input out. The second reading then reads the disk.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

from weightguard.errors import CheckpointError

BLOCK = 4096  # direct writes begin, end and lie in memory at multiples of it
ROOM = 1 << 20
DIRECT = getattr(os, "O_DIRECT", 0)
_NOT_IN_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class Output:
    """The bytes given, gathered into pieces that can be written directly. Nothing is sure to be there before `close`."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._room = memoryview(mmap.mmap(-1, ROOM))
        self._held = self._position = 0  # bytes that wait in the room, and where in the file they belong
        self._direct, self._can = False, bool(DIRECT)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            full = ROOM - self._position % BLOCK
            some = view[: full - self._held]
            self._room[self._held : self._held + len(some)] = some
            self._held += len(some)
            view = view[len(some) :]
            if self._held == full:
                self._flush(full)

    def copy(self, source: int, position: int, count: int, file: str) -> None:
        """The same for `count` bytes of another open file, which the kernel copies. Error: CheckpointError."""
        self._flush(self._held)
        self._written_directly(False)
        self._position += count
        while count:
            done = _copied(source, self.descriptor, count, position)
            if done == 0:
                raise CheckpointError(f"{file}: the file became shorter while it was read; copy it again")
            count, position = count - done, position + done

    def close(self) -> None:
        """Everything written and synced; the descriptor stays open."""
        self._flush(self._held // BLOCK * BLOCK)
        self._flush(self._held)
        os.fsync(self.descriptor)

    def _flush(self, count: int) -> None:
        """Write the first bytes of the room; a rest that stays moves to its front."""
        self._written_directly(self._position % BLOCK == count % BLOCK == 0)
        try:
            write_all(self.descriptor, self._room[:count])
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            self._without_direct(count)
        self._position, self._held = self._position + count, self._held - count
        self._room[: self._held] = bytes(self._room[count : count + self._held])

    def _without_direct(self, count: int) -> None:
        """Where the file system takes the flag and then no write that is made with it."""
        self._written_directly(False)
        self._can = False
        write_all(self.descriptor, self._room[os.lseek(self.descriptor, 0, os.SEEK_CUR) - self._position : count])

    def _written_directly(self, wanted: bool) -> None:
        if not self._can or wanted == self._direct:
            return
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags | DIRECT if wanted else flags & ~DIRECT)
            self._direct = wanted
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._can = False  # not on this file system


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write every byte; os.write may take fewer than it is given."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _copied(source: int, out: int, count: int, position: int) -> int:
    try:
        return os.copy_file_range(source, out, count, offset_src=position)
    except OSError as error:
        if error.errno not in _NOT_IN_KERNEL:
            raise
    return os.write(out, os.pread(source, min(ROOM, count), position))
