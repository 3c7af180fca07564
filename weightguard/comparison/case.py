"""Everything the kinds may look at. What costs more than the one pass over the files is computed when first asked for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median

from weightguard.checkpoint import may_lack
from weightguard.checkpoint.naming import WRITERS
from weightguard.comparison.mixes import Mix, mix_of
from weightguard.comparison.pairs import Matching, TensorChange
from weightguard.comparison.places import LINEAR_ROLES
from weightguard.comparison.sides import Side
from weightguard.comparison.spectra import (
    Spectrum,
    alone,
    factored_spectrum,
    gram_spectrum,
    levels_of,
    noise_of,
    over,
    sketched_spectrum,
    unit_of,
)
from weightguard.statistics.removal import Removed, common_direction, own_direction, removed
from weightguard.statistics.subspace import Direction, rounding_of

LAYERS = 3  # of which every linear is sketched for the verdict
WRITING_LAYERS = 4  # of which o and down are searched for a direction that is gone
EXPERTS = 4  # of one layer and role
EXACT_SIDE = 512  # up to here a Gram matrix costs less than a sketch


@dataclass(frozen=True)
class Case:
    """MODEL against BASE: tensors that pair, what each says, and other references (`aligned`, `unaligned`) by name.

    not_finite: names of tensors that pair and hold NaN or infinity on a side. known: spectra, where all values were asked for.
    """

    model: Side
    base: Side
    matching: Matching
    changes: tuple[TensorChange, ...]
    others: Mapping[str, Side] = field(default_factory=dict)
    not_finite: tuple[str, ...] = ()
    known: Mapping[str, Spectrum] = field(default_factory=dict)

    @cached_property
    def changed(self) -> tuple[TensorChange, ...]:
        return tuple(c for c in self.changes if c.changed)

    @cached_property
    def linears(self) -> tuple[TensorChange, ...]:
        """The changed matrices of the decoder blocks."""
        return tuple(c for c in self.changed if c.role in LINEAR_ROLES and c.is_matrix)

    @cached_property
    def matrices(self) -> tuple[TensorChange, ...]:
        """All changed matrices: those of the blocks, embeddings, the head and what else has two sides."""
        return tuple(c for c in self.changed if c.is_matrix)

    @cached_property
    def all_linears(self) -> tuple[TensorChange, ...]:
        return tuple(c for c in self.changes if c.role in LINEAR_ROLES and c.is_matrix)

    @cached_property
    def is_complete(self) -> bool:
        """Every tensor of either side was compared; what a model may have or not may be in one of them alone."""
        sides = (self.model.files, self.base.files)
        lost = [n for names in self.gaps.values() for n in names if not any(may_lack(n, side) for side in sides)]
        return not lost and not any(c.rows_left_out for c in self.changes)

    @cached_property
    def gaps(self) -> dict[str, tuple[str, ...]]:
        """Names of what could not be compared, by reason; see `Matching`, and `not_finite`."""
        found = self.matching
        return {
            "reshaped": found.reshaped, "unread": found.unread, "only_model": found.only_model,
            "only_base": found.only_base, "not_finite": self.not_finite,
        }  # fmt: skip

    @cached_property
    def compared_share(self) -> float:
        """Share of the numbers that MODEL's files hold which were compared."""
        whole = sum(info.numel for info in self.model.files.tensors.values())
        return sum(c.entries for c in self.changes) / whole if whole else 0.0

    @cached_property
    def is_adapter(self) -> bool:
        """MODEL is an adapter over BASE itself, so D is s·B·A and nothing else."""
        return bool(self.model.pairs) and self.model.files is self.base.files

    def delta(self, name: str) -> Direction:
        """D of one tensor, read anew by row blocks at every pass."""
        change = next(c for c in self.changes if c.name == name)
        return Direction(self.model.rows(name), self.base.rows(name), change.shape)

    def spectrum(self, change: TensorChange, *, exact: bool) -> Spectrum:
        """Singular values of D of one tensor; of an adapter over its own base from its factors."""
        update, unit = self.model.update(change.name), unit_of(change.largest)
        if update is not None and self.is_adapter:
            return factored_spectrum(update, unit * noise_of(over(alone(update, change.shape), unit)))
        delta = over(self.delta(change.name), unit)
        levels = levels_of(delta, rounding_share(change))
        if exact or min(change.shape) <= EXACT_SIDE:
            return gram_spectrum(delta, levels).times(unit)
        return sketched_spectrum(delta, change.update_norm / unit, levels).times(unit)

    @cached_property
    def few_linears(self) -> tuple[TensorChange, ...]:
        """The changed linears of a few layers, evenly spread."""
        return tuple(_spread(self.linears, LAYERS))

    @cached_property
    def spectra(self) -> dict[str, Spectrum]:
        """Spectra of `few_linears`; those that are known are not computed again."""
        return {c.name: self.known.get(c.name) or self.spectrum(c, exact=False) for c in self.few_linears}

    @cached_property
    def writers(self) -> tuple[TensorChange, ...]:
        """Changed matrices that write to the residual stream, of a few layers."""
        found = [c for c in self.linears if c.role in WRITERS]
        rows = {c.shape[0] for c in found}
        return tuple(_spread(found, WRITING_LAYERS)) if len(rows) == 1 else ()

    @cached_property
    def removals(self) -> dict[str, Removed]:
        """What one common direction explains of each writer's update."""
        deltas = {c.name: self.delta(c.name) for c in self.writers}
        direction = common_direction(list(deltas.values()), refinements=1) if deltas else None
        return {} if direction is None else {name: removed(delta, direction) for name, delta in deltas.items()}

    @cached_property
    def own_removals(self) -> dict[str, Removed]:
        """The same with a direction of its own for each writer."""
        deltas = {c.name: self.delta(c.name) for c in self.writers}
        return {name: removed(delta, own_direction(delta)) for name, delta in deltas.items()}

    @cached_property
    def mixes(self) -> dict[str, list[Mix]]:
        """D against R − W_base, tensor by tensor, for every other reference R."""
        return {label: self._mixed(other) for label, other in self.others.items()}

    def _mixed(self, other: Side) -> list[Mix]:
        fit = [c for c in self.changed if c.is_matrix and other.holds(c.name, c.shape)]
        return [
            mix_of(c, self.model.rows(c.name), self.base.rows(c.name), other.rows(c.name), other.label) for c in fit
        ]


def rounding_share(change: TensorChange) -> float:
    """What storing moves an entry of D by, as a share of W's: errors u·0.82·|W| of random sign.

    √2 times that where both sides were rounded alike. F64 is what s·B·A over a base is computed in: nothing was stored.
    """
    if change.precision == "F64":
        return 0.0
    unit = rounding_of(change.precision)
    both = rounding_of(change.dtypes[1]) >= unit
    return unit * 0.82 * math.sqrt(1 + both)


def middle(values: Sequence[float]) -> float:
    """The median; nan of nothing."""
    return median(values) if values else math.nan


def _spread(changes: Sequence[TensorChange], count: int) -> list[TensorChange]:
    """The changes of at most `count` layers, evenly spread over those that changed; of many experts the first few."""
    layers = sorted({c.layer for c in changes if c.layer is not None})
    if len(layers) > count:
        layers = [layers[round(i * (len(layers) - 1) / (count - 1))] for i in range(count)]
    seen: Counter[tuple[int | None, str]] = Counter()
    chosen = []
    for change in (c for c in changes if c.layer in set(layers)):
        seen[change.layer, change.role] += 1
        chosen += [change] if seen[change.layer, change.role] <= EXPERTS else []
    return chosen
