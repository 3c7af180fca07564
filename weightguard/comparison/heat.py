"""Figures by layer and role, for the map on the screen and in the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weightguard.comparison.pairs import TensorChange
from weightguard.comparison.places import ROLES


@dataclass(frozen=True)
class Cell:
    """All tensors of one role in one layer (None: outside the blocks). value: ‖D‖/‖W_base‖ over them together."""

    layer: int | None
    role: str
    value: float
    changed: int
    entries: int


@dataclass(frozen=True)
class Heat:
    """layers and roles in order, the roles that lie outside the layers too; a pair that no tensor has is absent."""

    layers: tuple[int, ...]
    roles: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def largest(self) -> float:
        return max((c.value for c in self.cells if math.isfinite(c.value)), default=0.0)

    def lines(self, most: int) -> list[tuple[str, dict[str, Cell]]]:
        """(layer, its cells by role), with a last line for what lies outside the layers.

        Of more than `most` layers neighbours share a line, and of their cells the largest is shown: none is left out.
        """
        step = max(1, math.ceil(len(self.layers) / most))
        groups = [self.layers[at : at + step] for at in range(0, len(self.layers), step)]
        found = [(f"{g[0]}-{g[-1]}" if len(g) > 1 else str(g[0]), self._largest(g)) for g in groups]
        outside = self._largest((None,))
        return [*found, ("outer", outside)] if outside else found

    def _largest(self, layers: Sequence[int | None]) -> dict[str, Cell]:
        inside = sorted((c for c in self.cells if c.layer in layers), key=lambda cell: cell.value)
        return {cell.role: cell for cell in inside}


def heat_of(changes: Iterable[TensorChange]) -> Heat:
    """The map of a comparison."""
    groups: dict[tuple[int | None, str], list[TensorChange]] = {}
    for change in changes:
        groups.setdefault((change.layer, change.role), []).append(change)
    cells = tuple(_cell(*place, group) for place, group in groups.items())
    layers = sorted({c.layer for c in cells if c.layer is not None})
    seen = {c.role for c in cells}
    return Heat(tuple(layers), tuple(role for role in ROLES if role in seen), cells)


def _cell(layer: int | None, role: str, group: list[TensorChange]) -> Cell:
    update, base = (math.hypot(*(getattr(c, key) for c in group)) for key in ("update_norm", "base_norm"))
    value = update / base if base else (math.inf if update else 0.0)
    return Cell(layer, role, value, sum(c.changed for c in group), sum(c.entries for c in group))
