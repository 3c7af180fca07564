"""Comparator: realignment, a few steps of training on safety rows after the fine-tuning (as in arXiv:2402.02207)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, ClassVar, Self

from weightguard.errors import UsageError
from weightguard.methods.inputs import FromBehaviour, Inputs, spooled
from weightguard.options import as_number, option, settings

if TYPE_CHECKING:
    from weightguard.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Realign(FromBehaviour):
    """Train the linears on the safety rows for a few steps of Adam; knows nothing of the user's data."""

    NAME: ClassVar[str] = "realign"
    PAPER: ClassVar[str] = "comparator"
    NEEDS: ClassVar[tuple[str, ...]] = ("safety",)

    steps: int = option(20, "steps over all safety rows")
    learning_rate: Decimal | float | str = option(Decimal("0.0005"), "learning rate of Adam")

    def settled(self, target: str, *, adapter: bool = False) -> Self:
        """Numbers as decimals. Errors: UsageError without an aligned model, or out of range."""
        self.check_target(target)
        if type(self.steps) is not int or not 0 <= self.steps <= 10_000:
            raise UsageError(f"--steps {self.steps}: must be 0 to 10000")
        return dataclasses.replace(self, learning_rate=as_number(self.learning_rate, "learning-rate", 1e-9))

    def plan(self, inputs: Inputs) -> Plan:
        """A Replace for every linear. Error: DataError."""
        from weightguard.plan import Plan, Replace

        assert inputs.in_memory is not None
        held = inputs.in_memory()
        losses = held.descend("safety", self.steps, float(self.learning_rate))
        edits, evidence = {}, {}
        for name, linear in inputs.linears.items() if losses else ():
            values = held.values(name)
            edits[name] = Replace(name, spooled(values.float().numpy()))
            evidence[name] = {"layer": linear.layer, "role": linear.role, "shape": list(values.shape)}
        notes = (f"loss of the safety rows: {losses[0]:.4f} before the first step, {losses[-1]:.4f} before the last",)
        return Plan(self.NAME, self.PAPER, self.target, settings(self), edits, evidence, notes if losses else ())
