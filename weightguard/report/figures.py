"""Numbers as people read them."""

from __future__ import annotations

from weightguard.measurement import Measurement


def figure(value: float | None, unit: str) -> str:
    """`95.0 %`, `0.731`, or `unknown`."""
    if value is None:
        return "unknown"
    return f"{100 * value:.1f} %" if unit == "share" else f"{value:.4g}"


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
