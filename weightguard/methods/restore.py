"""Write the aligned values back where the neurons are ("rewind" in the code of arXiv:2402.05162)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

from weightguard.errors import UsageError
from weightguard.methods.inputs import Inputs, option, settings
from weightguard.methods.masking import mask_edits

if TYPE_CHECKING:
    from weightguard.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Restore:
    """Give the entries that the neurons mark back to the aligned model; all other entries keep their values."""

    NAME: ClassVar[str] = "restore"
    PAPER: ClassVar[str] = "arXiv:2402.05162"
    NEEDS: ClassVar[tuple[str, ...]] = ("neurons",)

    target: str | None = option(None, "delta: entries of W - W_aligned go back to the aligned value", ("delta",))
    scope: str = option("all", "roles to edit: all, or for example q,k,v")

    def settled(self, target: str, *, adapter: bool = False) -> Self:
        """With the target in place. Error: UsageError without an aligned model."""
        if target == "weight":
            raise UsageError("--method restore writes aligned values back; give --aligned, or an adapter")
        return replace(self, target="delta")

    def plan(self, inputs: Inputs) -> Plan:
        """A Mask edit a tensor. Error: UsageError for neurons that mark no entries of the tensors in scope."""
        from weightguard.plan import Plan

        edits, evidence = mask_edits(self.NAME, inputs, "delta")
        return Plan(self.NAME, self.PAPER, "delta", settings(self), edits, evidence)
