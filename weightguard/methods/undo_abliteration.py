"""Put back a direction that was removed from what writes to the residual stream (abliteration, arXiv:2406.11717).

Where o and down projections lost −c·u·uᵀ·W_aligned with one u for all of them, W + c·u·uᵀ·W_aligned has it again, and
keeps whatever a later fine-tuning added, along u too. c and u are least squares over the update; nothing else is edited.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weightguard.errors import UsageError
from weightguard.methods.inputs import Inputs, as_share, option, settings

if TYPE_CHECKING:
    import torch

    from weightguard.plan import LowRank, Plan
    from weightguard.statistics.removal import Removed
    from weightguard.statistics.subspace import Direction

UNDER = (
    "if the model under the adapter was abliterated, repair that alone: weightguard repair MODEL --method undo-abliteration "
    "--base BASE -o OUT, and put the adapter over OUT"
)
SEARCHED = 16  # matrices that are held at once while the direction is looked for


@dataclass(frozen=True, kw_only=True)
class UndoAbliteration:
    """Restore the one direction that abliteration removed from o and down; all other changes stay."""

    NAME: ClassVar[str] = "undo-abliteration"
    PAPER: ClassVar[str] = "arXiv:2406.11717"
    NEEDS: ClassVar[tuple[str, ...]] = ()
    STRENGTH: ClassVar[tuple[str, ...]] = ()

    target: str | None = option(None, "delta: the update W - W_aligned tells the direction", ("delta",))
    coherence: Decimal | float | str | None = option(
        None, "least cosine of what a matrix lost and what it had along the direction [default: 0.8]"
    )
    strength: Decimal | float | str | None = option(None, "share of the removed direction that is put back, 0 to 1")
    scope: str = option("all", "roles to edit: all, or for example q,k,v")

    def with_strength(self, value: Decimal) -> Self:
        return dataclasses.replace(self, strength=value)

    def settled(self, target: str, *, adapter: bool = False) -> Self:
        """Every None replaced by its default. Error: UsageError when there is nothing to compare with."""
        if (self.target or target) != "delta":
            raise UsageError("--method undo-abliteration needs the model before the abliteration; give it with --base")
        strength = Decimal(1) if self.strength is None else as_share(self.strength, "strength")
        coherence = Decimal("0.8") if self.coherence is None else as_share(self.coherence, "coherence")
        return dataclasses.replace(self, target="delta", strength=strength, coherence=coherence)

    def plan(self, inputs: Inputs) -> Plan:
        """The plan for settled options. Error: UsageError where no direction is missing."""
        from weightguard.plan import Plan
        from weightguard.statistics.loading import pinned_threads

        strength = float(str(self.strength))
        if strength == 0:
            return Plan(self.NAME, self.PAPER, "delta", settings(self), {})
        if "removed" not in inputs.kept:
            with pinned_threads(1):  # the last bits of a matrix product depend on it
                inputs.kept["removed"] = self._found(inputs)
        direction, found = inputs.kept["removed"]
        edits = {name: _edit(name, direction, seen, strength) for name, seen in found.items()}
        evidence = {name: _said(inputs, name, seen) for name, seen in found.items()}
        return Plan(self.NAME, self.PAPER, "delta", settings(self), edits, evidence, _notes(inputs, found))

    def _found(self, inputs: Inputs) -> tuple[torch.Tensor, dict[str, Removed]]:
        """(u, what is missing along it) for every matrix that lost it."""
        from weightguard.statistics.removal import common_direction, removed

        names = [name for name, linear in inputs.linears.items() if linear.writes]
        if inputs.sources.merged is not None and len(names) < 2:
            raise UsageError(f"--method undo-abliteration: the adapter changes no o and down projections; {UNDER}")
        direction = common_direction([_delta(inputs, name) for name in _spread(names)])
        if direction is None:
            raise UsageError("--method undo-abliteration: o and down are the base's own; there is nothing to put back")
        found = {name: seen for name in names if self._lost(seen := removed(_delta(inputs, name), direction))}
        if len(found) < 2:
            raise UsageError(
                "--method undo-abliteration: no one direction is missing from o and down that the base has; "
                + (UNDER if inputs.sources.merged else "`weightguard inspect MODEL --base BASE` says what was changed")
            )
        return direction, found

    def _lost(self, seen: Removed) -> bool:
        # A model that has little to do with the base "lost" any direction of it, and all others too.
        return seen.coherence >= float(str(self.coherence)) and seen.share > 3 * max(0.0, seen.everywhere)


def _delta(inputs: Inputs, name: str) -> Direction:
    from weightguard.statistics.subspace import Direction
    from weightguard.weights import open_weights

    weights = open_weights(inputs.sources, name, with_aligned=True)
    assert weights.aligned is not None
    return Direction(weights.tuned, weights.aligned, weights.shape)


def _spread(names: list[str]) -> Iterator[str]:
    """At most SEARCHED names, evenly spread."""
    step = max(1.0, len(names) / SEARCHED)
    return (names[int(at * step)] for at in range(min(SEARCHED, len(names))))


def _edit(name: str, direction: torch.Tensor, seen: Removed, strength: float) -> LowRank:
    from weightguard.plan import LowRank

    left = direction.reshape(-1, 1).float().numpy()
    right = (strength * seen.share * seen.right).reshape(1, -1).float().numpy()
    return LowRank(name, left, right)


def _said(inputs: Inputs, name: str, seen: Removed) -> dict[str, Any]:
    linear = inputs.linears[name]
    return {
        "layer": linear.layer, "role": linear.role, "shape": list(inputs.sources.model.info(name).shape),
        "removed": seen.share, "coherence": seen.coherence, "explained": seen.explained,
    }  # fmt: skip


def _notes(inputs: Inputs, found: dict[str, Removed]) -> tuple[str, ...]:
    writers = [n for n, linear in inputs.linears.items() if linear.writes]
    mean = sum(seen.share for seen in found.values()) / len(found)
    rest = 1 - sum(seen.explained for seen in found.values()) / len(found)
    return (
        f"{len(found)} of {len(writers)} o and down projections lost one common direction (on average {mean:.0%} of it); "
        f"{rest:.1%} of their update is something else, and stays",
    )
