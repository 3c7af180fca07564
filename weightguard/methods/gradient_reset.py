"""Gradient reset: entries that gradient says keep the model from refusing, at the least cost to the user's data, go back.

Our own. To first order, giving entry j back to the aligned value lowers the loss of refusing by g_j·D_j, and to second
order it costs the user's data F_j·D_j² (F: diagonal of the Fisher matrix). Entries with the largest
max(0, g·D) / ((F + 0.1·mean F)·D²) go back, one share over all matrices, in rounds with g measured anew.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, ClassVar, Self

from weightguard.errors import UsageError
from weightguard.methods.inputs import FromBehaviour, Inputs
from weightguard.options import as_share, option, settings

if TYPE_CHECKING:
    import torch

    from weightguard.plan import Plan
    from weightguard.statistics.in_memory import InMemory
    from weightguard.weights import Weights


@dataclass(frozen=True, kw_only=True)
class GradientReset(FromBehaviour):
    """Give back the entries of the update that stand in the way of refusing and matter least for the user's data."""

    NAME: ClassVar[str] = "gradient-reset"
    PAPER: ClassVar[str] = "weightguard"
    STRENGTH: ClassVar[tuple[str, ...]] = ("share",)

    share: Decimal | float | str | None = option(
        None, "share of all entries to give back, over all rounds [default: 0.2]"
    )
    rounds: int = option(4, "rounds, each with the gradient measured on the model so far")

    @property
    def strength(self) -> Decimal | float | str | None:
        return self.share

    def with_strength(self, value: Decimal) -> Self:
        return dataclasses.replace(self, share=value)

    def settled(self, target: str, *, adapter: bool = False) -> Self:
        """The share as a decimal. Errors: UsageError without an aligned model, or out of range."""
        self.check_target(target)
        if type(self.rounds) is not int or not 1 <= self.rounds <= 100:
            raise UsageError(f"--rounds {self.rounds}: must be 1 to 100")
        share = Decimal("0.2") if self.share is None else as_share(self.share, "share")
        return dataclasses.replace(self, share=share)

    def plan(self, inputs: Inputs) -> Plan:
        """A Mask for every linear that loses an entry. Errors: UsageError, DataError."""
        import torch

        from weightguard import bits
        from weightguard.plan import Mask, Plan
        from weightguard.weights import open_weights

        share = as_share(self.share, "share")
        if share == 0:
            return Plan(self.NAME, self.PAPER, self.target, settings(self), {})
        opened = {name: open_weights(inputs.sources, name, with_aligned=True) for name in inputs.linears}
        masks = {name: torch.zeros(each.shape, dtype=torch.bool) for name, each in opened.items()}
        self._reset(inputs, {name: (_tuned(w), _aligned(w)) for name, w in opened.items()}, masks, share)
        edits = {n: Mask(n, "delta", bits.packed(mask.numpy())) for n, mask in masks.items() if mask.any()}
        evidence = {
            n: {"layer": inputs.linears[n].layer, "role": inputs.linears[n].role, "shape": list(masks[n].shape),
                "selected": int(masks[n].sum())}
            for n in edits
        }  # fmt: skip
        return Plan(self.NAME, self.PAPER, self.target, settings(self), edits, evidence)

    def _reset(self, inputs: Inputs, sides: dict, masks: dict[str, torch.Tensor], share: Decimal) -> None:
        from weightguard.statistics.selection import count

        assert inputs.in_memory is not None
        held = inputs.in_memory()
        if "fisher" not in inputs.kept:
            inputs.kept["fisher"] = _damped(held.fisher("benign"))
        total = sum(mask.numel() for mask in masks.values())
        for round_ in range(1, self.rounds + 1):
            k = count(share * round_ / self.rounds, total, "exact") - sum(int(mask.sum()) for mask in masks.values())
            scores = _scores(held, sides, inputs.kept["fisher"], masks)
            for name, chosen in _highest(scores, k).items():
                masks[name] |= chosen
                tuned, aligned = sides[name]
                held.put(name, aligned.where(masks[name], tuned))


def _damped(fisher: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """F + 0.1·mean F: what no row of the user's data moves still costs something."""
    mean = sum(float(f.sum()) for f in fisher.values()) / sum(f.numel() for f in fisher.values())
    return {name: f + 0.1 * mean + 1e-300 for name, f in fisher.items()}


def _scores(
    held: InMemory, sides: dict, fisher: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """max(0, g·D)/(F·D²) by entry; 0 where D is 0 or the entry has gone back already."""
    gradient = held.gradient("safety")
    found = {}
    for name, (tuned, aligned) in sides.items():
        delta = (tuned - aligned).masked_fill(masks[name], 0)
        cost = fisher[name] * delta * delta
        gain = (gradient[name] * delta).clamp_min(0)
        found[name] = (gain / cost).where(cost > 0, 0)
    return found


def _highest(scores: dict[str, torch.Tensor], k: int) -> dict[str, torch.Tensor]:
    """Bool masks of the k highest positive scores over all tensors; ties by bytewise name, then index."""
    import torch

    names = sorted(scores, key=str.encode)
    flat = torch.cat([scores[name].reshape(-1) for name in names])
    order = torch.sort(flat, descending=True, stable=True).indices[:k]
    chosen = torch.zeros(flat.shape, dtype=torch.bool)
    chosen[order] = flat[order] > 0
    parts = chosen.split([scores[name].numel() for name in names])
    return {name: part.reshape(scores[name].shape) for name, part in zip(names, parts, strict=True)}


def _tuned(weights: Weights) -> torch.Tensor:
    return weights.tuned(0, weights.shape[0]).double()


def _aligned(weights: Weights) -> torch.Tensor:
    assert weights.aligned is not None
    return weights.aligned(0, weights.shape[0]).double()
