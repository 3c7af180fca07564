"""Comparator: add the alignment direction once more, W + alpha·(W_aligned − W_unaligned) (RESTA, arXiv:2402.11746), or
only its leading directions (LoX, arXiv:2506.15606)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weightguard.errors import UsageError
from weightguard.methods.inputs import Inputs, spooled
from weightguard.options import as_number, option, settings

if TYPE_CHECKING:
    import torch

    from weightguard.checkpoint import Linear
    from weightguard.plan import Plan


@dataclass(frozen=True, kw_only=True)
class SafetyVector:
    """Add what alignment once changed to the tuned weights again; uses no data."""

    NAME: ClassVar[str] = "safety-vector"
    PAPER: ClassVar[str] = "arXiv:2402.11746"
    NEEDS: ClassVar[tuple[str, ...]] = ("unaligned",)
    STRENGTH: ClassVar[tuple[str, ...]] = ("alpha",)
    target = "delta"  # not a field: there is no other

    alpha: Decimal | float | str | None = option(None, "how much of the alignment direction is added [default: 0.5]")
    vector_rank: int | None = option(None, "add its leading directions only, this many [default: all of it]")
    scope: str = option("all", "roles to edit: all, or for example q,k,v")

    @property
    def strength(self) -> Decimal | float | str | None:
        return self.alpha

    def with_strength(self, value: Decimal) -> Self:
        return dataclasses.replace(self, alpha=value)

    def settled(self, target: str, *, adapter: bool = False) -> Self:
        """Alpha as a decimal. Errors: UsageError without an aligned model, or out of range."""
        if target == "weight":
            raise UsageError("--method safety-vector needs the aligned model; give --aligned")
        if self.vector_rank is not None and (type(self.vector_rank) is not int or self.vector_rank < 1):
            raise UsageError(f"--vector-rank {self.vector_rank}: must be 1 or more")
        alpha = Decimal("0.5") if self.alpha is None else as_number(self.alpha, "alpha", 0)
        return dataclasses.replace(self, alpha=alpha)

    def plan(self, inputs: Inputs) -> Plan:
        """A Replace for every linear. Errors: UsageError, MismatchError."""
        from weightguard.plan import Plan, Replace

        alpha = float(self.alpha or 0)
        edits, evidence = {}, {}
        for name, linear in inputs.linears.items() if alpha else ():
            values = self._moved(inputs, name, alpha)
            edits[name] = Replace(name, spooled(values.float().numpy()))
            evidence[name] = _said(linear, values)
        return Plan(self.NAME, self.PAPER, self.target, settings(self), edits, evidence)

    def _moved(self, inputs: Inputs, name: str, alpha: float) -> torch.Tensor:
        import torch

        from weightguard.weights import open_weights

        assert inputs.direction is not None
        direction = inputs.direction(name)
        vector = direction.rows(0, direction.shape[0])
        if self.vector_rank is not None:
            u, s, v = torch.linalg.svd(vector, full_matrices=False)
            k = self.vector_rank
            vector = (u[:, :k] * s[:k]) @ v[:k]
        weights = open_weights(inputs.sources, name, with_aligned=False)
        return weights.tuned(0, weights.shape[0]).double() + alpha * vector


def _said(linear: Linear, values: torch.Tensor) -> dict[str, Any]:
    return {"layer": linear.layer, "role": linear.role, "shape": list(values.shape)}
