"""Set the weights or units that the neurons mark to zero: how brittle is safety? (arXiv:2402.05162, section 4)

An experiment on an aligned model, not a repair: if safety rests on what is marked, the model refuses less afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from weightguard.methods.inputs import Inputs, option, settings
from weightguard.methods.masking import mask_edits

if TYPE_CHECKING:
    from weightguard.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Zero the entries that the neurons mark. An experiment: it takes safety away where it is found."""

    NAME: ClassVar[str] = "prune"
    PAPER: ClassVar[str] = "arXiv:2402.05162"
    NEEDS: ClassVar[tuple[str, ...]] = ("neurons",)

    target: str | None = option("weight", "weight: entries of W become zero", ("weight",))
    scope: str = option("all", "roles to edit: all, or for example q,k,v")

    def settled(self, target: str, *, adapter: bool = False) -> Self:
        return self

    def plan(self, inputs: Inputs) -> Plan:
        """A Mask edit a tensor. Error: UsageError for neurons that mark no entries of the tensors in scope."""
        from weightguard.plan import Plan

        edits, evidence = mask_edits(self.NAME, inputs, "weight")
        return Plan(self.NAME, self.PAPER, "weight", settings(self), edits, evidence)
