"""One HTML file: no script, nothing loaded from anywhere, every text of a model or a file name escaped.

The content security policy allows the page's own style, by its digest, and nothing else, so that even an escape that
failed could not run or fetch anything. Narrow screens get one column; colours follow the reader's light or dark setting.
"""

from __future__ import annotations

import html
from importlib import resources

from weightguard.measurement import KINDS, MODEL, Example, Measurement, Report, shown
from weightguard.report.charts import interval_chart
from weightguard.report.figures import plain, security_policy, span
from weightguard.report.validation_page import validation_section
from weightguard.verdict import FAIL, PASS, UNDECIDED, Reason, Verdict

_WORDS = {
    "pass": "Every rule of the policy holds.",
    "fail": "At least one rule of the policy does not hold.",
    "undecided": "At least one rule could not be decided. This is not a pass.",
}


def page(verdict: Verdict) -> str:
    """The page: verdict, rules with charts, measurements, answers, digests."""
    style = "\n" + resources.files("weightguard.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{security_policy(style)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{verdict.verdict}: {_text(verdict.model.label)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"{_heading(verdict)}{_rules(verdict)}{_report(verdict.report)}{_bound(verdict)}</body>\n</html>\n"
    )


def _text(text: str) -> str:
    return html.escape(plain(text), quote=True)


def _heading(verdict: Verdict) -> str:
    compared = "" if verdict.reference is None else f" compared with <code>{_text(verdict.reference.label)}</code>"
    return (
        f'<header class="{verdict.verdict}"><h1>{verdict.verdict}</h1><p>{_WORDS[verdict.verdict]}</p>'
        f"<p><code>{_text(verdict.model.label)}</code>{compared}, policy {_text(verdict.policy.name)}</p></header>\n"
    )


def _rules(verdict: Verdict) -> str:
    order = (FAIL, UNDECIDED, PASS)
    reasons = sorted(verdict.reasons, key=lambda reason: order.index(reason.status))
    return f"<section><h2>Rules</h2>\n{''.join(_rule(reason) for reason in reasons)}</section>\n"


def _rule(reason: Reason) -> str:
    name = reason.rule.rpartition(".")[2]
    chart = interval_chart(reason, KINDS[name].better) if name in KINDS else ""
    means = f"<small>{_text(KINDS[name].means)}</small>" if name in KINDS else ""
    return (
        f'<article><div><b class="badge {reason.status}">{reason.status}</b> <code>{_text(reason.rule)}</code> {means}'
        f"</div><div>{chart}</div><p>{_text(reason.said)}</p></article>\n"
    )


def _report(report: Report | None) -> str:
    if report is None:
        return ""
    rows = "".join(_measurement(m) for m in report.measurements if m.condition == MODEL)
    notes = "".join(f"<li>{_text(note)}</li>" for note in report.notes)
    return (
        f"{validation_section(report)}"
        "<section><h2>Measurements</h2>\n<div class=wide><table><thead><tr><th>measurement<th>value<th>95 % interval<th>n"
        f"<th>better<th>judge<th>note</tr></thead><tbody>\n{rows}</tbody></table></div>\n<ul>{notes}</ul></section>\n"
        f"{_examples(report.examples)}{_data(report)}"
    )


def _measurement(m: Measurement) -> str:
    judge = f"{m.judge} ({m.judge_revision})" if m.judge else ""
    cells = (m.name, shown(m.value, m.unit), span(m), str(m.n), m.better, judge, m.note)
    return f"<tr>{''.join(f'<td>{_text(cell)}' for cell in cells)}</tr>\n"


def _examples(examples: tuple[Example, ...]) -> str:
    if not examples:
        return ""
    return f"<section><h2>Answers</h2>\n{''.join(_example(e) for e in examples)}</section>\n"


def _example(example: Example) -> str:
    said = ", ".join(f"{judge}: {ruling}" for judge, ruling in example.rulings.items())
    return (
        f"<details><summary>{_text(example.role)} &middot; {_text(said)}</summary>"
        f"<p><b>prompt</b> {_text(example.prompt)}</p><p><b>answer</b> {_text(example.answer)}</p></details>\n"
    )


def _data(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{_text(role)}<td>{_text(str(said['source']))}<td>{said['rows']}<td><code>{said['sha256']}</code></tr>\n"
        for role, said in report.data.items()
    )
    return (
        "<section><h2>Data</h2>\n<div class=wide><table><thead><tr><th>role<th>source<th>rows<th>sha256</tr></thead>"
        f"<tbody>\n{rows}</tbody></table></div></section>\n"
    )


def _bound(verdict: Verdict) -> str:
    rows = "".join(
        f"<tr><td>{_text(name)}<td><code>{digest}</code></tr>\n" for name, digest in sorted(verdict.model.files.items())
    )
    return (
        "<section><h2>Bound to</h2>\n<p>This page is a picture of a verdict; check the verdict itself with "
        "<code>weightguard verify VERDICT --model MODEL</code>.</p>\n<div class=wide><table><thead><tr><th>file<th>sha256"
        f"</tr></thead><tbody>\n<tr><td>policy<td><code>{verdict.policy.sha256}</code></tr>\n{rows}</tbody></table></div>"
        f"</section>\n<footer>weightguard {_text(verdict.version)}</footer>\n"
    )
