"""Safety-critical weights by set difference (arXiv:2402.05162, section 3.1): the top of the scores on safety data less the
top of the scores on utility data.

Published: scores by Wanda or SNIP over the answer's tokens, both tops taken per matrix, single weights. Ours: the same
over rows or globally where `group` asks for it, and whole units, ranked by the sum of their entries' scores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weightguard.errors import DataError, UsageError
from weightguard.locate.material import Found, Material
from weightguard.locate.scores import GROUPS, SCORES, entry_scores, top_entries
from weightguard.locate.units import (
    UNITS,
    counted_units,
    default_group,
    top_units,
    unit_groups,
    unit_parts,
    unit_scores,
)
from weightguard.options import as_share, option
from weightguard.parts import Part

if TYPE_CHECKING:
    import numpy


@dataclass(frozen=True, kw_only=True)
class SetDifference:
    """Weights or units in the top share on safety data and not in the top share on utility data."""

    NAME: ClassVar[str] = "set-difference"
    PAPER: ClassVar[str] = "arXiv:2402.05162"
    TOKENS: ClassVar[str] = "response"

    score: str = option("wanda", "wanda: |W|*norm of its input; snip: |W|*sum over samples of |gradient|", SCORES)
    units: str = option(
        "entries", "mark single weights, whole rows and columns, or attention heads", ("entries", *UNITS)
    )
    top_safety: Decimal | float | str = option("0.03", "share that counts as important on --safety data")
    top_utility: Decimal | float | str = option("0.05", "share that counts as important on --utility data; 0 for none")
    group: str | None = option(None, "take the shares of each matrix (of units: of each tensor or layer), row, or of all "
                               "[default: matrix; heads: global]",
                        GROUPS)  # fmt: skip
    scope: str = option("all", "roles to look at: all, or for example q,k,v")

    def settled(self) -> Self:
        """Checked. Error: UsageError."""
        if not as_share(self.top_safety, "top-safety"):
            raise UsageError("--top-safety 0 marks nothing; give a share above 0")
        if self.units != "entries" and self.group == "row":
            raise UsageError("--group row ranks the entries of a row; with --units give matrix or global")
        as_share(self.top_utility, "top-utility")
        return replace(self, group=self.group or default_group(self.units))

    @property
    def needs(self) -> tuple[str, ...]:
        return ("safety", "utility") if as_share(self.top_utility, "top-utility") else ("safety",)

    def find(self, material: Material) -> Found:
        """Errors: UsageError when a share takes nothing, DataError when nothing is left of the difference."""
        parts, facts = self._entries(material) if self.units == "entries" else self._units(material)
        if not parts:
            raise DataError(
                f"all that is in the top {self.top_safety} on safety data is in the top {self.top_utility} on utility "
                f"data; nothing is left. Give a larger --top-safety or a smaller --top-utility"
            )
        return Found(parts, facts)

    def _shares(self) -> dict[str, Decimal]:
        shares = {"safety": self.top_safety, "utility": self.top_utility}
        return {role: as_share(shares[role], f"top-{role}") for role in self.needs}

    def _entries(self, material: Material) -> tuple[dict[str, Part], dict[str, Any]]:
        tops = [
            top_entries(material, entry_scores(self.score, material, role), share, str(self.group), f"top-{role}")
            for role, share in self._shares().items()
        ]  # one role's statistics are gone before the next one's are collected
        left = tops[0] if len(tops) == 1 else {name: mask & ~tops[1][name] for name, mask in tops[0].items()}
        return {n: Part("entries", material.shape(n), mask) for n, mask in left.items() if mask.any()}, {}

    def _units(self, material: Material) -> tuple[dict[str, Part], dict[str, Any]]:
        groups = unit_groups(material, self.units)
        tops: list[dict[str, numpy.ndarray]] = []
        for role, share in self._shares().items():
            scores = unit_scores(material, groups, entry_scores(self.score, material, role))
            tops.append(top_units(scores, share, str(self.group), f"top-{role}"))
        left = tops[0] if len(tops) == 1 else {name: mask & ~tops[1][name] for name, mask in tops[0].items()}
        return unit_parts(groups, left), {"units": counted_units(material, groups, left)}
