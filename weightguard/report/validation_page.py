"""The part of a page that shows a validation: a picture of the harmful scores, the tables, the four conditions."""

from __future__ import annotations

import html

from weightguard.measurement import Measurement, Report
from weightguard.report.validation import HEADING, Grid, attacks, cell_name, conditions, models, side_name, sides, worst

_LEFT, _WIDTH, _ROW = 330, 300, 22
_COLOURS = {"holds": "pass", "fails": "fail"}


def validation_section(report: Report) -> str:
    """Nothing for a report that is no validation. Every text is escaped."""
    if "validation" not in report.settings:
        return ""
    tables = "".join(_table(grid) for grid in (models(report), attacks(report)) if grid.rows)
    return f"<section><h2>Validation</h2>\n{_conditions(report)}{_chart(report)}<p><small>{HEADING}</small></p>{tables}</section>\n"


def _conditions(report: Report) -> str:
    return "".join(
        f'<article><div><b class="badge {_COLOURS.get(status, "")}">{_text(status)}</b> <code>{_text(name)}</code></div>'
        f"<p>{_text(said)}</p></article>\n"
        for name, status, said in conditions(report).rows
    )


def _table(grid: Grid) -> str:
    heads = "".join(f"<th>{_text(head)}" for head in grid.headings)
    rows = "".join(f"<tr>{''.join(f'<td>{_text(cell)}' for cell in row)}</tr>\n" for row in grid.rows)
    return f"<div class=wide><table><thead><tr>{heads}</tr></thead><tbody>\n{rows}</tbody></table></div>\n"


def _chart(report: Report) -> str:
    """Harmful score of every model, and after every attack that of the repaired and of the aligned one (hollow)."""
    said = report.settings["validation"]
    rows: list[tuple[str, Measurement | None, Measurement | None]] = [
        (side_name(side), worst(report, "harmful_score", side), None) for side in sides(report)
    ]
    rows += [
        (cell_name(cell), worst(report, "harmful_score", cell), worst(report, "harmful_score", f"reference {cell}"))
        for cell in said["cells"]
    ]
    known = [row for row in rows if row[1] is not None]
    height = _ROW * len(known) + 24
    parts = [_axis(height, said["bounds"].get("harm"))]
    for at, (name, ours, theirs) in enumerate(known):
        y = 20 + _ROW * at
        parts.append(f'<text x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{_text(_short(name))}</text>')
        parts += [_mark(m, y, kind) for m, kind in ((theirs, "theirs"), (ours, "ours")) if m is not None]
    return (
        f'<div class=wide><svg class="chart" viewBox="0 0 {_LEFT + _WIDTH + 20} {height}" role="img" '
        f'aria-label="harmful score of every model and after every attack">{"".join(parts)}</svg></div>\n'
        "<p><small>harmful score, 0 to 100 %; hollow: the aligned model after the same attack</small></p>\n"
    )


def _axis(height: int, limit: float | None) -> str:
    lines = [f'<line class="track" x1="{_x(v)}" x2="{_x(v)}" y1="10" y2="{height - 8}"/>' for v in (0, 0.5, 1)]
    if limit is not None:
        lines.append(f'<line class="limit" x1="{_x(limit)}" x2="{_x(limit)}" y1="6" y2="{height - 4}"/>')
    return "".join(lines)


def _mark(m: Measurement, y: int, kind: str) -> str:
    low, high = (m.value if v is None else v for v in (m.low, m.high))
    line = f'<line class="span {kind}" x1="{_x(low)}" x2="{_x(high)}" y1="{y}" y2="{y}"/>'
    return f'{line}<circle class="{kind}" cx="{_x(m.value)}" cy="{y}" r="4"/>'


def _x(value: float | None) -> str:
    return f"{_LEFT + min(max(value or 0.0, 0.0), 1.0) * _WIDTH:.1f}"


def _short(name: str) -> str:
    return name if len(name) <= 52 else name[:51] + "…"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
