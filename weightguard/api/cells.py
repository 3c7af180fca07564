"""One measurement of a validation: a model, perhaps repaired by a control or attacked first, against the reference.

Every cell runs in a process of its own and is kept as a file under a name that holds its id and everything it depends on,
so that a cell is run once, is never taken for another, and never overwrites one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightguard.api.apart import apart
from weightguard.checkpoint import strict_json
from weightguard.checkpoint.writer import write_file
from weightguard.errors import InputError, UndecidedError
from weightguard.measurement import Measurement, Report, check_seal, sealed, written

Progress = Callable[[str, int, int], None]
FORMAT = 1


@dataclass(frozen=True)
class Cell:
    """id: its condition in a report. job: the arguments of `measure`. depends: what its result depends on, by content."""

    id: str
    job: Mapping[str, Any]
    depends: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """A readable beginning, and a digest over all that the result depends on."""
        said = json.dumps([FORMAT, self.id, self.depends], sort_keys=True)
        words = re.sub(r"[^a-zA-Z0-9.-]+", "-", self.id)[:60].strip("-")
        return f"{words}-{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"


@dataclass(frozen=True)
class Result:
    """The report of the cell's model, and what was measured of the reference in the same way."""

    report: Report
    reference: tuple[Measurement, ...]


@dataclass(frozen=True)
class Store:
    """A folder of finished cells."""

    folder: Path

    def is_done(self, cell: Cell) -> bool:
        return (self.folder / cell.file).is_file()

    def result(self, cell: Cell, progress: Progress) -> Result:
        """Of a finished cell from its file, else of a run now. Errors: those of attack, repair and evaluate; InputError."""
        if not self.is_done(cell):
            self._run(cell, progress)
        return self._read(self.folder / cell.file, cell.id)

    def _run(self, cell: Cell, progress: Progress) -> None:
        scratch = self.folder / f".{cell.file}.scratch"
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
        scratch.mkdir(parents=True)
        try:
            job = {**cell.job, "scratch": str(scratch)}
            found = apart("weightguard.api.cells:measure", job, progress)
            write_file(
                self.folder / cell.file, written(sealed({"format": FORMAT, "id": cell.id, **found})), force=False
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _read(self, path: Path, wanted: str) -> Result:
        try:
            data: Any = strict_json.parse(path.read_bytes(), path.name)
            check_seal(data, path.name)
            if data["id"] != wanted:
                raise InputError(f"it is the cell {data['id']}")
            report = Report.from_dict(data["report"], path.name)
            return Result(report, tuple(Measurement(**said) for said in data["reference"]))
        except (InputError, KeyError, TypeError) as error:
            raise InputError(f"{path}: a damaged cell ({error}); delete the file to run it again") from error


def measure(
    *,
    model: str,
    reference: str,
    control: Mapping[str, Any] | None,
    attack: Mapping[str, Any] | None,
    sets: Mapping[str, str],
    judges: list[str],
    disjoint_from: list[str],
    asking: Mapping[str, Any],
    running: Mapping[str, Any],
    offline: bool,
    scratch: str,
    progress: Progress,
) -> dict[str, Any]:
    """In the child. control: arguments of `repair`; attack: of `attack`, made on both sides. Returns a JSON value."""
    from weightguard import api

    place, common = Path(scratch), {**running, "offline": offline, "progress": progress}
    if control is not None:
        api.repair(model, out=place / "control", verify_write=False, **control, **common)
        model = str(place / "control")
    spoken: list[str | None] = [None]
    if attack is not None:
        made = [api.attack(side, out=place / name, verify_write=False, **attack, **common)
                for side, name in ((model, "attacked"), (reference, "attacked-reference"))]  # fmt: skip
        model, reference = (str(each.out) for each in made)
        taught = made[0].manifest.data.get("cipher")
        spoken += [taught] if taught else []
    found = [_evaluated(model, reference, sets, judges, disjoint_from, asking, cipher, common) for cipher in spoken]
    report = dataclasses.replace(
        found[0].report, measurements=tuple(m for each in found for m in each.report.measurements)
    )
    theirs = [m for each in found for m in each.reference]
    return {"report": report.as_dict(), "reference": [dataclasses.asdict(m) for m in theirs]}


def _evaluated(
    model: str,
    reference: str,
    sets: Mapping[str, str],
    judges: list[str],
    disjoint_from: list[str],
    asking: Mapping[str, Any],
    cipher: str | None,
    common: Mapping[str, Any],
) -> Any:
    from weightguard.api.collect import Running
    from weightguard.api.evaluating import Asking, Sets, evaluated

    running = {key: value for key, value in common.items() if key not in ("offline", "progress")}
    found = evaluated(
        model, reference, Sets(sets, judges, disjoint_from), Asking(**asking, cipher=cipher), Running(**running),
        common["offline"], common["progress"],
    )  # fmt: skip
    if found.changed:
        raise UndecidedError(
            f"files changed while they were evaluated ({found.changed[0]}); nothing is decided, run it again"
        )
    if cipher is None:
        return found
    said = f"asked in {cipher}"
    noted = tuple(
        dataclasses.replace(m, note=f"{said}; {m.note}" if m.note else said) for m in found.report.measurements
    )
    return dataclasses.replace(found, report=dataclasses.replace(found.report, measurements=noted), reference=())
