"""Renderings of a verdict that was computed once. They decide nothing; each form is one small file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from weightguard.report.junit import junit
from weightguard.report.page import page
from weightguard.report.sarif import sarif
from weightguard.report.statement import statement
from weightguard.report.summary import summary
from weightguard.report.table import verdict_table
from weightguard.verdict import Verdict

FORMS: dict[str, Callable[[Verdict], str]] = {
    "human": verdict_table,
    "json": lambda verdict: verdict.to_bytes().decode(),
    "sarif": sarif,
    "junit": junit,
    "markdown": summary,
    "html": page,
    "in-toto": statement,
}
_SUFFIXES = {
    ".intoto.json": "in-toto", ".intoto.jsonl": "in-toto", ".sarif": "sarif", ".sarif.json": "sarif", ".xml": "junit",
    ".md": "markdown", ".html": "html", ".txt": "human",
}  # fmt: skip


def form_of(out: str) -> str:
    """The form that a file name asks for: .sarif, .xml, .md, .html, .txt, .intoto.json; every other is the verdict."""
    name = Path(out).name.casefold()
    return next((form for suffix, form in _SUFFIXES.items() if name.endswith(suffix)), "json")


def rendered(verdict: Verdict, form: str) -> str:
    """The verdict as text in one of FORMS."""
    return FORMS[form](verdict)
