"""Comparator: keep only the leading singular directions of the update, W_aligned + D_k; or take them out as an adapter."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, ClassVar, Self

from weightguard.errors import MismatchError, UnsupportedError, UsageError
from weightguard.methods.factoring import factored, lost
from weightguard.methods.inputs import Inputs, spooled
from weightguard.options import as_share, option, settings

if TYPE_CHECKING:
    import torch

    from weightguard.plan import Plan
    from weightguard.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Truncate:
    """Drop singular directions of the update, the smallest first; uses no data.

    With a rank the result is an adapter over the aligned model: of a merged LoRA, the adapter again, but for the alpha and
    the factorisation it had.
    """

    NAME: ClassVar[str] = "truncate"
    PAPER: ClassVar[str] = "comparator"
    NEEDS: ClassVar[tuple[str, ...]] = ()
    STRENGTH: ClassVar[tuple[str, ...]] = ("rank",)
    target = "delta"  # not a field: there is no other

    strength: Decimal | float | str | None = option(None, "share of the singular directions that is dropped")
    rank: int | None = option(None, "write an adapter of this rank over the aligned model instead")
    scope: str = option("all", "roles to edit: all, or for example q,k,v")

    def with_strength(self, value: Decimal) -> Self:
        return dataclasses.replace(self, strength=value, rank=None)

    def settled(self, target: str, *, adapter: bool = False) -> Self:
        """The strength as a decimal. Error: UsageError without an aligned model."""
        if target == "weight":
            raise UsageError("--method truncate needs the aligned model; give --aligned")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"--rank {self.rank}: must be 1 or more")
        if self.rank is not None:
            return self
        strength = Decimal("0.5") if self.strength is None else as_share(self.strength, "strength")
        return dataclasses.replace(self, strength=strength)

    def plan(self, inputs: Inputs) -> Plan:
        """A Replace for every linear, at strength 1 the aligned weights; with a rank a LowRank for every one that changed."""
        return self._replaced(inputs) if self.rank is None else self._adapter(inputs, self.rank)

    def _adapter(self, inputs: Inputs, rank: int) -> Plan:
        """Error: MismatchError where nothing changed."""
        from weightguard.plan import Plan
        from weightguard.weights import distances, open_weights

        edits, evidence = {}, {}
        for name, linear in inputs.linears.items():
            weights = open_weights(inputs.sources, name, with_aligned=True)
            moved = weights.delta(0, weights.shape[0]).double()
            if linear.expert is not None and bool(moved.any()):
                raise UnsupportedError(f"--rank: no adapter holds routed experts, and {name!r} changed; leave it out")
            if bool(moved.any()):
                edits[name], product, said = factored(name, moved, min(rank, _rank(moved)))
                origin, tuned = weights.ends()
                evidence[name] = {"layer": linear.layer, "role": linear.role, "shape": list(weights.shape), **said,
                                  **distances(origin + product, origin, tuned)}  # fmt: skip
        if not edits:
            raise MismatchError("--rank: no linear differs from the aligned model, so there is no adapter to take out")
        return Plan(self.NAME, self.PAPER, "adapter", settings(self), edits, evidence, lost(evidence, rank))

    def _replaced(self, inputs: Inputs) -> Plan:
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


def _above_noise(s: torch.Tensor) -> int:
    """Of singular values, those that rounding to float32 does not explain: an update has no more than its rank."""
    return int((s > 1e-6 * s[0]).sum())


def _rank(moved: torch.Tensor) -> int:
    import torch

    return max(1, _above_noise(torch.linalg.svdvals(moved)))


def _cut(weights: Weights, strength: Decimal):
    """(W_aligned + D_k in float64, k, numerical rank of D): of the rank, the share `strength` is dropped."""
    import torch

    from weightguard.statistics.selection import count

    rows = weights.shape[0]
    u, s, v = torch.linalg.svd(weights.delta(0, rows).double(), full_matrices=False)
    held = _above_noise(s)
    kept = held - count(strength, held, "exact")
    assert weights.aligned is not None
    return weights.aligned(0, rows).double() + (u[:, :kept] * s[:kept]) @ v[:kept], kept, held
