"""Units by what it does to take them out: Freeze+ and RSN against finite differences and a typing written out."""

from __future__ import annotations

import numpy
import pytest

from weightguard.errors import DataError, UsageError
from weightguard.locate.freeze_plus import TYPES


def line_effects(subject, naive, role: str) -> list[dict[str, numpy.ndarray]]:
    """|Σ W·∂L_n/∂W| over each row, or each column of o and down, sample by sample."""
    axis = {n: 0 if linear.role in ("o", "down") else 1 for n, linear in subject.linears.items()}
    return [
        {n: abs((subject.weights[n] * g).sum(axis[n])) for n, g in each.items()}
        for each in naive.gradients(subject, role)
    ]


def spread(subject, units: dict[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
    """Units by tensor as bool (out, in)."""
    columns = {n for n, linear in subject.linears.items() if linear.role in ("o", "down")}
    return {
        n: numpy.broadcast_to(m if n in columns else m[:, None], subject.weights[n].shape) for n, m in units.items()
    }


def material_of(it):
    """What a kind is given, in float64."""
    from weightguard.api.collect import Running
    from weightguard.api.locating import Sets, _material
    from weightguard.api.subject import open_subject
    from weightguard.locate.freeze_plus import FreezePlus

    opened = open_subject(str(it.path), search=False)
    running = Running(dtype="float64", threads=1)
    return _material(FreezePlus(), opened, opened.named, Sets(**it.files), running, [], lambda *_: None, None)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_ablation_is_the_rise_of_the_loss_without_the_unit(family: str, subject, naive) -> None:
    from weightguard.locate.effects import ablation_effects
    from weightguard.locate.units import unit_groups

    it = subject(family)
    material = material_of(it)
    weights = {name: material.weight(name).detach().clone() for name in it.linears}
    rows = naive.rows_of(it.path, it.files["safety"])
    for units in ("heads", "rows"):
        groups = dict(list(unit_groups(material, units).items())[-1:])
        found = ablation_effects(material, "safety", groups)
        [(name, group)] = groups.items()
        for unit in (0, group.count - 1):
            with_it, without = (_losses(it, naive, rows, group, unit, factor) for factor in (1, 0))
            assert found[name][unit] == pytest.approx((without - with_it).mean(), rel=1e-4, abs=1e-6)
    import torch

    assert all(torch.equal(material.weight(name), before) for name, before in weights.items())


def test_the_effect_is_the_slope_of_the_loss(subject, naive) -> None:
    """Taking a little of a unit away changes each sample's loss by as much as the effect says."""
    from weightguard.locate.effects import mean_effects
    from weightguard.locate.units import unit_groups

    it = subject("llama")
    material = material_of(it)
    groups = unit_groups(material, "heads")
    found = mean_effects(material, "safety", groups)
    rows, step = naive.rows_of(it.path, it.files["safety"]), 3e-3  # the model's norms round to float32
    for unit in (0, 1):
        less, more = (_losses(it, naive, rows, groups["layer 1"], unit, factor) for factor in (1 - step, 1 + step))
        assert found["layer 1"][unit] == pytest.approx(numpy.mean(abs(more - less)) / (2 * step), rel=2e-3)


def _losses(it, naive, rows, group, unit: int, factor: float) -> numpy.ndarray:
    """Every sample's loss with the entries of one unit times a factor."""
    import torch

    model = naive.in_float64(it.path)
    for name, member in group.members.items():
        mask = torch.zeros(member.shape, dtype=torch.bool)
        chosen = torch.tensor(member.owner == unit)
        mask[chosen if member.form == "rows" else (slice(None), chosen)] = True
        weight = naive.module_of(model, name).weight
        mask = mask.T if it.linears[name].transposed else mask
        weight.data = torch.where(mask, weight.data * factor, weight.data)
    with torch.no_grad():
        return numpy.array([float(naive.loss(model, *row)) for row in rows])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_unit_has_its_type(family: str, subject, naive, masks_of) -> None:
    it = subject(family)
    mean = {}
    for role in ("safety", "utility"):
        each = line_effects(it, naive, role)
        mean[role] = {n: sum(one[n] for one in each) / len(each) for n in it.weights}
    for group in ("matrix", "global"):
        a, b = naive.tops(mean["safety"], "0.25", group), naive.tops(mean["utility"], "0.25", group)
        wanted = {
            "safety-critical": {n: a[n] & ~b[n] for n in a},
            "utility-critical": {n: b[n] & ~a[n] for n in a},
            "complex": {n: a[n] & b[n] for n in a},
            "redundant": {n: ~a[n] & ~b[n] for n in a},
        }
        options = {
            "kind": "freeze-plus",
            "top_safety": "0.25",
            "top_utility": "0.25",
            "group": group,
            "complex_share": 1,
        }
        for take, units in wanted.items():
            found = it.find(take=take, **options)
            masks = spread(it, units)
            assert all((mask == masks[n]).all() for n, mask in masks_of(found).items()), (group, take)
            types = found.neurons.facts["types"]
            assert sum(types[take].values()) == sum(int(m.sum()) for m in units.values())
            assert sum(sum(roles.values()) for roles in types.values()) == sum(m.size for m in a.values())


def test_a_part_of_the_complex_units_is_the_part_that_matters_most_for_safety(subject, naive, masks_of) -> None:
    it = subject("llama")
    options = {"kind": "freeze-plus", "top_safety": "0.5", "top_utility": "0.5", "take": "complex"}
    whole, half = (masks_of(it.find(complex_share=share, **options)) for share in (1, "0.5"))
    each = line_effects(it, naive, "safety")
    for name, linear in it.linears.items():
        axis = 0 if linear.role in ("o", "down") else 1
        effect = sum(one[name] for one in each)
        a, b = whole[name].any(axis), half[name].any(axis)
        assert not (b & ~a).any() and b.sum() == naive.count("0.5", int(a.sum()))
        assert not b.any() or effect[b].min() >= effect[a & ~b].max(initial=0)


def test_rsn_asks_that_a_unit_matters_on_every_sample(subject, naive, masks_of) -> None:
    it = subject("llama")
    least = {}
    for role in ("safety", "utility"):
        each = line_effects(it, naive, role)
        least[role] = {n: numpy.min([one[n] for one in each], axis=0) for n in it.weights}
    a, b = naive.tops(least["safety"], "0.2", "matrix"), naive.tops(least["utility"], "0.1", "matrix")
    found = it.find(kind="rsn", top_safety="0.2", top_utility="0.1")
    wanted = spread(it, {n: a[n] & ~b[n] for n in a})
    assert all((mask == wanted[n]).all() for n, mask in masks_of(found).items())
    assert sum(found.neurons.facts["safety_neurons"].values()) == sum(int(m.sum()) for m in a.values())


def test_types_that_no_unit_has(subject) -> None:
    it = subject()
    with pytest.raises(DataError, match="no unit is utility-critical; give other shares"):
        it.find(kind="freeze-plus", take="utility-critical", top_safety=1)
    with pytest.raises(UsageError, match=f"must be one or several of {', '.join(TYPES)}"):
        it.find(kind="freeze-plus", take="harmless")
    with pytest.raises(UsageError, match="no tensor of attention is in --scope"):
        it.find(kind="freeze-plus", units="heads", scope="up,down")
