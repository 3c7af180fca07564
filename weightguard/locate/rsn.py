"""RSN-Tune ("safety-specific neurons", ICLR 2025): safety neurons that are no foundation neurons.

Published: a neuron is a row or column; safety neurons are those whose removal changes the output most on harmful prompts,
consistently over them; foundation neurons the same on general data; what is in the first set only is kept out of later
training (or is all that is trained). Our reading: the change is the first-order effect on the loss of the answer (see
`effects`), and "consistently" is to rank units by their least effect over the samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import ClassVar, Self

from weightguard.errors import DataError, UsageError
from weightguard.locate.effects import least_effects
from weightguard.locate.material import Found, Material
from weightguard.locate.units import UNITS, counted_units, default_group, top_units, unit_groups, unit_parts
from weightguard.options import as_share, option


@dataclass(frozen=True, kw_only=True)
class RobustSafetyNeurons:
    """Units that matter on every safety sample, less those that matter on every utility sample."""

    NAME: ClassVar[str] = "rsn"
    PAPER: ClassVar[str] = "RSN-Tune, ICLR 2025"
    TOKENS: ClassVar[str] = "response"

    units: str = option("rows", "whole rows and columns, or attention heads", UNITS)
    top_safety: Decimal | float | str = option("0.03", "share of the units that are safety neurons")
    top_utility: Decimal | float | str = option("0.05", "share of the units that are foundation neurons")
    group: str | None = option(None, "shares of each tensor, or of all units [default: matrix; heads: global]",
                               ("matrix", "global"))  # fmt: skip
    scope: str = option("all", "roles to look at: all, or for example q,k,v")

    def settled(self) -> Self:
        """Checked. Error: UsageError."""
        if not as_share(self.top_safety, "top-safety") or not as_share(self.top_utility, "top-utility"):
            raise UsageError("--kind rsn is a difference of two sets; give --top-safety and --top-utility above 0")
        return replace(self, group=self.group or default_group(self.units))

    @property
    def needs(self) -> tuple[str, ...]:
        return ("safety", "utility")

    def find(self, material: Material) -> Found:
        """Errors: UsageError when a share takes no unit, DataError when every safety neuron is a foundation neuron."""
        groups = unit_groups(material, self.units)
        tops = {}
        for role, value in (("safety", self.top_safety), ("utility", self.top_utility)):
            effects = least_effects(material, role, groups)
            tops[role] = top_units(effects, as_share(value, f"top-{role}"), str(self.group), f"top-{role}")
        chosen = {name: mask & ~tops["utility"][name] for name, mask in tops["safety"].items()}
        parts = unit_parts(groups, chosen)
        if not parts:
            raise DataError(
                "every safety neuron is a foundation neuron; give a larger --top-safety or less --top-utility"
            )
        counts = {role: counted_units(material, groups, top) for role, top in tops.items()}
        said = {"safety_neurons": counts["safety"], "foundation_neurons": counts["utility"]}
        return Found(parts, said | {"units": counted_units(material, groups, chosen)})
