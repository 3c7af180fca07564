"""What it does to the loss to take a unit out: to first order for all units at once, or really, one unit after the other.

Setting the entries of a unit to zero changes L_n by −Σ W_ij·∂L_n/∂W_ij over its entries, to first order. The size of it is
the unit's effect on sample n: one backward pass a sample serves all units. Really taking a unit out costs a forward pass
over the data, which is for heads rather than for rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from weightguard.errors import DataError
from weightguard.locate.material import Material
from weightguard.locate.units import Group, Member

if TYPE_CHECKING:
    import numpy
    import torch

Effects = dict[str, "numpy.ndarray"]


def mean_effects(material: Material, role: str, groups: Mapping[str, Group]) -> Effects:
    """(1/N) Σ_n |Σ_unit W·∂L_n/∂W|: float64 (count,) a group."""
    total: Effects = {}
    samples = 0
    for found in _each_sample(material, role, groups):
        total = {name: total[name] + each if total else each for name, each in found.items()}
        samples += 1
    return {name: each / samples for name, each in _finite(total).items()}


def least_effects(material: Material, role: str, groups: Mapping[str, Group]) -> Effects:
    """min_n |Σ_unit W·∂L_n/∂W|: large for units that matter on every sample; float64 (count,) a group."""
    import numpy

    least: Effects = {}
    for found in _each_sample(material, role, groups):
        least = {name: numpy.minimum(least[name], each) if least else each for name, each in found.items()}
    return _finite(least)


def ablation_effects(material: Material, role: str, groups: Mapping[str, Group]) -> Effects:
    """Rise of the mean loss of the answers when a unit is really set to zero: float64 (count,) a group."""
    import numpy

    from weightguard.statistics.gradients import predicted
    from weightguard.statistics.losses import answer_losses

    rows = [row for row in material.data[role].rows if predicted(row)]
    before = answer_losses(material.model, rows).mean()
    total, done = sum(group.count for group in groups.values()), 0
    found: Effects = {}
    for name, group in groups.items():
        found[name] = numpy.zeros(group.count)
        for unit in range(group.count):
            with _taken_out(material, group, unit):
                found[name][unit] = float(answer_losses(material.model, rows).mean() - before)
            material.progress("ablate", done := done + 1, total)
    return _finite(found)


@contextmanager
def _taken_out(material: Material, group: Group, unit: int) -> Iterator[None]:
    """Inside, the unit's entries are zero in the running model."""
    import torch

    lines = {name: _lines_of(material, name, member) for name, member in group.members.items()}
    owned = {name: torch.tensor(member.owner == unit) for name, member in group.members.items()}
    kept = {name: each[owned[name]].clone() for name, each in lines.items()}
    for name, each in lines.items():
        each[owned[name]] = 0
    try:
        yield
    finally:
        for name, each in lines.items():
            each[owned[name]] = kept[name]


def _lines_of(material: Material, name: str, member: Member) -> torch.Tensor:
    """The running weight with its units first: (out, in), or (in, out) where they are columns; writes go through."""
    weight = material.weight(name).detach()
    logical = weight.T if material.linears[name].transposed else weight
    return logical if member.form == "rows" else logical.T


def _each_sample(material: Material, role: str, groups: Mapping[str, Group]) -> Iterator[Effects]:
    from weightguard.statistics.gradients import row_gradients

    members: dict[str, Member] = {name: m for group in groups.values() for name, m in group.members.items()}
    linears = {name: material.linears[name] for name in members}

    def reduce(name: str, weight: torch.Tensor, gradient: torch.Tensor) -> Any:
        product = weight.double() * gradient.double()
        return product.sum(1 if members[name].form == "rows" else 0).cpu().numpy()

    rows, config = material.data[role].rows, material.checkpoint.config
    for kept in row_gradients(material.model, config, linears, rows, reduce, material.step("gradients")):
        yield {label: abs(group.total(kept)) for label, group in groups.items()}


def _finite(effects: Effects) -> Effects:
    import numpy

    broken = next((name for name, each in effects.items() if not numpy.isfinite(each).all()), None)
    if broken is not None:
        raise DataError(f"the gradients of {broken} are not finite; give --dtype float32 or float64")
    return effects
