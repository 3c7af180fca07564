"""What `inspect --base` shows: the verdict, the tensors that matter, a heat map of layers and roles, spectra."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from weightguard import api
from weightguard.cli.screen import _json, _shown, table

if TYPE_CHECKING:
    from weightguard.api.activating import Activations
    from weightguard.api.comparing import Cell, Comparison
    from weightguard.api.suggesting import Suggestion

TOP = 10
LAYERS = 40  # lines of a heat map; of deeper models neighbouring layers share one
SHADES = " ░▒▓█"
BARS = "▁▂▃▄▅▆▇█"
TALL = 5  # lines of the histogram


def show_schema(context: click.Context, _: click.Parameter, name: str | None) -> None:
    """The callback of --schema, which asks for no model."""
    if name is not None:
        click.echo(api.schema(name), nl=False)
        context.exit()


def show_comparison(found: Comparison, form: str, every: bool) -> None:
    """As JSON (schema and version in it), or as tables; `every`: all tensors, not the ten that moved most."""
    if form == "json":
        _json(found.as_dict())
        return
    click.echo(_shown(f"{found.model} against {found.base}: {found.matching.relation}"))
    _show_verdict(found)
    _show_tensors(found, every)
    _show_heat(found)
    _show_entries(found)
    _show_spectra(found)
    _show_alignment(found)
    for note in (*found.notes, *found.problems):
        click.echo(_shown(f"  ! {note}"))


def _show_verdict(found: Comparison) -> None:
    verdict = found.verdict
    click.echo(click.style(f"\nverdict: {verdict.kind}", bold=True) + f" (confidence {verdict.confidence:.2f})")
    for key, value in verdict.details.items():
        if value not in ([], None):
            _wrapped(f"{key.replace('_', ' ')}: {_said(value)}", "    ", "      ")
    for said in verdict.evidence:
        _wrapped(said, "  - ", "    ")
    *commands, why = found.suggestion or ("",)
    _show_commands(commands, why)


def _show_commands(commands: Sequence[str], why: str) -> None:
    for line in commands:
        click.echo(f"repair: {_shown(line)}")  # in one piece, to be copied
    if why:
        _wrapped(why, "    " if commands else "repair: ", "    ")


def show_suggestion(found: Suggestion, form: str) -> None:
    """What was done, and the commands on lines of their own."""
    if form == "json":
        _json(found.as_dict())
        return
    kind = f"{found.verdict.kind} (confidence {found.verdict.confidence:.2f})"
    _wrapped(f"{found.model} since {found.aligned}: {kind}", "", "    ")
    _wrapped(f"suggested: {found.why}", "", "    ")
    for line in found.commands:
        click.echo(_shown(line))


def _wrapped(said: str, first: str, later: str) -> None:
    """A sentence over as many lines of the terminal as it needs."""
    click.echo(click.wrap_text(_shown(said), shutil.get_terminal_size().columns, first, later))


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _show_tensors(found: Comparison, every: bool) -> None:
    moved = sorted((c for c in found.changes if c.changed), key=lambda c: (-c.relative, c.name))
    click.echo(f"\n{len(moved)} of {len(found.changes)} tensors changed")
    if not moved:
        return
    rows = [
        [c.short_name, f"{c.relative:.3g}", _number(c.cosine, ".5f"), f"{100 * c.changed_share:.3g} %", f"{c.largest:.3g}",
         _number(c.kurtosis, ".3g")]
        for c in (moved if every else moved[:TOP])
    ]  # fmt: skip
    table(["tensor", "|D|/|W|", "cosine", "changed", "max |d|", "kurtosis"], rows)


def _show_heat(found: Comparison) -> None:
    heat = found.heat
    if not heat.layers:
        return
    click.echo()
    said = "|D|/|W| by layer and role (█ the largest, each shade below it a factor of 1.5; outer: in no layer)"
    _wrapped(said, "", "")
    lines = heat.lines(LAYERS)
    first = max(len(name) for name, _ in lines) + 2
    widths = [max(3, len(role)) + 2 for role in heat.roles]
    click.echo(_in_columns("layer", heat.roles, first, widths))
    for name, cells in lines:
        shades = [_shade(cells.get(role), heat.largest) for role in heat.roles]
        click.echo(_in_columns(name.rjust(5), shades, first, widths))


def _in_columns(name: str, cells: Sequence[str], first: int, widths: Sequence[int]) -> str:
    return (name.ljust(first) + "".join(map(str.ljust, cells, widths))).rstrip()


def _shade(cell: Cell | None, largest: float) -> str:
    if cell is None:
        return ""
    if not cell.value:
        return "·"
    place = len(SHADES) - 1 + math.ceil(math.log(min(1.0, cell.value / (largest or 1.0)), 1.5))
    return SHADES[max(1, place)] * 3


def _show_entries(found: Comparison) -> None:
    entries = found.entries
    if entries is None:
        return
    click.echo("\nentries of D over their root mean square; the last line is a Gaussian")
    top = max(*entries.shares, *entries.gaussian)
    for line in reversed(range(TALL)):
        label = f"{top:.1%}" if line == TALL - 1 else ""
        click.echo((label.rjust(6) + "  " + "".join(_part(share / top, line) for share in entries.shares)).rstrip())
    click.echo(" " * 8 + "-5".ljust(20) + "0" + "5".rjust(20))
    click.echo((" " * 8 + "".join(_part(share / top, 0, 1) for share in entries.gaussian)).rstrip())


def _part(height: float, line: int, lines: int = TALL) -> str:
    """What a bar of this height, 0 to 1, shows in a line, counted from below, of so many."""
    eighths = round(height * lines * len(BARS)) - line * len(BARS)
    return " " if eighths <= 0 else BARS[min(eighths, len(BARS)) - 1]


def _show_spectra(found: Comparison) -> None:
    if not found.spectra:
        return
    factored = found.adapted and all(
        s.floor == 0 for s in found.spectra.values()
    )  # over its own base nothing was rounded
    how = (
        "from the adapter's factors, exact"
        if factored
        else "all values from Gram matrices, exact to 1e-8 of the largest"
    )
    click.echo(f"\nspectra of D: {how}")
    short = {c.name: c.short_name for c in found.changes}
    order = sorted(found.spectra.items(), key=lambda item: (-item[1].over_noise, item[0]))
    rows = [
        [
            short[name],
            _bars(s.values),
            f"{s.values[0]:.3g}",
            str(s.rank),
            _number(s.effective_rank, ".1f"),
            f"{s.over_noise:.2f}",
        ]
        for name, s in order[:TOP]
    ]
    table(["tensor", "leading values", "largest", "rank", "effective", "x noise"], rows)
    _wrapped("rank: values above what storing W leaves; x noise: the largest over that of independent entries", "", "")


def _bars(values: Sequence[float]) -> str:
    top = values[0] or 1.0
    return "".join(BARS[round((len(BARS) - 1) * v / top)] for v in values[:12])


def _show_alignment(found: Comparison) -> None:
    if not found.relevance:
        return
    click.echo("\nthe update against the alignment direction V = aligned − unaligned")
    rows = [[name, *_row(part.as_dict())] for name, part in found.by_layer()]
    table(["", "cos(C*D,D)", "in top 6 of V", "x chance", "R_ft/R_align", "cos(D,-V)", "V undone"], rows)


def _row(part: dict[str, float | None]) -> list[str]:
    shapes = (
        ("cosine", ".3f"),
        ("top_share", ".1%"),
        ("top_gain", ".1f"),
        ("top_kept", ".3f"),
        ("against", "+.3f"),
        ("undone", "+.1%"),
    )
    return [_number(part[key], shape) for key, shape in shapes]


def _number(value: float | None, shape: str) -> str:
    return "-" if value is None else format(value, shape)


def show_activations(found: Activations, form: str) -> None:
    """One line a layer; the embedding is layer 0."""
    if form == "json":
        _json(found.as_dict())
        return
    against = f" against {found.base}" if found.base else ""
    prompts = f"{found.harmful[1]} prompts of {found.harmful[0]}, {found.benign[1]} of {found.benign[0]}"
    click.echo(_shown(f"{found.model}{against}: {prompts}") + "\n")
    rows = [
        [str(view.layer), f"{view.separation:.2f}", f"{view.overlap:.1%}", _number(view.cosine, "+.3f"),
         _number(view.drift_harmful, ".3f"), _number(view.drift_benign, ".3f")]
        for view in found.layers
    ]  # fmt: skip
    table(["layer", "separation", "overlap", "direction to base", "drift, harmful", "drift, benign"], rows)
    if found.harmful_loss is not None:
        base = "" if found.base_harmful_loss is None else f", of the base {found.base_harmful_loss:.3f}"
        click.echo(f"loss per token of the harmful answers: {found.harmful_loss:.3f}{base}")
    _wrapped(
        "separation: of the mean scores along harmful minus benign, in standard deviations, on prompts left out of it",
        "",
        "",
    )
