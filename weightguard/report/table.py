"""For a terminal: plain columns, nothing but text."""

from __future__ import annotations

from collections.abc import Sequence

from weightguard.measurement import MODEL, Measurement, Report, shown
from weightguard.report.figures import plain, span
from weightguard.verdict import Verdict

_HEADINGS = ["measurement", "value", "95 % interval", "n", "better", "judge"]


def report_table(report: Report) -> str:
    """The measurements of a report, what is unknown below them with the reason, and the notes."""
    lines = columns(_HEADINGS, [_cells(m) for m in report.measurements if m.value is not None])
    unknown = [m for m in report.measurements if m.value is None]
    if unknown:
        lines += ["", "unknown:", *(f"  {m.name}: {plain(m.note)}" for m in unknown)]
    return "\n".join([*lines, "", *report_notes(report)])


def report_notes(report: Report) -> list[str]:
    """What is to be known of the measurements of the model itself, and the data behind them."""
    said = [*report.notes, *_said([m for m in report.measurements if m.condition == MODEL])]
    return [*(f"* {plain(note)}" for note in said), *_sources(report)]


def columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns as wide as they need to be, the first and the last to the left."""
    cells = [list(headings), *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    ends = (0, len(headings) - 1)
    return [
        "  ".join(
            c.ljust(w) if i in ends else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _cells(m: Measurement) -> list[str]:
    name = m.name if m.condition == MODEL else f"{m.name} ({plain(m.condition)})"
    return [name, shown(m.value, m.unit), span(m), str(m.n), m.better, plain(m.judge or "-")]


def _said(measurements: Sequence[Measurement]) -> list[str]:
    return [f"{m.name}: {m.note}" for m in measurements if m.value is not None and m.note]


def _sources(report: Report) -> list[str]:
    return [
        f"* {role}: {plain(str(said['source']))}, {said['rows']} rows, sha256 {said['sha256'][:12]}"
        for role, said in report.data.items()
    ]


def verdict_table(verdict: Verdict) -> str:
    """The verdict, a line a rule with its reason, and what it is bound to."""
    rows = [[plain(r.rule), r.status.upper(), plain(r.judge or "-"), plain(r.said)] for r in verdict.reasons]
    model = f"{plain(verdict.model.label)}, {len(verdict.model.files)} files"
    compared = "" if verdict.reference is None else f", compared with {plain(verdict.reference.label)}"
    said = [f"verdict: {verdict.verdict.upper()}", f"model:   {model}{compared}",
            f"policy:  {plain(verdict.policy.name)}, sha256 {verdict.policy.sha256[:12]}"]  # fmt: skip
    return "\n".join([*said, "", *columns(["rule", "status", "judge", "reason"], rows), ""])
