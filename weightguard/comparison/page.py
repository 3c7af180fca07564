"""One self-contained HTML page of a comparison: no script, nothing loaded, every name escaped, light and dark."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from weightguard.comparison.pairs import TensorChange
from weightguard.comparison.places import ROLES, short_name
from weightguard.comparison.svg import bars_svg, heat_svg, lines_svg

TOP = 10
_LIGHT = ("#eef1f4", "#dbe7f3", "#bcd6ea", "#93bfde", "#66a3cf", "#3f86bd", "#2468a4", "#124b84", "#082f5e")
_DARK = ("#20262c", "#1d3347", "#1e466a", "#23598a", "#2f70a8", "#488cc2", "#6faad6", "#9fcaea", "#d6ecfb")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1f24;background:#fff}
h1{font-size:1.35rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .5rem}p{margin:.3rem 0}
table{border-collapse:collapse;font-size:13px}td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #d5dbe1}
td,th{white-space:nowrap}td:first-child,th:first-child{text-align:left;padding-left:0}
.verdict{border-left:5px solid #2468a4;padding:.6rem 1rem;background:#f3f6f9;margin:1rem 0}
.verdict strong{font-size:1.2rem}.quiet{color:#5a6570;font-size:13px}.scroll{overflow-x:auto}
svg{display:block}svg.fit{max-width:100%;height:auto}svg text{font-size:11px;fill:#5a6570}polyline{fill:none;stroke-width:1.6}
"""
_NIGHT = """
body{color:#d7dee5;background:#12161a}td,th{border-color:#2c343c}.verdict{background:#1a2027;border-color:#488cc2}
.quiet,svg text{color:#97a3af;fill:#97a3af}
"""


def page(found: Mapping[str, Any], changes: Sequence[TensorChange]) -> str:
    """The page of `Comparison.as_dict()`; `changes` give the samples behind the histogram."""
    body = "".join(_sections(found, changes))
    style = _style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(found['model'])} against {escape(found['base'])}</title><style>{style}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _style() -> str:
    return _STYLE + _shades(_LIGHT) + "@media(prefers-color-scheme:dark){" + _NIGHT + _shades(_DARK) + "}"


def _shades(colours: Sequence[str]) -> str:
    lines = (*colours[3:], *colours[6:])
    fills = "".join(f".h{at}{{fill:{colour}}}" for at, colour in enumerate(colours))
    return fills + "".join(f".s{at}{{stroke:{colour}}}" for at, colour in enumerate(lines)) + ".s0{stroke:#c2571a}"


def _sections(found: Mapping[str, Any], changes: Sequence[TensorChange]) -> Iterable[str]:
    yield f"<h1>{escape(found['model'])}</h1><p class=quiet>against {escape(found['base'])}: {escape(found['relation'])}</p>"
    yield _verdict(found)
    yield _map(found)
    yield _tensors(found["tensors"])
    yield _spectra(found["spectra"])
    yield _histogram(changes)
    yield _alignment(found)
    notes = [*found["notes"], *found["problems"]]
    if notes:
        yield "<h2>Notes</h2>" + "".join(f"<p>{escape(note)}</p>" for note in notes)


def _verdict(found: Mapping[str, Any]) -> str:
    verdict = found["verdict"]
    details = ", ".join(
        f"{k.replace('_', ' ')} {_said(v)}" for k, v in verdict["details"].items() if v not in ([], None)
    )
    lines = "".join(f"<li>{escape(said)}</li>" for said in verdict["evidence"])
    *command, why = found["repair"] or ("",)
    repair = "".join(f"<p>Repair: <code>{escape(line)}</code></p>" for line in command)
    repair += f"<p class=quiet>{escape(why)}</p>" if why else ""
    return (
        f'<div class="verdict"><strong>{escape(verdict["kind"])}</strong> '
        f'<span class="quiet">confidence {verdict["confidence"]:.2f}</span><p>{escape(details)}</p><ul>{lines}</ul>{repair}</div>'
    )


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _map(found: Mapping[str, Any]) -> str:
    cells = {(c["layer"], c["role"]): c["value"] for c in found["heat"]}
    layers = sorted({layer for layer, _ in cells if layer is not None})
    roles = [role for role in ROLES if any((layer, role) in cells for layer in layers)]
    drawn = heat_svg(layers, roles, lambda layer, role: cells.get((layer, role)), "change by layer and role", "")
    outside = ", ".join(f"{role} {value:.3g}" for (layer, role), value in cells.items() if layer is None)
    return (
        "<h2>What moved</h2><p class=quiet>Size of the update over size of the weights, by layer and role; point at a cell "
        f'for its number.</p><div class="scroll">{drawn}</div><p class=quiet>Outside the blocks: {escape(outside)}</p>'
    )


def _tensors(tensors: Sequence[Mapping[str, Any]]) -> str:
    moved = sorted((t for t in tensors if t["changed"]), key=lambda t: (-t["relative"], t["name"]))
    rows = [
        [short_name(t["name"]), f"{t['relative']:.3g}", _number(t["cosine"], ".5f"), f"{t['changed_share']:.1%}",
         f"{t['largest']:.3g}", _number(t["kurtosis"], ".3g")]
        for t in moved[:TOP]
    ]  # fmt: skip
    title = f"<h2>The tensors that matter</h2><p class=quiet>{len(moved)} of {len(tensors)} changed</p>"
    return title + _table(["tensor", "|D|/|W|", "cosine", "changed", "max |d|", "kurtosis"], rows)


def _spectra(spectra: Mapping[str, Mapping[str, Any]]) -> str:
    if not spectra:
        return ""
    leading = sorted(spectra.items(), key=lambda item: (-item[1]["values"][0] / (item[1]["noise"] or 1.0), item[0]))[
        :TOP
    ]
    rows = [
        [short_name(name), f"{s['values'][0]:.3g}", str(s["rank"]), _number(s["effective_rank"], ".1f"),
         f"{s['values'][0] / s['noise']:.2f}" if s["noise"] else "-"]
        for name, s in leading
    ]  # fmt: skip
    drawn = lines_svg({short_name(name): s["values"] for name, s in leading}, "leading singular values")
    said = "Leading singular values of the update. Rank counts those above what storing the weights leaves."
    table = _table(["tensor", "largest", "rank", "effective rank", "over noise"], rows)
    return f'<h2>Spectra</h2><p class=quiet>{said}</p><div class="scroll">{drawn}</div>{table}'


def _histogram(changes: Sequence[TensorChange]) -> str:
    samples = [c.sample.histogram for c in changes if c.sample is not None and c.changed]
    if not samples:
        return ""
    shares = [math.fsum(column) / len(samples) for column in zip(*samples, strict=True)]
    edges = [-5 + 10 * at / len(shares) for at in range(len(shares) + 1)]
    normal = [0.5 * (math.erf(b / 2**0.5) - math.erf(a / 2**0.5)) for a, b in pairwise(edges)]
    drawn = bars_svg(shares, -5, 5, normal, "histogram of the update's entries")
    said = "Entries of the update over their root mean square, the first rows of every changed matrix; line: Gaussian."
    return f'<h2>Entries</h2><p class=quiet>{said}</p><div class="scroll">{drawn}</div>'


def _alignment(found: Mapping[str, Any]) -> str:
    seen = found["alignment"]["tensors"]
    if not seen:
        return ""
    places = {t["name"]: (t["layer"], t["role"]) for t in found["tensors"]}
    shares = {places[name]: part["top_share"] for name, part in seen.items()}
    layers = sorted({layer for layer, _ in shares if layer is not None})
    roles = [role for role in ROLES if any((layer, role) in shares for layer in layers)]
    drawn = heat_svg(layers, roles, lambda layer, role: shares.get((layer, role)), "share along alignment", "")
    total = found["alignment"]["total"]
    keys = {
        "cosine": ".3f",
        "top_share": ".1%",
        "top_gain": ".1f",
        "top_kept": ".3f",
        "against": "+.3f",
        "undone": "+.1%",
    }
    parts = {**{f"layer {at}": part for at, part in found["alignment"]["layers"].items()}, "all": total}
    table = _table(
        ["", "cos(C*D, D)", "in top 6 of V", "over chance", "R_ft/R_align", "cos(D, -V)", "of V undone"],
        [[name, *(_number(part[key], shape) for key, shape in keys.items())] for name, part in parts.items()],
    )
    said = "Share of the update in the six leading directions of V = aligned − unaligned."
    return f'<h2>Alignment</h2><p class=quiet>{said}</p><div class="scroll">{drawn}</div>{table}'


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _number(value: float | None, shape: str) -> str:
    return "-" if value is None else format(value, shape)
