"""The drawings of the page as inline SVG: a heat map, lines on a log scale, bars. Colours come from the page's classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import product

SHADES = 9  # classes h0 ... h8
LINES = 10  # classes s0 ... s9
DECADES = 2.0  # of the heat map, from its largest value down
DEEP = 4  # decades of a logarithmic axis at most
ROW, COLUMN, LEFT, TOP = 16, 46, 46, 22
LETTER = 6.5  # the width of one at the size of the labels
WIDTH, HEIGHT = 560, 220
START, STOP, CEILING, FLOOR = 64, WIDTH - 10, 15, HEIGHT - 42  # where the axes of a plot lie


def heat_svg(
    lines: Sequence[int | None], columns: Sequence[str], values: Mapping[tuple[int | None, str], float], label: str
) -> str:
    """One rectangle a line (a layer; None: outer) and column, darker for larger; each says its number when pointed at."""
    largest = max((v for v in values.values() if math.isfinite(v)), default=0.0)
    names = ["outer" if line is None else str(line) for line in lines]
    wide = [max(COLUMN, round(LETTER * len(column)) + 10) for column in columns]
    starts = [LEFT + sum(wide[:at]) for at in range(len(wide) + 1)]
    parts = [_text(starts[at] + wide[at] // 2, TOP - 7, column, "middle") for at, column in enumerate(columns)]
    parts += [_text(LEFT - 8, TOP + ROW * row + 12, name, "end") for row, name in enumerate(names)]
    for (row, line), (at, column) in product(enumerate(lines), enumerate(columns)):
        found = values.get((line, column))
        if found is not None:
            said = f"{'outer' if line is None else f'layer {line}'} {column}: {found:.3g}"
            parts.append(_cell(starts[at], TOP + ROW * row, wide[at], _shade(found, largest), said))
    bottom = TOP + ROW * len(lines) + 10
    parts += _legend(bottom, largest) if largest > 0 else []
    return _svg(max(starts[-1], LEFT + 300) + 8, bottom + 18, parts, label)


def _legend(top: int, largest: float) -> list[str]:
    """What the shades from the lightest to the darkest stand for."""
    steps = [largest * 10 ** (DECADES * (at / (SHADES - 1) - 1)) for at in range(1, SHADES)]
    boxes = [
        f'<rect class="h{at}" x="{LEFT + 14 * at}" y="{top}" width="14" height="10"><title>{value:.3g}</title></rect>'
        for at, value in enumerate(steps, 1)
    ]
    right = LEFT + 14 * SHADES + 6
    return [
        _text(LEFT + 8, top + 9, f"{steps[0]:.2g}", "end"),
        *boxes,
        _text(right, top + 9, f"{largest:.2g}", "start"),
    ]


def lines_svg(series: Mapping[str, Sequence[float]], across: str, up: str) -> str:
    """Values against their place, logarithmic upwards; one line a name, told apart by colour and by pointing."""
    values = [v for line in series.values() for v in line if v > 0]
    if not values:
        return ""
    top = math.ceil(math.log10(max(values)))
    bottom = max(min(math.floor(math.log10(min(values))), top - 1), top - DEEP)
    longest = max(2, *map(len, series.values()))
    ticks = {f"{10.0**level:g}": (level - bottom) / (top - bottom) for level in range(bottom, top + 1)}
    places = {str(at): (at - 1) / (longest - 1) for at in range(1, longest + 1)}
    parts = _axes(places, ticks, across, up)
    for at, (name, line) in enumerate(series.items()):
        heights = [(math.log10(v) - bottom) / (top - bottom) if v > 0 else -1.0 for v in line]
        points = _points((x / (longest - 1), height) for x, height in enumerate(heights) if height >= 0)
        parts.append(f'<polyline class="s{at % LINES}" points="{points}"><title>{escape(name)}</title></polyline>')
    return _svg(WIDTH, HEIGHT, parts, up, "fit")


def key_svg(at: int) -> str:
    """A short piece of the line number `at`, for a table beside the plot."""
    return f'<svg class="key" width="16" height="9"><line class="s{at % LINES}" x1="0" x2="16" y1="5" y2="5"/></svg>'


def bars_svg(shares: Sequence[float], low: float, high: float, expected: Sequence[float], across: str, up: str) -> str:
    """A histogram, with the expected share of each bin as a line."""
    top = max((*shares, *expected), default=0.0) or 1.0
    step = 10 ** math.floor(math.log10(top))
    step *= 0.2 if top < 2 * step else 0.5 if top < 5 * step else 1
    ticks = {f"{100 * step * at:g} %": step * at / top for at in range(int(top / step) + 1)}
    places = {f"{low + (high - low) * at / 10:g}": at / 10 for at in range(11)}
    parts = _axes(places, ticks, across, up)
    width = (STOP - START) / len(shares)
    for at, share in enumerate(shares):
        height = (FLOOR - CEILING) * share / top
        said = f"{low + (high - low) * (at + 0.5) / len(shares):+.2f}: {100 * share:.2f} %"
        box = f'x="{START + width * at:.1f}" y="{FLOOR - height:.1f}" width="{width - 1:.1f}" height="{height:.1f}"'
        parts.append(f'<rect class="h5" {box}><title>{said}</title></rect>')
    points = _points(((at + 0.5) / len(expected), share / top) for at, share in enumerate(expected))
    return _svg(WIDTH, HEIGHT, [*parts, f'<polyline class="s1" points="{points}"/>'], f"histogram: {across}", "fit")


def _axes(places: Mapping[str, float], levels: Mapping[str, float], across: str, up: str) -> list[str]:
    """Both axes with their names, ticks and numbers, label -> share of the way; a line across at every level."""
    parts = [_text(START, 10, up, "start"), _text((START + STOP) / 2, HEIGHT - 6, across, "middle")]
    for label, share in levels.items():
        y = FLOOR - (FLOOR - CEILING) * share
        parts += [_line("grid", START, STOP, y, y), _text(START - 8, y + 4, label, "end")]
    for label, share in places.items():
        x = START + (STOP - START) * share
        parts += [_line("axis", x, x, FLOOR, FLOOR + 4), _text(x, FLOOR + 16, label, "middle")]
    return [*parts, _line("axis", START, STOP, FLOOR, FLOOR), _line("axis", START, START, CEILING, FLOOR)]


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _points(shares: Iterable[tuple[float, float]]) -> str:
    """Points of a line from shares of the way along both axes."""
    return " ".join(f"{START + (STOP - START) * x:.1f},{FLOOR - (FLOOR - CEILING) * y:.1f}" for x, y in shares)


def _shade(value: float, largest: float) -> int:
    """0 for none, then by decades below the largest."""
    if value <= 0 or largest <= 0:
        return 0
    place = 1 + math.log10(min(1.0, value / largest)) / DECADES
    return max(1, round(place * (SHADES - 1)))


def _cell(x: int, y: int, width: int, shade: int, said: str) -> str:
    box = f'x="{x}" y="{y}" width="{width - 2}" height="{ROW - 2}"'
    return f'<rect class="h{shade}" {box}><title>{escape(said)}</title></rect>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, parts: Sequence[str], label: str, kind: str = "") -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg role="img" class="{kind}" aria-label="{escape(label)}" {size}>' + "".join(parts) + "</svg>"
