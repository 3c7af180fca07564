"""Control: take the entries that are largest, looking at no data. A strong control for every data-driven repair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from weightguard.methods.inputs import Inputs, settings
from weightguard.methods.selecting import EntrySelection, select_edits

if TYPE_CHECKING:
    from weightguard.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Magnitude(EntrySelection):
    """Zero, or give back to the aligned model, the entries of largest magnitude; uses no data."""

    NAME: ClassVar[str] = "magnitude"
    PAPER: ClassVar[str] = "control"
    NEEDS: ClassVar[tuple[str, ...]] = ()

    def plan(self, inputs: Inputs) -> Plan:
        """The plan for settled options. Errors: UsageError."""
        from weightguard.plan import Plan, Select

        edits, evidence = select_edits(
            self, inputs, lambda linear, _: Select(linear.tensor, self.of, 0, self.edit_group, "magnitude")
        )
        return Plan(self.NAME, self.PAPER, str(self.target), settings(self), edits, evidence)
