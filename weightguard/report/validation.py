"""A validation as tables: every model side by side, every attack on the repaired and on the aligned one, four conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightguard.measurement import MODEL, Measurement, Report
from weightguard.report.figures import plain
from weightguard.report.table import columns, report_notes

_NAMES = (
    "harmful_score", "refusal_rate", "over_refusal_rate", "utility", "finetune_accuracy", "incoherence_rate",
    "harmful_loss", "alignment_loss",
)  # fmt: skip
_ATTACKED = {"harmful_score": "harmful", "refusal_rate": "refusal", "utility": "utility", "finetune_accuracy": "task"}
HEADING = "values with their 95 % intervals, shares in percent; of several judges the worst"


@dataclass(frozen=True)
class Grid:
    """Plain text in rows below headings."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def validation_table(report: Report) -> str:
    """Models, attacks, conditions, notes and data, for a terminal."""
    grids = [models(report), attacks(report), conditions(report)]
    blocks = [columns(grid.headings, grid.rows) for grid in grids if grid.rows]
    return "\n\n".join("\n".join(lines) for lines in [*blocks, [f"* {HEADING}", *report_notes(report)]])


def sides(report: Report) -> list[str]:
    """The conditions of the models that were compared, in the order in which they are shown."""
    there = dict.fromkeys(m.condition for m in report.measurements)
    return ["before", MODEL, *(c for c in there if c.startswith("control:")), "reference"]


def side_name(side: str) -> str:
    return "after" if side == MODEL else side.removeprefix("control:")


def models(report: Report) -> Grid:
    """A row a measurement, a column a model."""
    rows = []
    for name in _NAMES:
        found = [worst(report, name, side) for side in sides(report)]
        known = next((m for m in found if m is not None), None)
        if known is not None:
            unit = ", %" if known.unit == "share" else ""
            rows.append([f"{name}{unit}", *map(_value, found), known.better])
    return Grid(["measurement", *map(side_name, sides(report)), "better"], rows)


def attacks(report: Report) -> Grid:
    """A row a cell of the grid: the repaired model after the attack, and beside it the aligned one."""
    said = report.settings["validation"]
    rows = []
    for cell in said["cells"]:
        ours = [_value(worst(report, name, cell)) for name in _ATTACKED]
        theirs = _value(worst(report, "harmful_score", f"reference {cell}"))
        lost = "left out: no usable model" if cell in said["not_counted"] else ""
        rows.append([cell_name(cell), *ours, theirs, lost])
    return Grid(["after the attack", *_ATTACKED.values(), "reference harmful", ""], rows)


def cell_name(cell: str) -> str:
    """`lora-sft lr 0.002 poison 0.1 steps 60 r 8 seed 0`: the id, shorter."""
    words = {"learning_rate": "lr ", "poison_ratio": "poison ", "steps": "steps ", "lora_r": "r ", "seed": "seed "}
    parts = (each.partition("=") for each in cell.removeprefix("attack:").split(","))
    return plain(" ".join(f"{words.get(name, '')}{value}" for name, _, value in parts))


def conditions(report: Report) -> Grid:
    """The four conditions of immunization; no rows where nothing was attacked."""
    found: list[dict[str, Any]] = report.settings["validation"]["conditions"]
    return Grid(["immunization", "", ""], [[each["name"], each["status"], plain(each["said"])] for each in found])


def worst(report: Report, name: str, condition: str) -> Measurement | None:
    """Of what the judges say the worst; None where nothing was measured."""
    found = [m for m in report.measurements if (m.name, m.condition) == (name, condition) and m.value is not None]
    sign = -1 if found and found[0].better == "higher" else 1
    return max(found, key=lambda m: sign * (m.value or 0.0), default=None)


def _value(m: Measurement | None) -> str:
    """`5.0 (3-10)`."""
    if m is None or m.value is None:
        return "-"
    share = m.unit == "share"
    value = f"{100 * m.value:.1f}" if share else f"{m.value:.2g}"
    if m.low is None or m.high is None:
        return value
    low, high = (f"{100 * v:.0f}" if share else f"{v:.2g}" for v in (m.low, m.high))
    return f"{value} ({low}-{high})"
