"""Intervals as people read them, and text that cannot do more than be read."""

from __future__ import annotations

import base64
import hashlib

from weightguard.measurement import Measurement


def span(m: Measurement) -> str:
    """The interval, `-` where there is none."""
    if m.low is None or m.high is None:
        return "-"
    if m.unit == "share":
        return f"{100 * m.low:.1f} - {100 * m.high:.1f} %"
    return f"{m.low:.4g} - {m.high:.4g}"


def plain(text: str) -> str:
    """On one line, with nothing that a terminal would obey."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def security_policy(*styles: str) -> str:
    """The content security policy of a page that has these <style> elements, and nothing else that works."""
    allowed = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" for style in styles
    )
    return f"default-src 'none'; style-src {allowed}; base-uri 'none'; form-action 'none'"
