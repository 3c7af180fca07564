"""What a kind of change says about a case: checks with margins, and details for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """One piece of evidence in words. margin: 0 at the limit, 1 where a textbook case lies, below 0 when it fails."""

    said: str
    margin: float


@dataclass(frozen=True)
class Finding:
    """A kind with its evidence. It holds when every check does; its margin is that of the weakest check."""

    kind: str
    checks: tuple[Check, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def margin(self) -> float:
        return min(check.margin for check in self.checks)

    @property
    def holds(self) -> bool:
        return self.margin >= 0


def check(said: str, value: float, limit: float, ideal: float) -> Check:
    """Evidence that `value` lies on the side of `limit` where `ideal` is. `said` may hold {value}, or {share} in percent."""
    margin = (value - limit) / (ideal - limit)
    return Check(said.format(value=_number(value), share=f"{100 * value:.3g} %"), max(-1.0, min(1.0, margin)))


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:,.0f}"
