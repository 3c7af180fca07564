"""Freeze+ (arXiv:2410.10862): units of four types, by what taking them out does to safety and to utility.

Published: safety-critical, utility-critical, complex (both) and redundant units (neither), found by structured pruning;
freezing the safety-critical units and a part of the complex ones keeps safety through fine-tuning. Our reading: the
effect of a unit on a data set is what it does to the loss of the answers (see `effects`: to first order, or by ablation),
"critical" is to lie in the top share of its tensor or layer, and the shares, as well as how much of the complex units
counts, are options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, ClassVar, Self

from weightguard.errors import DataError, UsageError
from weightguard.locate.effects import ablation_effects, mean_effects
from weightguard.locate.material import Found, Material
from weightguard.locate.units import UNITS, counted_units, default_group, top_units, unit_groups, unit_parts
from weightguard.options import as_share, option

if TYPE_CHECKING:
    import numpy

TYPES = ("safety-critical", "utility-critical", "complex", "redundant")
Masks = dict[str, "numpy.ndarray"]


@dataclass(frozen=True, kw_only=True)
class FreezePlus:
    """Units of the types that `take` names, out of safety-critical, utility-critical, complex and redundant."""

    NAME: ClassVar[str] = "freeze-plus"
    PAPER: ClassVar[str] = "arXiv:2410.10862"
    TOKENS: ClassVar[str] = "response"

    units: str = option("rows", "whole rows and columns, or attention heads", UNITS)
    effect: str = option("first-order", "first-order: one backward pass a sample; ablation: take every unit out in turn",
                         ("first-order", "ablation"))  # fmt: skip
    top_safety: Decimal | float | str = option("0.1", "share of the units that counts as critical on --safety data")
    top_utility: Decimal | float | str = option("0.1", "share of the units that counts as critical on --utility data")
    group: str | None = option(None, "shares of each tensor, or of all units [default: matrix; heads: global]",
                               ("matrix", "global"))  # fmt: skip
    take: str = option("safety-critical,complex", f"types to mark, out of {', '.join(TYPES)}")
    complex_share: Decimal | float | str = option(
        "0.5", "share of the complex units that is taken, by effect on safety"
    )
    scope: str = option("all", "roles to look at: all, or for example q,k,v")

    def settled(self) -> Self:
        """Checked. Error: UsageError."""
        for name in ("top_safety", "top_utility", "complex_share"):
            as_share(getattr(self, name), name.replace("_", "-"))
        for each in ("top_safety", "top_utility"):
            if not as_share(getattr(self, each), each):
                raise UsageError(
                    f"--{each.replace('_', '-')} 0: --kind freeze-plus types units on both; give more than 0"
                )
        self._taken()
        return replace(self, group=self.group or default_group(self.units))

    @property
    def needs(self) -> tuple[str, ...]:
        return ("safety", "utility")

    def _taken(self) -> list[str]:
        names = [name.strip() for name in self.take.split(",") if name.strip()]
        unknown = [name for name in names if name not in TYPES]
        if unknown or not names:
            raise UsageError(f"--take {self.take}: must be one or several of {', '.join(TYPES)}, joined by commas")
        return names

    def find(self, material: Material) -> Found:
        """Errors: UsageError when a share takes no unit, DataError when no unit is of a type that is taken."""
        import numpy

        groups = unit_groups(material, self.units)
        measured = ablation_effects if self.effect == "ablation" else mean_effects
        effects = measured(material, "safety", groups)
        safety = top_units(effects, as_share(self.top_safety, "top-safety"), str(self.group), "top-safety")
        useful = measured(material, "utility", groups)
        utility = top_units(useful, as_share(self.top_utility, "top-utility"), str(self.group), "top-utility")
        types = typed(safety, utility)
        counts = {name: counted_units(material, groups, masks) for name, masks in types.items()}
        types["complex"] = self._part(types["complex"], effects)
        chosen = {g: numpy.any([types[name][g] for name in self._taken()], axis=0) for g in groups}
        parts = unit_parts(groups, chosen)
        if not parts:
            raise DataError(f"no unit is {self.take.replace(',', ' or ')}; give other shares or other data")
        return Found(parts, {"types": counts, "units": counted_units(material, groups, chosen)})

    def _part(self, masks: Masks, effects: Mapping[str, numpy.ndarray]) -> Masks:
        """The share of the complex units of each group that weighs most on safety; ties by index."""
        from weightguard.statistics.selection import count

        share, left = as_share(self.complex_share, "complex-share"), {}
        for name, mask in masks.items():
            ordered = (-effects[name]).argsort(kind="stable")
            ordered = ordered[mask[ordered]]
            left[name] = mask & False
            left[name][ordered[: count(share, len(ordered), "exact")]] = True
        return left


def typed(safety: Masks, utility: Masks) -> dict[str, Masks]:
    """Type -> mask by group, from what is critical for safety and for utility. Every unit has exactly one type."""
    return {
        "safety-critical": {g: safety[g] & ~utility[g] for g in safety},
        "utility-critical": {g: utility[g] & ~safety[g] for g in safety},
        "complex": {g: safety[g] & utility[g] for g in safety},
        "redundant": {g: ~safety[g] & ~utility[g] for g in safety},
    }
