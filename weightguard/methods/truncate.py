"""Comparator: keep only the leading singular directions of the update, W_aligned + D_k."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, ClassVar, Self

from weightguard.errors import UsageError
from weightguard.methods.inputs import Inputs, spooled
from weightguard.options import as_share, option, settings

if TYPE_CHECKING:
    from weightguard.plan import Plan
    from weightguard.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Truncate:
    """Drop singular directions of the update, the smallest first; uses no data."""

    NAME: ClassVar[str] = "truncate"
    PAPER: ClassVar[str] = "comparator"
    NEEDS: ClassVar[tuple[str, ...]] = ()
    STRENGTH: ClassVar[tuple[str, ...]] = ()
    target = "delta"  # not a field: there is no other

    strength: Decimal | float | str | None = option(None, "share of the singular directions that is dropped")
    scope: str = option("all", "roles to edit: all, or for example q,k,v")

    def with_strength(self, value: Decimal) -> Self:
        return dataclasses.replace(self, strength=value)

    def settled(self, target: str, *, adapter: bool = False) -> Self:
        """The strength as a decimal. Error: UsageError without an aligned model."""
        if target == "weight":
            raise UsageError("--method truncate needs the aligned model; give --aligned")
        strength = Decimal("0.5") if self.strength is None else as_share(self.strength, "strength")
        return dataclasses.replace(self, strength=strength)

    def plan(self, inputs: Inputs) -> Plan:
        """A Replace for every linear; at strength 1 the aligned weights."""
        from weightguard.plan import Plan, Replace
        from weightguard.weights import open_weights

        strength = as_share(self.strength, "strength")
        edits, evidence = {}, {}
        for name, linear in inputs.linears.items() if strength else ():
            weights = open_weights(inputs.sources, name, with_aligned=True)
            values, kept, held = _cut(weights, strength)
            edits[name] = Replace(name, spooled(values.float().numpy()))
            evidence[name] = {"layer": linear.layer, "role": linear.role, "shape": list(weights.shape),
                              "directions": held, "kept": kept}  # fmt: skip
        return Plan(self.NAME, self.PAPER, self.target, settings(self), edits, evidence)


def _cut(weights: Weights, strength: Decimal):
    """(W_aligned + D_k in float64, k, numerical rank of D): of the rank, the share `strength` is dropped."""
    import torch

    from weightguard.statistics.selection import count

    rows = weights.shape[0]
    u, s, v = torch.linalg.svd(weights.delta(0, rows).double(), full_matrices=False)
    held = int((s > 1e-6 * s[0]).sum())  # an adapter's update, stored in float32, has no more than its rank
    kept = held - count(strength, held, "exact")
    assert weights.aligned is not None
    return weights.aligned(0, rows).double() + (u[:, :kept] * s[:kept]) @ v[:kept], kept, held
