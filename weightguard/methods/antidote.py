"""Antidote: remove the parameters that matter most on harmful data (arXiv:2408.09600, scores of arXiv:2306.11695).

One shot: input norms on harmful prompt and answer, scores |x_kj|·sqrt(mean_t x_{t,j}²), the top share of each group goes.
The statistics are not collected again after the removal, as published.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

from weightguard.errors import UsageError
from weightguard.methods.inputs import Inputs, as_share, option, settings
from weightguard.methods.selecting import EntrySelection, logical_shape, select_edits

if TYPE_CHECKING:
    from weightguard.checkpoint import Linear
    from weightguard.plan import Plan, Select


UNSEEN = "no counted token of the data reached them"


@dataclass(frozen=True, kw_only=True)
class Antidote(EntrySelection):
    """Zero, or give back to the aligned model, the entries with the highest Wanda score on harmful data."""

    NAME: ClassVar[str] = "antidote"
    PAPER: ClassVar[str] = "arXiv:2408.09600"
    NEEDS: ClassVar[tuple[str, ...]] = ("harmful",)

    tokens: str = option("all", "tokens of the data that count: template, prompt and answer, or the answer only; of refit's "
                         "safety rows, those that predict it", ("all", "response"))  # fmt: skip
    utility_ratio: Decimal | float | str | None = option(
        None, "leave alone the entries in the top share by the score on --utility data"
    )

    def plan(self, inputs: Inputs) -> Plan:
        """The plan for settled options. Errors: UsageError, DataError."""
        from weightguard.plan import Plan

        edits, evidence = select_edits(self, inputs, lambda linear, shape: self._edit(inputs, linear, shape))
        left = _unseen(inputs) if edits else {}
        notes = () if not left else (f"{len(left)} tensors (first: {next(iter(left))}) are left alone: {UNSEEN}",)
        return Plan(self.NAME, self.PAPER, str(self.target), settings(self), edits, {**evidence, **left}, notes)

    def _edit(self, inputs: Inputs, linear: Linear, shape: tuple[int, int]) -> Select | None:
        from weightguard.plan import Select

        assert inputs.harmful is not None
        inputs.harmful.check_shape(linear.tensor, shape[1])
        if linear.tensor in inputs.harmful.unseen:
            return None  # every score is zero, and the entries that come first would be taken
        spare_k, spare_norms = self._spare(inputs, linear, shape)
        norms = inputs.harmful.norms(linear.tensor)
        return Select(linear.tensor, self.of, 0, self.edit_group, "wanda", norms, None, spare_k, spare_norms)

    def _spare(self, inputs: Inputs, linear: Linear, shape: tuple[int, int]):
        from weightguard.statistics.selection import count

        if self.utility_ratio is None:
            return 0, None
        if inputs.utility is None or self.group == "global":
            raise UsageError("--utility-ratio needs --utility data, and --group row or matrix")
        size = shape[1] if self.group == "row" else shape[0] * shape[1]
        if linear.tensor in inputs.utility.unseen:
            return 0, None
        k = count(as_share(self.utility_ratio, "utility-ratio"), size, str(self.rounding))
        return k, inputs.utility.norms(linear.tensor)


def _unseen(inputs: Inputs) -> dict[str, dict[str, Any]]:
    """Tensors in scope of which the data tell nothing, as evidence."""
    assert inputs.harmful is not None
    unseen = [linear for name, linear in inputs.linears.items() if name in inputs.harmful.unseen]
    return {
        it.tensor: {"layer": it.layer, "role": it.role, "shape": list(logical_shape(inputs, it)), "skipped": UNSEEN}
        for it in unseen
    }
