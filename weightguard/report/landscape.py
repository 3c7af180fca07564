"""A safety landscape as a picture: lines with the basin they leave, or a plane of shades; as SVG, or in a page of its own.

Self-contained and without script; every text is escaped, and the page's policy allows its own style and nothing else.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from weightguard.errors import UsageError
from weightguard.measurement import Report, shown
from weightguard.report.figures import plain, security_policy, span

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 48, 72
SHADES = 10  # of a plane, c0 for no success to c9 for all
_LIGHT = ("#e8f1fa", "#f5e9d8", "#f7d6ae", "#f6bf86", "#f2a463", "#ea8648", "#dd6735", "#c94a29", "#ac3020", "#861a1a")
_DARK = ("#16283a", "#33291f", "#4e3520", "#6b4120", "#894d20", "#a75a24", "#c46a2e", "#dd7f42", "#f09a64", "#fbbd94")
_COLOURS = (
    ("back", "#fff", "#14171b"), ("text", "#1c1e21", "#e6e8eb"), ("soft", "#5c6470", "#9aa3af"),
    ("grid", "#e3e7ec", "#2b313a"), ("line", "#2468a4", "#6faad6"), ("mean", "#082f5e", "#d6ecfb"),
    ("basin", "#1a7f3714", "#56c2711c"), ("odd", "#9a6700", "#e3b341"),
)  # fmt: skip
_RULES = (
    "svg{font:12px system-ui,sans-serif;background:var(--back)}svg text{fill:var(--soft)}svg .head{fill:var(--text);font-size:14px}"
    ".grid{stroke:var(--grid)}.mark{stroke:var(--soft);stroke-dasharray:4 3}.one{fill:none;stroke:var(--line);opacity:.55}"
    ".mean{fill:none;stroke:var(--mean);stroke-width:2.5}.dot{fill:var(--mean)}.band{fill:var(--line);opacity:.18}"
    ".basin{fill:var(--basin)}.odd{fill:none;stroke:var(--odd);stroke-dasharray:2 3}.broken{fill:var(--odd)}"
    ".here{fill:none;stroke:var(--text);stroke-width:2}"
)
_PAGE = (
    "body{margin:0 auto;max-width:48rem;padding:1rem;color:var(--text);background:var(--back);overflow-wrap:anywhere;"
    "font:16px/1.5 system-ui,sans-serif}div{overflow-x:auto}svg{width:100%;min-width:36rem;height:auto}small{color:var(--soft)}"
)
_SUFFIXES = {".json": "json", ".svg": "svg", ".html": "html"}
Point = Mapping[str, Any]
Scale = Callable[[float], float]


def form_of(out: str) -> str:
    """json, svg or html, by suffix; without one json. Error: UsageError for any other."""
    suffix = Path(out).suffix.casefold() or ".json"
    if suffix not in _SUFFIXES:
        raise UsageError(f"-o {out}: the landscape is written as .json, .svg or .html")
    return _SUFFIXES[suffix]


def drawn(report: Report, form: str) -> str:
    """The report as text in one of these forms."""
    if form == "json":
        return report.to_bytes().decode()
    return picture(report) if form == "svg" else page(report)


def picture(report: Report) -> str:
    """The SVG, with its own style."""
    assert report.landscape is not None, "only a report of `landscape` has one"
    parts = _plane(report.landscape) if len(report.landscape["axes"]) == 2 else _lines(report)
    head = f'<text class="head" x="{LEFT}" y="20">{_text(_heading(report))}</text>'
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    label = html.escape(plain(_heading(report)), quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" {size}>\n'
        f"<style>{_style('svg')}</style>\n{head}\n{''.join(parts)}</svg>\n"
    )


def page(report: Report) -> str:
    """One HTML file around the picture."""
    style = _style(":root") + _PAGE
    policy = security_policy(style, _style("svg"))
    found = "".join(
        f"<p><b>{m.name} {_text(shown(m.value, m.unit))}</b> (95 % interval {_text(span(m))}, n {m.n}, better {m.better}; "
        f"judge {_text(m.judge or '-')}, {_text(m.judge_revision or '-')})<br>{_text(m.note)}</p>"
        for m in report.measurements
    )
    said = "; ".join(
        f"{role}: {d['source']}, {d['rows']} rows, sha256 {d['sha256']}" for role, d in report.data.items()
    )
    told = ", ".join(f"{k} {v}" for k, v in report.settings.items() if not isinstance(v, (dict, list)))
    notes = "".join(f"<p>{_text(note)}</p>" for note in report.notes)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" '
        f'content="{policy}">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">\n'
        f"<title>{_text(_heading(report))}</title><style>{style}</style></head>\n<body><div>{picture(report)}</div>"
        f"{found}{notes}<p><small>{_text(said)}<br>{_text(told)}</small></p></body></html>\n"
    )


def _heading(report: Report) -> str:
    assert report.landscape is not None
    other = report.landscape["towards"]
    return f"Attack success around {report.model.label}" + ("" if other is None else f" and towards {other['label']}")


def _style(place: str) -> str:
    def variables(at: int) -> str:
        return "".join(f"--{name}:{colours[at]};" for name, *colours in _COLOURS)

    def shades(colours: Sequence[str]) -> str:
        return "".join(f".c{at}{{fill:{colour}}}" for at, colour in enumerate(colours))

    dark = f"@media(prefers-color-scheme:dark){{{place}{{{variables(1)}}}{shades(_DARK)}}}"
    return f"{place}{{{variables(0)}}}{_RULES}{shades(_LIGHT)}{dark}"


def _lines(report: Report) -> list[str]:
    """Attack success over the distance: every line, and of several their mean; a lone one with its interval."""
    assert report.landscape is not None
    curves, towards = report.landscape["curves"], report.landscape["axes"][0] == "towards"
    places = [point["at"][0] for point in curves[0]["points"]]
    x, y = _across(places), _upwards
    mean = [_mean([curve["points"][i]["success"] for curve in curves]) for i in range(len(places))]
    broken = [_mean([curve["points"][i]["incoherent"] for curve in curves]) for i in range(len(places))]
    parts = [*_grid(places, x), *([] if towards else _basin(places, mean, x))]
    if len(curves) == 1:
        parts.append(_band(curves[0]["points"], x))
    parts += [_line("one", places, [p["success"] for p in curve["points"]], x, curve["name"]) for curve in curves]
    parts += [_line("odd", places, broken, x, "incoherent answers"), _line("mean", places, mean, x, "mean")]
    parts += [_dot(at, value, x) for at, value in zip(places, mean, strict=True) if value is not None]
    labels = [(0.0, "model"), *([(1.0, "the other")] if towards else [])]
    parts += [f'<line class="mark" x1="{x(a):.1f}" x2="{x(a):.1f}" y1="{TOP}" y2="{y(0):.1f}"/>' for a, _ in labels]
    parts += [_words(x(a), TOP - 6, name, "middle") for a, name in labels]
    said = "share of the way" if towards else "share of each tensor's norm, along random directions"
    legend = "thick: attack success; dotted: incoherent answers" + ("; thin: each direction" if len(curves) > 1 else "")
    return [*parts, *_captions(said, legend)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _across(places: Sequence[float]) -> Scale:
    low, high = min(places), max(places)
    return lambda at: LEFT + (WIDTH - LEFT - RIGHT) * (at - low) / (high - low)


def _upwards(share: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)


def _grid(places: Sequence[float], x: Scale) -> list[str]:
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_upwards(share):.1f}" y2="{_upwards(share):.1f}"/>'
        )
        parts.append(_words(LEFT - 8, _upwards(share) + 4, f"{100 * share:.0f} %", "end"))
    return parts + [_words(x(at), HEIGHT - BOTTOM + 18, f"{at:.2g}", "middle") for at in _ticks(places)]


def _ticks(places: Sequence[float]) -> list[float]:
    """About six of the places, evenly, 0 among them."""
    step, home = max(1, (len(places) - 1) // 6), places.index(0)
    return [at for i, at in enumerate(places) if (i - home) % step == 0]


def _basin(places: Sequence[float], mean: Sequence[float | None], x: Scale) -> list[str]:
    """Shade where some attack fails on average, as far as that goes around the model."""
    centre = len(places) // 2
    inside = [value is not None and value < 1 for value in mean]
    if not inside[centre]:
        return []
    low = next((i + 1 for i in range(centre, -1, -1) if not inside[i]), 0)
    high = next((i - 1 for i in range(centre, len(places)) if not inside[i]), len(places) - 1)
    width = x(places[high]) - x(places[low])
    return [
        f'<rect class="basin" x="{x(places[low]):.1f}" y="{TOP}" width="{width:.1f}" height="{HEIGHT - TOP - BOTTOM}"/>'
    ]


def _band(points: Sequence[Point], x: Scale) -> str:
    known = [p for p in points if p["low"] is not None]
    above = [f"{x(p['at'][0]):.1f},{_upwards(p['high']):.1f}" for p in known]
    below = [f"{x(p['at'][0]):.1f},{_upwards(p['low']):.1f}" for p in reversed(known)]
    return f'<polygon class="band" points="{" ".join(above + below)}"/>'


def _line(kind: str, places: Sequence[float], values: Sequence[float | None], x: Scale, name: str) -> str:
    known = [(at, value) for at, value in zip(places, values, strict=True) if value is not None]
    points = " ".join(f"{x(at):.1f},{_upwards(value):.1f}" for at, value in known)
    return f'<polyline class="{kind}" points="{points}"><title>{_text(name)}</title></polyline>'


def _dot(at: float, value: float, x: Scale) -> str:
    said = f"{at:g}: {100 * value:.1f} %"
    return f'<circle class="dot" cx="{x(at):.1f}" cy="{_upwards(value):.1f}" r="3"><title>{said}</title></circle>'


def _plane(found: Mapping[str, Any]) -> list[str]:
    """A cell for every place, darker for more success; a dot where more than half of the answers are incoherent."""
    points = found["curves"][0]["points"]
    xs, ys = (sorted({p["at"][axis] for p in points}) for axis in (0, 1))
    room = WIDTH - LEFT - RIGHT - 90
    wide, high = room / len(xs), (HEIGHT - TOP - BOTTOM) / len(ys)
    parts = []
    for p in points:
        left, top = LEFT + wide * xs.index(p["at"][0]), TOP + high * (len(ys) - 1 - ys.index(p["at"][1]))
        parts.append(_cell(p, left, top, wide, high))
        if p["at"] in ([0, 0], [1, 0] if found["axes"][0] == "towards" else [0, 0]):
            parts.append(
                f'<rect class="here" x="{left + 1:.1f}" y="{top + 1:.1f}" width="{wide - 3:.1f}" height="{high - 3:.1f}"/>'
            )
    parts += [_words(LEFT + wide * (xs.index(a) + 0.5), HEIGHT - BOTTOM + 18, f"{a:.2g}", "middle") for a in _ticks(xs)]
    parts += [_words(LEFT - 8, TOP + high * (len(ys) - 0.5 - ys.index(b)) + 4, f"{b:.2g}", "end") for b in _ticks(ys)]
    framed = "framed: the model" + (" (0) and the other one (1)" if found["axes"][0] == "towards" else "")
    said = f"across: {found['axes'][0]}; upwards: {found['axes'][1]}"
    return [*parts, *_key(), *_captions(said, f"{framed}; dots: more than half of the answers are incoherent")]


def _captions(first: str, second: str) -> list[str]:
    return [_words(LEFT, HEIGHT - 28, first, "start"), _words(LEFT, HEIGHT - 10, second, "start")]


def _cell(p: Point, left: float, top: float, wide: float, high: float) -> str:
    place = ", ".join(f"{a:g}" for a in p["at"])
    said = f"{place}: {shown(p['success'], 'share')} ({p['n']} prompts, {100 * p['incoherent']:.0f} % incoherent)"
    shade = "grid" if p["success"] is None else f"c{min(SHADES - 1, int(p['success'] * SHADES))}"
    box = f'x="{left:.1f}" y="{top:.1f}" width="{wide - 1:.1f}" height="{high - 1:.1f}"'
    dot = (
        f'<circle class="broken" cx="{left + wide / 2:.1f}" cy="{top + high / 2:.1f}" r="2.5"/>'
        if p["incoherent"] > 0.5
        else ""
    )
    return f'<rect class="{shade}" {box}><title>{said}</title></rect>{dot}'


def _key() -> list[str]:
    """The shades with their numbers, at the right."""
    step, left = (HEIGHT - TOP - BOTTOM) / SHADES, WIDTH - RIGHT - 70
    boxes = [
        f'<rect class="c{i}" x="{left}" y="{TOP + step * (SHADES - 1 - i):.1f}" width="18" height="{step:.1f}"/>'
        for i in range(SHADES)
    ]
    return boxes + [
        _words(left + 24, TOP + (HEIGHT - TOP - BOTTOM) * (1 - s) + 4, f"{100 * s:.0f} %", "start") for s in (0, 0.5, 1)
    ]


def _words(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(text)}</text>'


def _text(text: str) -> str:
    return html.escape(plain(text), quote=True)
