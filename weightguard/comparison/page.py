"""One self-contained HTML page of a comparison: no script, nothing loaded, every name escaped, light and dark."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from weightguard.comparison.entries import REACH, Entries
from weightguard.comparison.places import ROLES, short_name
from weightguard.comparison.svg import bars_svg, heat_svg, key_svg, lines_svg

TOP = 10
_LIGHT = ("#eef1f4", "#dbe7f3", "#bcd6ea", "#93bfde", "#66a3cf", "#3f86bd", "#2468a4", "#124b84", "#082f5e")
_DARK = ("#20262c", "#1d3347", "#1e466a", "#23598a", "#2f70a8", "#488cc2", "#6faad6", "#9fcaea", "#d6ecfb")
# Ten lines that can be told apart on white and on black.
_LINES = ("#3f7fbf", "#d9762b", "#3a9a5b", "#c8494c", "#8a6bbf", "#8f6a4e", "#cf6fae", "#7d858c", "#a3982c", "#2ba3ad")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1f24;background:#fff}
h1,p,li{overflow-wrap:anywhere}h1{font-size:1.35rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .5rem}p{margin:.3rem 0}
table{border-collapse:collapse;font-size:13px}td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #d5dbe1}
td,th{white-space:nowrap}td:first-child,th:first-child{text-align:left;padding-left:0}
.verdict{border-left:5px solid #2468a4;padding:.6rem 1rem;background:#f3f6f9;margin:1rem 0}
.verdict strong{font-size:1.2rem}.quiet{color:#5a6570;font-size:13px}.scroll{overflow-x:auto}
svg{display:block}svg.fit{max-width:100%;height:auto}svg text{font-size:11px;fill:#5a6570}polyline{fill:none;stroke-width:1.6}
.axis{stroke:#5a6570}.grid{stroke:#d5dbe1}.key line{stroke-width:3}td .key{display:inline;margin-right:.5rem}
"""
_NIGHT = """
body{color:#d7dee5;background:#12161a}td,th{border-color:#2c343c}.axis{stroke:#97a3af}.grid{stroke:#2c343c}.verdict{background:#1a2027;border-color:#488cc2}
.quiet,svg text{color:#97a3af;fill:#97a3af}
"""


def page(found: Mapping[str, Any], entries: Entries | None) -> str:
    """The page of `Comparison.as_dict()`, with the histogram of `entries`."""
    body = "".join(_sections(found, entries))
    style = _style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"<title>{_text(found['model'])} against {_text(found['base'])}</title><style>{style}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _style() -> str:
    lines = "".join(f".s{at}{{stroke:{colour}}}" for at, colour in enumerate(_LINES))
    return _STYLE + lines + _shades(_LIGHT) + "@media(prefers-color-scheme:dark){" + _NIGHT + _shades(_DARK) + "}"


def _shades(colours: Sequence[str]) -> str:
    return "".join(f".h{at}{{fill:{colour}}}" for at, colour in enumerate(colours))


def _sections(found: Mapping[str, Any], entries: Entries | None) -> Iterable[str]:
    yield f"<h1>{_text(found['model'])}</h1><p class=quiet>against {_text(found['base'])}: {_text(found['relation'])}</p>"
    yield _verdict(found)
    yield _map(found)
    yield _tensors(found["tensors"])
    yield _spectra(found["spectra"])
    yield _histogram(entries)
    yield _alignment(found)
    notes = [*found["notes"], *found["problems"]]
    if notes:
        yield "<h2>Notes</h2>" + "".join(f"<p>{_text(note)}</p>" for note in notes)


def _verdict(found: Mapping[str, Any]) -> str:
    verdict = found["verdict"]
    details = ", ".join(
        f"{k.replace('_', ' ')} {_said(v)}" for k, v in verdict["details"].items() if v not in ([], None)
    )
    lines = "".join(f"<li>{_text(said)}</li>" for said in verdict["evidence"])
    command, why = found["repair"]["commands"], found["repair"]["reason"]
    repair = "".join(f"<p>Repair: <code>{_text(line)}</code></p>" for line in command)
    repair += f"<p class=quiet>{_text(why)}</p>" if why else ""
    return (
        f'<div class="verdict"><strong>{_text(verdict["kind"])}</strong> '
        f'<span class="quiet">confidence {verdict["confidence"]:.2f}</span><p>{_text(details)}</p><ul>{lines}</ul>{repair}</div>'
    )


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _map(found: Mapping[str, Any]) -> str:
    cells = {(c["layer"], c["role"]): c["value"] for c in found["heat"]}
    drawn = _heat(cells, "change by layer and role")
    return (
        "<h2>What moved</h2><p class=quiet>Size of the update over size of the weights, by layer and role; outer: what lies "
        f'in no layer. Point at a cell for its number.</p><div class="scroll">{drawn}</div>'
    )


def _heat(cells: Mapping[tuple[int | None, str], float], label: str) -> str:
    """A line for every layer, and one for what lies outside the layers."""
    layers = sorted({layer for layer, _ in cells if layer is not None})
    lines = [*layers, *([None] if any(layer is None for layer, _ in cells) else [])]
    roles = [role for role in ROLES if any((line, role) in cells for line in lines)]
    return heat_svg(lines, roles, cells, label)


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
    drawn = lines_svg(
        {_printable(short_name(name)): s["values"] for name, s in leading}, "place", "singular value of the update"
    )
    said = "Leading singular values of the update, of the ten tensors that stand out most over noise; point at a line for its "
    said += "name. Exact to 1e-8 of the largest. Rank counts those above what storing the weights leaves."
    keys = [key_svg(at) for at in range(len(rows))]
    table = _table(["tensor", "largest", "rank", "effective rank", "over noise"], rows, keys)
    return f'<h2>Spectra</h2><p class=quiet>{said}</p><div class="scroll">{drawn}</div>{table}'


def _histogram(entries: Entries | None) -> str:
    if entries is None:
        return ""
    drawn = bars_svg(entries.shares, -REACH, REACH, entries.gaussian, "entry of the update over the rms", "share")
    said = (
        f"Entries of the update over their root mean square, the first rows of {entries.matrices} matrices, each counted "
        "alike; line: Gaussian."
    )
    return f'<h2>Entries</h2><p class=quiet>{said}</p><div class="scroll">{drawn}</div>'


def _alignment(found: Mapping[str, Any]) -> str:
    seen = found["alignment"]["tensors"]
    if not seen:
        return ""
    places = {t["name"]: (t["layer"], t["role"]) for t in found["tensors"]}
    ordered = sorted(seen.items(), key=lambda item: item[1]["top_share"] or 0.0)  # of experts the largest is shown
    shares = {places[name]: part["top_share"] or 0.0 for name, part in ordered}
    drawn = _heat(shares, "share along alignment")
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


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], keys: Sequence[str] = ()) -> str:
    """`keys`: a drawing for the start of every row."""
    head = "".join(f"<th>{_text(h)}</th>" for h in headings)
    lines = ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows]
    marked = [line.replace("<td>", f"<td>{key}", 1) for line, key in zip(lines, keys or [""] * len(lines), strict=True)]
    body = "".join(f"<tr>{line}</tr>" for line in marked)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _text(text: str) -> str:
    """Escaped, and nothing in it that a browser would obey: control characters, marks that turn the direction of writing."""
    return escape(_printable(text))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _number(value: float | None, shape: str) -> str:
    return "-" if value is None else format(value, shape)
