"""Rates against an optimizer whose groups were made by hand: the very same weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from weightguard.errors import MismatchError, UsageError
from weightguard.guards.ml_lr import MlLr
from weightguard.parts import Neurons, Part

RATES = {
    "model.layers.0.self_attn.q_proj.weight": 0.25,
    "model.layers.1.mlp.down_proj.weight": 0.25,
    "model.layers.1.mlp.up_proj.weight": 2.0,
    "model.layers.0.mlp.gate_proj.weight": 0.0,
}


def neurons(model: Any, rates: dict[str, float] = RATES) -> Neurons:
    return Neurons(
        "ml-lr",
        "none",
        {},
        {n: Part("rate", tuple(model.get_parameter(n).shape), rate=r) for n, r in rates.items()},
        {},
    )


def by_hand(model: Any, **options: Any) -> torch.optim.AdamW:
    """One group per parameter; the one of rate 0 is not there at all."""
    named = dict(model.named_parameters())
    groups = [{"params": [p], "lr": 1e-2 * RATES.get(n, 1.0)} for n, p in named.items() if RATES.get(n) != 0]
    return torch.optim.AdamW(groups, weight_decay=0.3, **options)


@pytest.mark.parametrize("fused", [False, True])
def test_like_groups_made_by_hand(model, train, fused: bool) -> None:
    twin = copy.deepcopy(model)
    train(twin, by_hand(twin, fused=fused), 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.3, fused=fused)
    with MlLr(neurons=neurons(model)).attach(model, optimizer):
        train(model, optimizer, 5)
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_schedulers_and_saved_states_see_the_optimizers_own_groups(model, train) -> None:
    """The scheduler was there before the guard, as in a Trainer."""
    twin = copy.deepcopy(model)
    theirs = by_hand(twin)
    train(twin, theirs, 4, scheduler=torch.optim.lr_scheduler.LambdaLR(theirs, lambda step: 1 / (step + 1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    MlLr(neurons=neurons(model)).attach(model, optimizer)
    train(model, optimizer, 4, scheduler=scheduler)
    assert len(optimizer.state_dict()["param_groups"]) == 1
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_step_that_fails_leaves_nothing_split(model, train) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    handle = MlLr(neurons=neurons(model)).attach(model, optimizer)

    def broken() -> float:
        raise RuntimeError("from the closure")

    with pytest.raises(RuntimeError):
        optimizer.step(broken)
    train(model, optimizer, 1)
    assert len(optimizer.param_groups) == 1
    with pytest.raises(RuntimeError):
        optimizer.step(broken)
    handle.detach()
    assert len(optimizer.param_groups) == 1 and len(optimizer.param_groups[0]["params"]) == len(
        list(model.parameters())
    )


def test_rate_zero_keeps_the_bits(model, train) -> None:
    name = "model.layers.0.mlp.gate_proj.weight"
    was = model.get_parameter(name).detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.3)
    train(model, optimizer, 0)
    MlLr(neurons=neurons(model)).attach(model, optimizer)
    train(model, optimizer, 3)
    assert torch.equal(model.get_parameter(name), was)


def test_over_lora_the_rate_is_that_of_the_factors(model, train) -> None:
    import peft

    name = "model.layers.0.self_attn.q_proj.weight"
    guard = MlLr(neurons=neurons(model, {name: 0.5}))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    twin = copy.deepcopy(adapted)
    held = {n: p for n, p in twin.named_parameters() if p.requires_grad}
    groups = [{"params": [p], "lr": 1e-2 * (0.5 if "layers.0" in n else 1)} for n, p in held.items()]
    train(twin, torch.optim.AdamW(groups), 3)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    guard.attach(adapted, optimizer)
    train(adapted, optimizer, 3)
    assert len(held) == 4
    assert all(torch.equal(adapted.get_parameter(n), p) for n, p in held.items())


def test_misfits(model) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    optimizer = torch.optim.AdamW(model.parameters())
    masks = Neurons("made", "none", {}, {name: Part.of_units("rows", torch.ones(16, dtype=bool).numpy(), (16, 16))}, {})
    with pytest.raises(UsageError, match=r"learning-rate factors.*'rows'"):
        MlLr(neurons=masks).attach(model, optimizer)
    with pytest.raises(UsageError, match="trains none"):
        MlLr(neurons=neurons(model)).attach(model, torch.optim.AdamW([model.lm_head.weight]))
    wrong = Neurons("made", "none", {}, {name: Part("rate", (3, 3), rate=1.0)}, {})
    with pytest.raises(MismatchError, match=r"\[3, 3\]"):
        MlLr(neurons=wrong).attach(model, optimizer)
