"""A validation for a terminal: every model side by side, every attack on the repaired and on the aligned one, four conditions."""

from __future__ import annotations

from collections.abc import Sequence

from weightguard.measurement import MODEL, Measurement, Report, shown
from weightguard.report.figures import plain
from weightguard.report.table import columns, report_notes

_NAMES = (
    "harmful_score", "refusal_rate", "over_refusal_rate", "utility", "finetune_accuracy", "incoherence_rate",
    "harmful_loss", "alignment_loss",
)  # fmt: skip
_ATTACKED = ("harmful_score", "refusal_rate", "utility", "finetune_accuracy")


def validation_table(report: Report) -> str:
    """Models, attacks, conditions, notes and data."""
    said = report.settings["validation"]
    blocks = [_models(report), _attacks(report, said["cells"], said["not_counted"]), _conditions(said["conditions"])]
    return "\n\n".join("\n".join(lines) for lines in [*blocks, report_notes(report)] if lines)


def _models(report: Report) -> list[str]:
    """A row a measurement, a column a model; values of the worst judge."""
    there = list(dict.fromkeys(m.condition for m in report.measurements))
    sides = ["before", MODEL, *(c for c in there if c.startswith("control:")), "reference"]
    rows = []
    for name in _NAMES:
        found = [worst(report, name, side) for side in sides]
        if any(found):
            rows.append([name, *(_value(m) for m in found), found[1].better if found[1] else ""])
    heads = ["after" if side == MODEL else side.removeprefix("control:") for side in sides]
    return columns(["measurement", *heads, "better"], rows)


def _attacks(report: Report, cells: Sequence[str], not_counted: Sequence[str]) -> list[str]:
    if not cells:
        return []
    rows = []
    for cell in cells:
        ours = [_value(worst(report, name, cell)) for name in _ATTACKED]
        theirs = _value(worst(report, "harmful_score", f"reference {cell}"))
        rows.append(
            [
                plain(cell.removeprefix("attack:attack=")),
                *ours,
                theirs,
                "collapsed, not counted" if cell in not_counted else "",
            ]
        )
    return columns(["after the attack", "harmful", "refusal", "utility", "task", "reference's harmful", ""], rows)


def _conditions(found: Sequence[dict[str, str]]) -> list[str]:
    if not found:
        return []
    return columns(["immunization", "", ""], [[each["name"], each["status"], plain(each["said"])] for each in found])


def worst(report: Report, name: str, condition: str) -> Measurement | None:
    """Of what the judges say the worst; None where nothing was measured."""
    found = [m for m in report.measurements if (m.name, m.condition) == (name, condition) and m.value is not None]
    sign = -1 if found and found[0].better == "higher" else 1
    return max(found, key=lambda m: sign * (m.value or 0.0), default=None)


def _value(m: Measurement | None) -> str:
    return "-" if m is None else shown(m.value, m.unit)
