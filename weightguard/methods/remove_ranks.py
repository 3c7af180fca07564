"""Take the safety ranks out: W − (I − Π_u) Π_s W (ActSVD, arXiv:2402.05162, section 4). An experiment, as `prune` is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from weightguard.methods.inputs import Inputs, option, settings
from weightguard.methods.masking import said_of, usable_parts

if TYPE_CHECKING:
    from weightguard.plan import Plan


@dataclass(frozen=True, kw_only=True)
class RemoveRanks:
    """Subtract the low-rank part that the neurons hold of each tensor. An experiment: it takes safety away."""

    NAME: ClassVar[str] = "remove-ranks"
    PAPER: ClassVar[str] = "arXiv:2402.05162"
    NEEDS: ClassVar[tuple[str, ...]] = ("neurons",)

    target: str | None = option("weight", "weight: the part is subtracted from W", ("weight",))
    scope: str = option("all", "roles to edit: all, or for example q,k,v")

    def settled(self, target: str, *, adapter: bool = False) -> Self:
        return self

    def plan(self, inputs: Inputs) -> Plan:
        """A LowRank edit a tensor. Error: UsageError for neurons that hold no ranks of the tensors in scope."""
        from weightguard.plan import LowRank, Plan

        parts = usable_parts(self.NAME, inputs, ("rank",))
        edits = {n: LowRank(n, -part.left, part.right) for n, part in parts.items()}
        evidence = {n: said_of(inputs, n) | {"rank": part.left.shape[1]} for n, part in parts.items()}
        return Plan(self.NAME, self.PAPER, "weight", settings(self), edits, evidence)
