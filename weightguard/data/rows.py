"""A data set reference (a file, or a hub data set id) into calibration rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from io import BufferedIOBase

from weightguard.data.formats import PACKED, SUFFIXES, Record, open_regular, printable, records, suffix_of
from weightguard.data.hub import BEAVERTAILS, HubSplit, is_hub_id, open_hub
from weightguard.data.shapes import Row, row_from
from weightguard.errors import DataError, UsageError

__all__ = ["Dataset", "Row", "read_rows"]


@dataclass(frozen=True)
class Dataset:
    """Rows in file order, and what they were read from.

    source: file name without directory, or hub `org/name@commit`.
    sha256: of the file as stored; of a hub data set, of the bytes of every file read, one after the other.
    skipped: rows left out (blank prompt or text, or filtered); blank lines are not rows.
    notes: what a manifest should say about how the rows were chosen.
    """

    rows: tuple[Row, ...]
    source: str
    sha256: str
    skipped: int
    notes: tuple[str, ...]


def read_rows(ref: str, *, split: str | None = None, limit: int | None = None) -> Dataset:
    """Read `ref`: a .jsonl .json .csv .parquet .txt file (.jsonl.gz, .json.gz too), or `org/name[@revision]`.

    A local path that exists wins over a hub id. `split` names a part of a hub data set, `limit` keeps the first rows.

    Raises DataError: missing, damaged or shapeless data, with file and line. UsageError: limit below 1, a split of a
    local file, .parquet without pyarrow. SystemFailure: the disk or the hub could not be read.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; give 1 or more, or leave it out")
    reading = _Reading(limit)
    if os.path.lexists(ref):
        return _read_local(ref, split, reading)
    if is_hub_id(ref):
        return _read_hub(open_hub(ref, split), reading)
    raise DataError(f"{printable(ref)}: no such file, and not a hub data set id (org/name); check the path")


@dataclass
class _Reading:
    """What has been read so far, over one file or several."""

    limit: int | None
    keep: Callable[[Row], bool] = lambda row: True
    rows: list[Row] = field(default_factory=list)
    blank: int = 0
    filtered: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    @property
    def full(self) -> bool:
        return self.limit is not None and len(self.rows) >= self.limit

    def take(self, found: Iterable[Record]) -> None:
        for record in found:
            row = row_from(record.value, record.number, record.where)
            self.blank += row is None
            if row is not None:
                kept = self.keep(row)
                self.filtered += not kept
                self.rows += [row] if kept else []
            if self.full:
                return

    def dataset(self, source: str, name: str, notes: Iterable[str] = ()) -> Dataset:
        if not self.rows:
            left_out = f" ({self.blank} blank, {self.filtered} filtered out)" if self.blank + self.filtered else ""
            raise DataError(f"{name}: empty data, no rows{left_out}; give at least one row")
        return Dataset(
            rows=tuple(self.rows),
            source=source,
            sha256=self.digest.hexdigest(),
            skipped=self.blank + self.filtered,
            notes=(*notes, *self._notes()),
        )

    def _notes(self) -> Iterator[str]:
        if self.full:
            yield f"limit {self.limit}: the first {len(self.rows)} rows"
        if self.blank:
            yield f"{self.blank} rows with a blank prompt or text left out"


def _read_local(path: str, split: str | None, reading: _Reading) -> Dataset:
    name = printable(path)
    if split is not None:
        raise UsageError(f"{name}: split {split!r} is for hub data sets; a file has no splits")
    _read_file(path, name, os.path.basename(path), reading)
    return reading.dataset(printable(os.path.basename(path)), name)


def _read_hub(hub: HubSplit, reading: _Reading) -> Dataset:
    notes = [f"split {hub.split}"] if hub.split else []
    if hub.name == BEAVERTAILS:  # as published: the rows labelled unsafe, in order
        reading.keep = lambda row: row.is_safe is False
        notes.append("rows with is_safe false")
    for file in hub.files:
        if reading.full:
            break
        _read_file(hub.fetch(file), f"{hub.name}: {printable(file)}", file, reading)
        notes.append(f"file {printable(file)}")
    return reading.dataset(hub.source, hub.name, notes)


def _read_file(path: str, name: str, named: str, reading: _Reading) -> None:
    """`named` carries the suffix: a cached hub file may lie under any name."""
    with open_regular(path, name) as stream:
        suffix = suffix_of(named)
        if suffix is None:
            raise DataError(f"{name}: unknown suffix; give one of {' '.join((*SUFFIXES, *PACKED))}")
        _hash(stream, reading)
        stream.seek(0)
        with closing(records(stream, name, suffix)) as found:
            reading.take(found)


def _hash(stream: BufferedIOBase, reading: _Reading) -> None:
    while block := stream.read(2**20):
        reading.digest.update(block)
