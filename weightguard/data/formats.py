"""Files of the accepted formats, opened with care and read as numbered raw records."""

from __future__ import annotations

import codecs
import csv
import gzip
import itertools
import json
import os
import re
import stat
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from typing import Any, NamedTuple

from weightguard.data.shapes import KNOWN_KEYS, kind_of, shown
from weightguard.errors import DataError, SystemFailure, UsageError

LINE_LIMIT = 16 * 2**20
JSON_LIMIT = 2**30
_PIECE = 1 << 20
DEPTH_LIMIT = 64
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
PACKED = (".jsonl.gz", ".json.gz")

# Brackets, and strings whole (closed or not) so that brackets inside them do not count; possessive, so never slow.
_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class Record(NamedTuple):
    where: str
    number: int
    value: Any


class _Twice(dict):
    """An object in which `key` was written twice."""

    key: str


def suffix_of(name: str) -> str | None:
    """The accepted suffix a file name ends in, without regard to case, or None."""
    return next((suffix for suffix in (*PACKED, *SUFFIXES) if name.lower().endswith(suffix)), None)


def printable(path: str) -> str:
    """A path as text that fits in one line and in JSON, whatever bytes it holds."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return text if text.isprintable() else ascii(text)


@contextmanager
def open_regular(path: str, name: str) -> Iterator[BufferedIOBase]:
    """A regular file, open for reading; never waits on a pipe. `name` is what messages call it.

    Raises DataError: nothing there, a directory, not a regular file. SystemFailure: what the system refused.
    """
    if "\0" in path:
        raise DataError(f"{name}: no such file; a path holds no NUL")
    try:
        _check_regular(os.stat(path).st_mode, name)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as stream:
            _check_regular(os.fstat(descriptor).st_mode, name)  # what was opened, whatever stat saw before
            yield stream
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{name}: no such file (or a link to nothing); check the path") from error
    except OSError as error:
        raise SystemFailure(f"{name}: cannot be read ({error.strerror or error})") from error


def _check_regular(mode: int, name: str) -> None:
    if stat.S_ISDIR(mode):
        raise DataError(f"{name}: is a directory, a file is needed ({' '.join(SUFFIXES)})")
    if not stat.S_ISREG(mode):
        raise DataError(f"{name}: is not a regular file (a pipe or a device); write the rows to a file first")


def records(stream: BufferedIOBase, name: str, suffix: str) -> Generator[Record, None, None]:
    """The records of an open file, in order, blank lines left out. Raises DataError naming file and line or row."""
    try:
        plain: BufferedIOBase = gzip.GzipFile(fileobj=stream, mode="rb") if suffix.endswith(".gz") else stream
        yield from _READERS[suffix.split(".")[1]](plain, name)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{name}: damaged compressed data ({shown(str(error), 120)}); fetch it again") from error


def _lines(stream: BufferedIOBase, name: str) -> Iterator[tuple[int, str]]:
    for number in itertools.count(1):
        raw = stream.readline(LINE_LIMIT + 1)
        if not raw:
            return
        if len(raw) > LINE_LIMIT:
            raise DataError(f"{name}, line {number}: longer than 16 MB; split the row")
        yield number, _decoded(raw, name, number)


def _decoded(raw: bytes, name: str, number: int) -> str:
    """`raw` as text; it begins at line `number` of the file."""
    try:
        return (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).decode()
    except UnicodeDecodeError as error:
        line = number + error.object.count(b"\n", 0, error.start)
        raise DataError(
            f"{name}, line {line}: not UTF-8 (byte 0x{error.object[error.start]:02x}); save it as UTF-8"
        ) from None


def _read_jsonl(stream: BufferedIOBase, name: str) -> Iterator[Record]:
    for number, line in _lines(stream, name):
        if line.strip():
            where = f"{name}, line {number}"
            value = parse_json(line, where)
            _refuse_twice(value, where)
            yield Record(where, number, value)


def _read_json(stream: BufferedIOBase, name: str) -> Iterator[Record]:
    raw = b""
    while len(raw) <= JSON_LIMIT and (piece := stream.read(max(_PIECE, len(raw)))):
        raw += piece  # in pieces: a read makes room for all that it is asked for
    if len(raw) > JSON_LIMIT:
        raise DataError(f"{name}: over 1 GB in one JSON value; write it as .jsonl, one object a line")
    text = _decoded(raw, name, 1)
    if not text.strip():
        return
    value = parse_json(text, name, margin=2)
    if isinstance(value, _Twice):
        raise _twice(value, name)
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise DataError(f'{name}: found {kind_of(value)}, a list of objects or {{"data": [...]}} is needed')
    for number, row in enumerate(rows, 1):
        where = f"{name}, row {number}"
        _refuse_twice(row, where)
        yield Record(where, number, row)


def parse_json(text: str, where: str, margin: int = 0) -> Any:
    """A JSON value of bounded depth (64, and `margin` more). Raises DataError, never RecursionError.

    An object with a key written twice comes back marked, see `_refuse_twice`.
    """
    if _depth(text) > DEPTH_LIMIT + margin:
        raise DataError(f"{where}: JSON nested deeper than {DEPTH_LIMIT}; a row is a flat object")
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if margin else ""
        raise DataError(f"{where}: not valid JSON ({error.msg}, {place}column {error.colno}); correct it") from None
    except ValueError:  # more digits than Python converts
        raise DataError(f"{where}: not valid JSON (a number of thousands of digits); correct it") from None


def _depth(text: str) -> int:
    if text.count("[") + text.count("{") <= DEPTH_LIMIT:
        return 0
    deepest = depth = 0
    for match in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match.group()[0], 0)
        deepest = max(deepest, depth)
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    marked, seen = _Twice(made), set[str]()
    marked.key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return marked


def _refuse_twice(value: Any, where: str) -> None:
    """Two values under one key: which one is meant is not ours to choose."""
    if isinstance(value, _Twice):
        raise _twice(value, where)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        _refuse_twice(item, where)


def _twice(value: _Twice, where: str) -> DataError:
    return DataError(f"{where}: key `{shown(value.key)}` is written twice; keep one")


def _read_txt(stream: BufferedIOBase, name: str) -> Iterator[Record]:
    for number, line in _lines(stream, name):
        if line.strip():
            yield Record(f"{name}, line {number}", number, {"text": line.rstrip("\r\n")})


def _read_csv(stream: BufferedIOBase, name: str) -> Iterator[Record]:
    previous = csv.field_size_limit(LINE_LIMIT)  # the default refuses a cell over 128 KB
    try:
        reader = csv.reader((line for _, line in _lines(stream, name)), strict=True)
        yield from _csv_records(reader, name)
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: not valid CSV ({error}); correct it") from None
    finally:
        csv.field_size_limit(previous)


def _csv_records(reader: Iterator[list[str]], name: str) -> Iterator[Record]:
    header = next(reader, [])
    if len(set(header)) != len(header):
        raise DataError(f"{name}, line 1: a column name is written twice; keep one")
    for number, cells in enumerate((cells for cells in reader if cells), 1):
        where = f"{name}, row {number}"
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, but the header names {len(header)}; quote cells with commas")
        yield Record(where, number, dict(zip(header, cells, strict=True)))


def _read_parquet(stream: BufferedIOBase, name: str) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(f"{name}: .parquet needs pyarrow; run: pip install 'weightguard[data]'") from error
    try:
        yield from _parquet_records(pyarrow.parquet.ParquetFile(stream), name)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{name}: not a readable parquet file ({shown(str(error), 120)}); fetch or write it again"
        ) from error


def _parquet_records(file: Any, name: str) -> Iterator[Record]:
    names = file.schema_arrow.names
    wanted = [column for column in names if column in KNOWN_KEYS]
    if len(set(wanted)) != len(wanted):
        raise DataError(f"{name}: a column name is there twice; keep one")
    if not wanted:  # let the row reader name the columns that were found
        yield Record(f"{name}, row 1", 1, dict.fromkeys(names))
    number = 0
    for batch in file.iter_batches(batch_size=1024, columns=wanted):
        for value in batch.to_pylist():
            number += 1
            yield Record(f"{name}, row {number}", number, value)


_READERS: dict[str, Callable[[BufferedIOBase, str], Iterator[Record]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "txt": _read_txt,
}
