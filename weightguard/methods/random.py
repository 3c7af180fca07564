"""Control: take entries at random, as many per group as the method under test takes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from weightguard.methods.inputs import Inputs, option, settings
from weightguard.methods.selecting import EntrySelection, select_edits

if TYPE_CHECKING:
    from weightguard.plan import Plan, Select


@dataclass(frozen=True, kw_only=True)
class Random(EntrySelection):
    """Zero, or give back to the aligned model, entries drawn at random; the same ones for the same seed."""

    NAME: ClassVar[str] = "random"
    PAPER: ClassVar[str] = "control"
    NEEDS: ClassVar[tuple[str, ...]] = ()

    seed: int = option(0, "seed of the draw")

    def plan(self, inputs: Inputs) -> Plan:
        """The plan for settled options. Errors: UsageError."""
        from weightguard.plan import Plan

        edits, evidence = select_edits(self, inputs, lambda linear, _: self._edit(linear.tensor))
        return Plan(self.NAME, self.PAPER, str(self.target), settings(self), edits, evidence)

    def _edit(self, tensor: str) -> Select:
        from weightguard.plan import Select

        return Select(tensor, self.of, 0, self.edit_group, "random", seed=_seed_of(tensor, self.seed))


def _seed_of(tensor: str, seed: int) -> int:
    """32 bits from the seed and the tensor's name, so that tensors of one shape draw differently."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{tensor}".encode()).digest()[:4], "little")
