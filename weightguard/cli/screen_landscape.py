"""What `landscape` shows: a line for every place with a bar, or a plane in shades, and VISAGE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from weightguard.cli.screen import _json, _shown, table

if TYPE_CHECKING:
    from weightguard.api.landscaping import Report

WIDE = 30  # characters of a full bar
SHADES = " ░▒▓█"


def show_landscape(report: Report, outs: Sequence[str], form: str) -> None:
    if form == "json":
        _json(report.as_dict())
        return
    found: Mapping[str, Any] = report.landscape or {}
    other = "" if found["towards"] is None else f" and towards {_shown(found['towards']['label'])}"
    click.echo(f"attack success around {_shown(report.model.label)}{other}\n")
    _plane(found) if len(found["axes"]) == 2 else _lines(found["curves"])
    for m in report.measurements:
        value = "unknown" if m.value is None else f"{100 * m.value:.1f} %"
        span = "" if m.low is None or m.high is None else f" (95 % interval {100 * m.low:.1f} - {100 * m.high:.1f} %)"
        click.echo(f"\n{m.name}: {value}{span}, {m.n} prompts, judge {_shown(m.judge)}; {m.note}")
    for role, said in report.data.items():
        click.echo(f"* {role}: {_shown(said['source'])}, {said['rows']} rows, sha256 {said['sha256'][:12]}")
    click.echo("\nwrote " + ", ".join(_shown(out) for out in outs))


def _lines(curves: Sequence[Mapping[str, Any]]) -> None:
    """Mean over the lines, the least and the most of them; of one line its interval."""
    rows = []
    for points in zip(*(curve["points"] for curve in curves), strict=True):
        known = [p["success"] for p in points if p["success"] is not None]
        mean = sum(known) / len(known) if known else None
        ends = (min(known), max(known)) if len(points) > 1 and known else (points[0]["low"], points[0]["high"])
        incoherent = sum(p["incoherent"] for p in points) / len(points)
        bar = "" if mean is None else "█" * round(WIDE * mean)
        rows.append(
            [
                f"{points[0]['at'][0]:+.3g}",
                _share(mean),
                f"{_share(ends[0])} - {_share(ends[1])}",
                _share(incoherent),
                bar.ljust(WIDE),
            ]
        )
    between = "least - most" if len(curves) > 1 else "95 % interval"
    table(["at", "success", between, "incoherent", " " * WIDE], rows)


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"


def _plane(found: Mapping[str, Any]) -> None:
    points = {tuple(p["at"]): p["success"] for p in found["curves"][0]["points"]}
    xs, ys = (sorted({at[axis] for at in points}) for axis in (0, 1))
    for y in reversed(ys):
        cells = "".join(_shade(points[x, y]) for x in xs)
        click.echo(f"{y:+8.3g}  {cells}")
    click.echo(
        f"{'':8}  from {xs[0]:+.3g} to {xs[-1]:+.3g}: {found['axes'][0]}; upwards: {found['axes'][1]}; █ every attack succeeds"
    )


def _shade(value: float | None) -> str:
    return "??" if value is None else SHADES[min(len(SHADES) - 1, round(value * (len(SHADES) - 1)))] * 2
