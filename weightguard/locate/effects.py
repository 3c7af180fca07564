"""What it would do to the loss to take a unit out, to first order, for all units in one backward pass a sample.

Setting the entries of a unit to zero changes L_n by −Σ W_ij·∂L_n/∂W_ij over its entries, to first order. The size of it is
the unit's effect on sample n. (Taking every unit out in turn would cost a forward pass over the data for each of them.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
