"""The drawings of the page as inline SVG: a heat map, lines on a log scale, bars. Colours come from the page's classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

SHADES = 9  # classes h0 ... h8
DECADES = 2.0  # of the heat map, from its largest value down
ROW, COLUMN, LEFT, TOP = 16, 46, 46, 22
WIDTH, HEIGHT = 560, 200


def heat_svg(
    layers: Sequence[int], columns: Sequence[str], value: Callable[[int, str], float | None], label: str, unit: str
) -> str:
    """One rectangle a layer and column, darker for larger; each says its number when pointed at."""
    known = [v for layer in layers for c in columns if (v := value(layer, c)) is not None and math.isfinite(v)]
    largest = max(known, default=0.0)
    parts = [_text(LEFT + COLUMN * at + COLUMN // 2, TOP - 7, column, "middle") for at, column in enumerate(columns)]
    for row, layer in enumerate(layers):
        parts.append(_text(LEFT - 8, TOP + ROW * row + 12, str(layer), "end"))
        for at, column in enumerate(columns):
            found = value(layer, column)
            if found is not None:
                said = f"layer {layer} {column}: {found:.3g}{unit}"
                parts.append(_cell(LEFT + COLUMN * at, TOP + ROW * row, _shade(found, largest), said))
    bottom = TOP + ROW * len(layers) + 10
    parts += _legend(bottom, largest, unit) if largest > 0 else []
    return _svg(max(LEFT + COLUMN * len(columns), LEFT + 300) + 8, bottom + 18, parts, label)


def _legend(top: int, largest: float, unit: str) -> list[str]:
    """What the shades from the lightest to the darkest stand for."""
    steps = [largest * 10 ** (DECADES * (at / (SHADES - 1) - 1)) for at in range(1, SHADES)]
    boxes = [
        f'<rect class="h{at}" x="{LEFT + 14 * at}" y="{top}" width="14" height="10"><title>{value:.3g}{unit}</title></rect>'
        for at, value in enumerate(steps, 1)
    ]
    right = LEFT + 14 * SHADES + 6
    return [
        _text(LEFT + 8, top + 9, f"{steps[0]:.2g}{unit}", "end"),
        *boxes,
        _text(right, top + 9, f"{largest:.2g}{unit}", "start"),
    ]


def lines_svg(series: Mapping[str, Sequence[float]], label: str) -> str:
    """Values against their place, logarithmic upwards; one line a name, told apart by shade and by pointing."""
    values = [v for line in series.values() for v in line if v > 0]
    if not values:
        return ""
    top, bottom = math.log10(max(values)), math.log10(max(min(values), max(values) * 1e-6))
    longest = max(map(len, series.values()))
    parts = _axis([f"{10**level:.2g}" for level in (top, (top + bottom) / 2, bottom)])
    for at, (name, line) in enumerate(series.items()):
        points = " ".join(
            f"{60 + (WIDTH - 70) * x / max(1, longest - 1):.1f},{_height(math.log10(v), bottom, top):.1f}"
            for x, v in enumerate(line)
            if v > 10**bottom * 0.999
        )
        shade = SHADES - 1 - at % SHADES
        parts.append(f'<polyline class="s{shade}" points="{points}"><title>{escape(name)}</title></polyline>')
    parts += [_text(60, HEIGHT - 8, "1", "middle"), _text(WIDTH - 10, HEIGHT - 8, str(longest), "middle")]
    return _svg(WIDTH, HEIGHT, parts, label, "fit")


def bars_svg(shares: Sequence[float], low: float, high: float, expected: Sequence[float], label: str) -> str:
    """A histogram, with the expected share of each bin as a line."""
    top = max((*shares, *expected), default=0.0) or 1.0
    width = (WIDTH - 70) / len(shares)
    parts = _axis([f"{100 * top:.1f} %", "", "0"])
    for at, share in enumerate(shares):
        height = (HEIGHT - 40) * share / top
        x, y = 60 + width * at, HEIGHT - 25 - height
        said = f"{low + (high - low) * (at + 0.5) / len(shares):+.2f}: {100 * share:.2f} %"
        parts.append(
            f'<rect class="h5" x="{x:.1f}" y="{y:.1f}" width="{width - 1:.1f}" height="{height:.1f}"><title>{said}</title></rect>'
        )
    points = " ".join(
        f"{60 + width * (at + 0.5):.1f},{_height(share, 0.0, top):.1f}" for at, share in enumerate(expected)
    )
    parts.append(f'<polyline class="s0" points="{points}"/>')
    for value, anchor, x in ((low, "start", 60.0), (0.0, "middle", 60 + (WIDTH - 70) / 2), (high, "end", WIDTH - 10.0)):
        parts.append(_text(x, HEIGHT - 8, f"{value:g}", anchor))
    return _svg(WIDTH, HEIGHT, parts, label, "fit")


def _height(value: float, bottom: float, top: float) -> float:
    return 15 + (HEIGHT - 40) * (top - value) / ((top - bottom) or 1.0)


def _axis(labels: Sequence[str]) -> list[str]:
    return [_text(52, 19 + (HEIGHT - 40) * at / 2, label, "end") for at, label in enumerate(labels)]


def _shade(value: float, largest: float) -> int:
    """0 for none, then by decades below the largest."""
    if value <= 0 or largest <= 0:
        return 0
    place = 1 + math.log10(min(1.0, value / largest)) / DECADES
    return max(1, round(place * (SHADES - 1)))


def _cell(x: int, y: int, shade: int, said: str) -> str:
    box = f'x="{x}" y="{y}" width="{COLUMN - 2}" height="{ROW - 2}"'
    return f'<rect class="h{shade}" {box}><title>{escape(said)}</title></rect>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, parts: Sequence[str], label: str, kind: str = "") -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg role="img" class="{kind}" aria-label="{escape(label)}" {size}>' + "".join(parts) + "</svg>"
