"""JUnit XML: a test case a rule. Undecided is an error there, so that no reader takes it for a pass."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from weightguard.verdict import FAIL, PASS, Reason, Verdict

# What XML 1.0 cannot hold, not even as a reference.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(verdict: Verdict) -> str:
    """One <testsuites> with one <testsuite>."""
    counts = {
        "tests": len(verdict.reasons),
        "failures": sum(r.status == FAIL for r in verdict.reasons),
        "errors": sum(r.status not in (FAIL, PASS) for r in verdict.reasons),
    }
    said = {key: str(value) for key, value in counts.items()}
    root = ElementTree.Element("testsuites", {"name": "weightguard", **said})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _text(verdict.policy.name), **said, "skipped": "0"})
    properties = ElementTree.SubElement(suite, "properties")
    bound = {"verdict": verdict.verdict, "model": verdict.model.label, "policy.sha256": verdict.policy.sha256}
    for name, value in {**bound, **{f"sha256.{n}": d for n, d in verdict.model.files.items()}}.items():
        ElementTree.SubElement(properties, "property", {"name": _text(name), "value": _text(value)})
    for reason in verdict.reasons:
        _case(suite, reason)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, reason: Reason) -> None:
    case = ElementTree.SubElement(suite, "testcase", {"classname": "weightguard.verdict", "name": _text(reason.rule)})
    if reason.status != PASS:
        kind = "failure" if reason.status == FAIL else "error"
        node = ElementTree.SubElement(case, kind, {"message": _text(reason.said), "type": reason.status})
        node.text = _text(reason.said)
    else:
        ElementTree.SubElement(case, "system-out").text = _text(reason.said)


def _text(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
