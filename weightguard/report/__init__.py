"""Renderings of a verdict that was computed once. They decide nothing; each form is one small file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weightguard.verdict import Verdict

# Form -> where it is made. The command line lists the forms for every command, so nothing is imported before it is asked for.
FORMS = {
    "human": "weightguard.report.table:verdict_table",
    "json": "weightguard.report.plain:plain",
    "sarif": "weightguard.report.sarif:sarif",
    "junit": "weightguard.report.junit:junit",
    "markdown": "weightguard.report.summary:summary",
    "html": "weightguard.report.page:page",
    "in-toto": "weightguard.report.statement:statement",
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
    module, _, function = FORMS[form].partition(":")
    made: str = getattr(import_module(module), function)(verdict)
    return made
