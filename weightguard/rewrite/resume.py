"""Going on after a kill: the finished shards of the stage that need not be written again.

A journal lies beside the shards, a line for each that has reached the disk. It goes last, once the stage was read again.
Its lines count when they come from the same plan, inputs and versions, and only as far as shard, input shard and aligned
tensors, all read again, still have the digests it says. So a resumed run ends in the bytes of one that was never killed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from weightguard.checkpoint import opened, read_exactly, strict_json
from weightguard.errors import CheckpointError, InputError
from weightguard.forms import SHA256, Record, check
from weightguard.kernels.sha256 import sha256, update
from weightguard.plan import Plan
from weightguard.rewrite.apply import Change
from weightguard.rewrite.manifest import versions
from weightguard.rewrite.output import write_all
from weightguard.rewrite.stream import CHUNK, Written, needs_edit
from weightguard.weights import Sources

NAME = ".finished.jsonl"
_COUNTS, _NORMS = ("entries", "selected", "changed"), ("weight_norm", "change_norm")
_CHANGE = Record(
    {**dict.fromkeys(_COUNTS, int), **dict.fromkeys(_NORMS, float)},
    {"update_norm_before": float, "update_norm_after": float},
)
_NEW = NAME + ".new"


class Journal:
    """The finished shards of the stage `directory`. inputs: identity by role, as in the manifest."""

    def __init__(self, directory: Path, plan: Plan, sources: Sources, inputs: Mapping[str, Any]) -> None:
        self.directory, self.plan, self.sources = directory, plan, sources
        # What a projection is made of besides the plan has no digest in any manifest: such shards are written again.
        self._counts = not plan.needs_unaligned
        run = {"plan": plan.digest(), "inputs": inputs, "versions": versions()}
        self._run = hashlib.sha256(strict_json.dump(run)).hexdigest()

    def add(self, file: str, written: Written) -> None:
        """Note a shard that is on the disk."""
        self._append(NAME, self._line(file, written))

    def _line(self, file: str, written: Written) -> bytes:
        names = {info.name for info in self.sources.model.by_file[file]}
        tables = {key: _of(getattr(written, key), names) for key in ("tensors_in", "tensors_out", "aligned")}
        changes = {name: change.as_dict() for name, change in _of(written.changes, names).items()}
        line = {"run": self._run, "file": file, "in": written.files_in[file], "out": written.files_out[file],
                **tables, "changes": changes}  # fmt: skip
        return b" ".join(strict_json.dump(line).split(b"\n")) + b"\n"

    def _append(self, name: str, data: bytes) -> None:
        with (self.directory / name).open("ab", buffering=0) as journal:
            write_all(journal.fileno(), data)

    def finished(self) -> Written:
        """What is known of the shards that can be kept: the first ones, up to one that is missing or not what it was."""
        kept = Written()
        if not self._counts:
            return kept
        for file, line in zip(self.sources.model.layout.files, self._lines(), strict=False):
            try:
                check(line, self._form(file), NAME)
                if line["run"] != self._run or line["file"] != file or not self._still(line):
                    break
            except (OSError, InputError):
                break
            _take(line, kept)
        return kept

    def remove(self) -> None:
        (self.directory / NAME).unlink(missing_ok=True)

    def begin(self, kept: Written) -> None:
        """A journal of the kept shards only, in place of the one that was found: a kill leaves the one or the other."""
        self._append(_NEW, b"".join(self._line(file, kept) for file in kept.files_out))
        (self.directory / _NEW).rename(self.directory / NAME)

    def _lines(self) -> Iterator[Any]:
        path = self.directory / NAME
        if path.is_symlink() or not path.is_file():
            return
        for line in path.read_bytes().splitlines():
            try:
                yield strict_json.parse(line, NAME)
            except CheckpointError:  # cut by the kill
                return

    def _form(self, file: str) -> Record:
        """Of the line of a shard: anything else in the journal is no line."""
        names = [info.name for info in self.sources.model.by_file[file]]
        edited = [name for name in names if needs_edit(name, self.plan.edits, self.sources)]
        each, changed = Record(dict.fromkeys(names, SHA256)), Record(dict.fromkeys(edited, _CHANGE))
        aligned = Record({}, dict.fromkeys(edited, SHA256))
        return Record({"run": SHA256, "file": str, "in": SHA256, "out": SHA256, "tensors_in": each, "tensors_out": each,
                       "aligned": aligned, "changes": changed})  # fmt: skip

    def _still(self, line: Mapping[str, Any]) -> bool:
        aligned = self.sources.aligned
        if any(aligned is None or aligned.digest(name) != digest for name, digest in line["aligned"].items()):
            return False
        return self._digests(line["file"]) == (line["in"], line["out"])

    def _digests(self, file: str) -> tuple[str, str]:
        """sha256 of the shard that went in and of the one that lies in the stage, read side by side."""
        hashes, buffer = (sha256(), sha256()), memoryview(bytearray(2 * CHUNK))
        with self.sources.model.opened(file) as source, opened(self.directory, file) as out:
            size = os.fstat(source).st_size
            if os.fstat(out).st_size != size:  # an edit never changes a size
                return "", ""
            for position in range(0, size, CHUNK):
                count = min(CHUNK, size - position)
                sides = buffer[:count], buffer[CHUNK : CHUNK + count]
                for descriptor, side in zip((source, out), sides, strict=True):
                    read_exactly(descriptor, side, position, file)
                update([*zip(hashes, sides, strict=True)])
        return hashes[0].hexdigest(), hashes[1].hexdigest()


def _of(table: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name in names}


def _take(line: Mapping[str, Any], kept: Written) -> None:
    changes = {name: Change(**said) for name, said in line["changes"].items()}
    for key in ("tensors_in", "tensors_out", "aligned"):
        getattr(kept, key).update(line[key])
    kept.changes.update(changes)
    kept.files_in[line["file"]], kept.files_out[line["file"]] = line["in"], line["out"]
