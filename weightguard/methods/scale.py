"""Control: scale the update down as a whole, W_aligned + (1 - strength)·D. The control published repairs rarely beat."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weightguard.errors import UsageError
from weightguard.methods.inputs import Inputs, as_share, option, settings

if TYPE_CHECKING:
    from weightguard.plan import Plan


@dataclass(frozen=True, kw_only=True)
class UniformScaling:
    """Scale the whole update down: W_aligned + (1 - strength)·(W - W_aligned); on an adapter its lora_B factors."""

    NAME: ClassVar[str] = "scale"
    PAPER: ClassVar[str] = "control"
    NEEDS: ClassVar[tuple[str, ...]] = ()
    STRENGTH: ClassVar[tuple[str, ...]] = ()
    BLOCKS: ClassVar[bool] = True  # see EntrySelection

    target: str | None = option(None, "delta: W - W_aligned is scaled; factor: an adapter's lora_B, which stays an adapter",
                                ("delta", "factor"))  # fmt: skip
    strength: Decimal | float | str | None = option(None, "share of the update that is removed, 0 to 1")
    scope: str = option("all", "roles to edit: all, or for example q,k,v")

    def with_strength(self, value: Decimal) -> Self:
        return dataclasses.replace(self, strength=value)

    def settled(self, target: str, *, adapter: bool = False) -> Self:
        """Every None replaced by its default. Error: UsageError when there is no update to scale."""
        chosen = self.target or ("factor" if adapter else target)
        if chosen == "weight":
            raise UsageError("--method scale scales an update; give --aligned, or an adapter")
        strength = Decimal("0.7") if self.strength is None else as_share(self.strength, "strength")
        return dataclasses.replace(self, target=chosen, strength=strength)

    def plan(self, inputs: Inputs) -> Plan:
        """The plan for settled options."""
        from weightguard.plan import Plan, Scale

        strength = Decimal(str(self.strength))
        of = "delta" if self.target == "delta" else "weight"
        # s·B·A is scaled by scaling B alone.
        names = [n for n in inputs.linears if of == "delta" or n.endswith(".lora_B.weight")] if strength else []
        edits = {name: Scale(name, of, float(1 - strength)) for name in names}
        return Plan(
            self.NAME, self.PAPER, str(self.target), settings(self), edits, {n: _said(inputs, n) for n in names}
        )


def _said(inputs: Inputs, name: str) -> dict[str, Any]:
    linear = inputs.linears[name]
    return {"layer": linear.layer, "role": linear.role, "shape": list(inputs.sources.model.info(name).shape)}
