"""Small safetensors files of our own (statistics, plans): numpy arrays in, the same bytes on every run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from weightguard.checkpoint.header import read_header
from weightguard.checkpoint.reader import read_exactly
from weightguard.errors import CheckpointError, InputError, OutputError, SystemFailure, UsageError

if TYPE_CHECKING:
    import numpy

LONG_NAME = 100  # bytes
_CODES = {"float64": "F64", "float32": "F32", "int64": "I64", "uint8": "U8"}


def safetensors_bytes(arrays: Mapping[str, numpy.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file in memory."""
    return b"".join(safetensors_parts(arrays, metadata))


def safetensors_parts(arrays: Mapping[str, numpy.ndarray], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file in pieces, header and then each array as it lies in memory or on disk.

    Tensors in the order given, header padded with spaces to 8 bytes.
    """
    import numpy

    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name, array in arrays.items():
        header[name] = {"dtype": _CODES[array.dtype.name], "shape": list(array.shape),
                        "data_offsets": [position, position + array.nbytes]}  # fmt: skip
        position += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for array in arrays.values():
        yield numpy.ascontiguousarray(array).data


def read_arrays(path: Path, what: str) -> tuple[dict[str, numpy.ndarray], dict[str, str]]:
    """Arrays and metadata of such a file. Errors: InputError that names the file and `what` it should have been."""
    import numpy

    if not path.is_file():
        raise InputError(f"{path}: {'not a regular' if path.exists() else 'no such'} file; it should be {what}")
    types = {code: name for name, code in _CODES.items()}
    with path.open("rb") as file:
        try:
            header = read_header(file.fileno(), path.name)
        except CheckpointError as error:
            raise InputError(f"{str(error).rpartition(';')[0] or error}; it should be {what}: make it again") from error
        arrays = {}
        for name, info in header.tensors.items():
            if info.dtype not in types:
                raise CheckpointError(f"{path.name}: {name!r} is {info.dtype}; this is not {what}")
            data = bytearray(info.nbytes)
            read_exactly(file.fileno(), memoryview(data), info.start, path.name)
            arrays[name] = numpy.frombuffer(data, types[info.dtype]).reshape(info.shape)
    return arrays, header.metadata


def write_file(path: Path, data: bytes | Iterable[bytes | memoryview], *, force: bool = False) -> None:
    """Write a whole file, given at once or in parts, or nothing: a temporary beside it, fsync, then one rename.

    Refuses to replace without force.
    """
    check_free(path, force=force)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path, f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path) if force else _publish_new(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise SystemFailure(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_free(path: Path, *, force: bool) -> None:
    """Refuse a name that is taken or cannot be, before the work that would fill it. Errors: OutputError, SystemFailure."""
    if os.path.lexists(path) and (not force or not path.is_file()):
        raise OutputError(f"{path}: exists; give another name{'' if path.is_dir() else ' or --force'}")
    check_parent(path)


def beside(path: Path, ending: str) -> Path:
    """A hidden name in the same directory, the same for every run; of a long name only a digest is in it, so that it fits."""
    name = os.fsencode(path.name)
    short = path.name if len(name) <= LONG_NAME else hashlib.sha256(name).hexdigest()[:32]
    return path.with_name(f".{short}{ending}")


def check_parent(path: Path) -> None:
    """Refuse a name that is too long, or below something that is there and is no directory. Error: SystemFailure."""
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise SystemFailure(f"{path}: cannot be written: {error.strerror}") from None
    above = next((p for p in path.absolute().parents if os.path.lexists(p)), None)
    if above is not None and not above.is_dir():
        raise SystemFailure(f"{path}: cannot be written, {above.name} is not a directory; give another name")


def check_directory(path: Path) -> None:
    """Refuse a name in a directory that is not there, for what people name by hand: a typing error makes no directory."""
    if not path.parent.is_dir():
        raise SystemFailure(f"{path}: cannot be written, there is no directory {path.parent}; make it first")


def check_apart(target: Path, inputs: Iterable[Path], flag: str = "-o") -> None:
    """Refuse a target that is an input, lies in one or holds one: an input is never changed. Error: UsageError."""
    place = Path(os.path.realpath(target))
    for path in inputs:
        found = Path(os.path.realpath(path))
        if place == found or place in found.parents or found in place.parents:
            how = "is" if place == found else "holds" if place in found.parents else "lies in"
            raise UsageError(f"{flag} {target}: {how} the input {path}; give a place apart from it")


def sync_directory(path: Path) -> None:
    """fsync a directory, so that the names in it survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # fails where the name is taken, which rename would not
    except FileExistsError:
        raise OutputError(f"{path}: exists; give another name or --force") from None
    except OSError:
        temporary.rename(path)  # a file system without hard links
