"""Markdown for a GitHub step summary: weightguard gate ... --format markdown >> "$GITHUB_STEP_SUMMARY"."""

from __future__ import annotations

import re

from weightguard.measurement import shown
from weightguard.report.figures import plain
from weightguard.verdict import FAIL, PASS, Reason, Verdict

_MARKS = {PASS: "✅", FAIL: "❌"}


def summary(verdict: Verdict) -> str:
    """A heading, a table of the rules and what the verdict is bound to."""
    lines = [
        f"## {_MARKS.get(verdict.verdict, '⚠️')} weightguard: {verdict.verdict}",
        "",
        f"Model `{_code(verdict.model.label)}`, {len(verdict.model.files)} files; policy {_cell(verdict.policy.name)}, "
        f"sha256 `{verdict.policy.sha256[:12]}`.",
        "",
        "| | rule | value | limit | reason |",
        "|---|---|---:|---:|---|",
        *(_line(reason) for reason in verdict.reasons),
        "",
    ]
    return "\n".join(lines)


def _line(reason: Reason) -> str:
    unit = reason.unit or "nats"
    value = "" if reason.value is None else shown(reason.value, unit)
    limit = "" if reason.limit is None else shown(reason.limit, unit)
    return f"| {_MARKS.get(reason.status, '⚠️')} | `{_code(reason.rule)}` | {value} | {limit} | {_cell(reason.said)} |"


def _cell(text: str) -> str:
    """Text in a table cell: no markup of a stranger's file name is followed."""
    return re.sub(r"([\\`*\[\]<>|~@&])", r"\\\1", plain(text))


def _code(text: str) -> str:
    return plain(text).replace("`", "'").replace("|", "¦")
