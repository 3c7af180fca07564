"""An interval with its limit as a small inline SVG. Colours come from the page's CSS classes; nothing is scripted."""

from __future__ import annotations

from weightguard.verdict import Reason

WIDTH, HEIGHT, EDGE = 240, 26, 8


def interval_chart(reason: Reason, better: str) -> str:
    """A track from the worst to the best value, the bad side of the limit shaded, the interval and its value on it."""
    if reason.limit is None or reason.value is None or reason.low is None or reason.high is None:
        return ""
    low, high = _scale(reason)

    def x(value: float) -> str:
        share = (min(max(value, low), high) - low) / (high - low)
        return f"{EDGE + share * (WIDTH - 2 * EDGE):.1f}"

    parts = [f'<line class="track" x1="{EDGE}" x2="{WIDTH - EDGE}" y1="13" y2="13"/>']
    start, stop = (x(low), x(reason.limit)) if better == "higher" else (x(reason.limit), x(high))
    parts.append(f'<rect class="bad" x="{start}" y="3" width="{float(stop) - float(start):.1f}" height="20"/>')
    parts.append(f'<line class="limit" x1="{x(reason.limit)}" x2="{x(reason.limit)}" y1="1" y2="25"/>')
    parts.append(f'<line class="span {reason.status}" x1="{x(reason.low)}" x2="{x(reason.high)}" y1="13" y2="13"/>')
    parts.append(f'<circle class="{reason.status}" cx="{x(reason.value)}" cy="13" r="4"/>')
    label = f"value {reason.value:.4g}, interval {reason.low:.4g} to {reason.high:.4g}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _scale(reason: Reason) -> tuple[float, float]:
    """0 to 1 for shares, -1 to 1 for their changes, else room around what is shown."""
    values = [v for v in (reason.low, reason.high, reason.value, reason.limit) if v is not None]
    if reason.unit == "share":
        return (-1.0, 1.0) if min(values) < 0 or reason.rule.endswith("_change") else (0.0, 1.0)
    low, high = min(values), max(values)
    margin = (high - low) * 0.1 or 1.0
    return low - margin, high + margin
