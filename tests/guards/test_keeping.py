"""Kept entries are the same bits after whole AdamW runs; everything else moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from weightguard.errors import MismatchError, UsageError
from weightguard.guards import GUARDS, guard_class
from weightguard.guards.freeze import Freeze
from weightguard.guards.freeze_plus import FreezePlus
from weightguard.guards.rsn import Rsn
from weightguard.parts import Neurons, Part

Q = "model.layers.0.self_attn.q_proj.weight"


def adamw(model: Any, **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), **{"lr": 1e-2, "weight_decay": 0.5, **options})


def before(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def logical(tensor: torch.Tensor, transposed: bool) -> torch.Tensor:
    return tensor.T if transposed else tensor


@pytest.mark.parametrize("form", ["entries", "rows", "columns"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_masked_entries_keep_their_bits(any_model, train, linears, half_marked, form: str, autocast) -> None:
    neurons, masks = half_marked(any_model, form)
    was = before(any_model)
    optimizer = adamw(any_model)
    train(any_model, optimizer, 2)  # momentum that would go on moving what has no gradient
    was = before(any_model)
    handle = Freeze(neurons=neurons).attach(any_model, optimizer)
    train(any_model, optimizer, 6, autocast)
    handle.detach()
    for name, _, transposed in linears(any_model):
        mask = torch.from_numpy(masks[name])
        now, then = (logical(p, transposed) for p in (any_model.get_parameter(name).detach(), was[name]))
        assert torch.equal(bits(now)[mask], bits(then)[mask]), name
        assert (now[~mask] != then[~mask]).float().mean() > 0.99, name
    name = next(n for n in was if "norm" in n or "ln_1" in n)
    assert not torch.equal(any_model.get_parameter(name), was[name])


def test_weights_in_bfloat16_and_minus_zero(model, train, half_marked, linears) -> None:
    model.to(torch.bfloat16)
    neurons, masks = half_marked(model, "entries")
    with torch.no_grad():
        model.get_parameter(Q).mul_(torch.where(torch.rand(16, 16) < 0.3, -0.0, 1.0))
    was = before(model)
    optimizer = adamw(model)
    Freeze(neurons=neurons).attach(model, optimizer)
    train(model, optimizer, 4)
    for name, _, _ in linears(model):
        mask = torch.from_numpy(masks[name])
        assert torch.equal(bits(model.get_parameter(name).detach())[mask], bits(was[name])[mask])


def test_without_a_guard_zero_gradients_do_not_keep_them(model, train, half_marked) -> None:
    """What the guard is for: masking gradients alone lets weight decay and momentum move the entries."""
    _, masks = half_marked(model, "entries")
    mask = torch.from_numpy(masks[Q])
    parameter = model.get_parameter(Q)
    optimizer = adamw(model)
    train(model, optimizer, 2)
    parameter.register_hook(lambda gradient: gradient.masked_fill(mask, 0))
    was = parameter.detach().clone()
    train(model, optimizer, 1)
    assert (parameter[mask] != was[mask]).all()


@pytest.mark.parametrize("make", ["SGD", "RMSprop", "Adagrad", "NAdam"])
def test_any_torch_optimizer(model, train, half_marked, make: str) -> None:
    neurons, masks = half_marked(model, "entries")
    was = before(model)
    optimizer = getattr(torch.optim, make)(model.parameters(), lr=1e-2, weight_decay=0.1)
    Freeze(neurons=neurons).attach(model, optimizer)
    train(model, optimizer, 3)
    mask = torch.from_numpy(masks[Q])
    assert torch.equal(model.get_parameter(Q)[mask], was[Q][mask])
    assert not torch.equal(model.get_parameter(Q), was[Q])


def test_detached_it_keeps_nothing(model, train, half_marked) -> None:
    neurons, _ = half_marked(model, "entries")
    optimizer = adamw(model)
    handle = Freeze(neurons=neurons).attach(model, optimizer)
    handle.detach()
    handle.detach()
    was = before(model)
    train(model, optimizer, 2)
    assert (model.get_parameter(Q) != was[Q]).all()
    assert not optimizer._optimizer_step_post_hooks


def test_a_kept_row_keeps_its_bias(model, train, half_marked) -> None:
    neurons, masks = half_marked(model, "rows")
    with torch.no_grad():
        model.get_parameter(Q.replace("weight", "bias")).normal_()
    was = before(model)
    optimizer = adamw(model)
    FreezePlus(neurons=neurons).attach(model, optimizer)
    train(model, optimizer, 3)
    bias = Q.replace("weight", "bias")
    kept = torch.from_numpy(masks[Q][:, 0])
    assert torch.equal(model.get_parameter(bias)[kept], was[bias][kept])
    assert (model.get_parameter(bias)[~kept] != was[bias][~kept]).all()


@pytest.mark.parametrize("form", ["entries", "rows"])
def test_rsn_trains_one_side_or_the_other(model, train, half_marked, form: str) -> None:
    neurons, masks = half_marked(model, form)
    mask = torch.from_numpy(masks[Q])
    for side in ("others", "safety"):
        was = before(model)
        optimizer = adamw(model)
        with Rsn(neurons=neurons, train=side).attach(model, optimizer):
            train(model, optimizer, 3)
        kept = mask if side == "others" else ~mask
        now = model.get_parameter(Q)
        assert torch.equal(now[kept], was[Q][kept]) and (now[~kept] != was[Q][~kept]).all()
        head = torch.equal(model.get_parameter("lm_head.weight"), was["lm_head.weight"])
        assert head == (side == "safety")


def test_freeze_plus_takes_units_only(model, half_marked) -> None:
    neurons, _ = half_marked(model, "entries")
    with pytest.raises(UsageError, match=r"keeps whole units.*take --guard freeze"):
        FreezePlus(neurons=neurons).attach(model, adamw(model))


@pytest.mark.parametrize("name", ["freeze", "freeze-plus", "rsn"])
@pytest.mark.parametrize(
    "part", [Part("rate", (16, 16), rate=0.5), Part("rank", (16, 16), left=numpy.zeros((16, 2), "f4"),
                                                   right=numpy.zeros((2, 16), "f4"))]
)  # fmt: skip
def test_forms_without_a_mask(model, neurons, name: str, part: Part) -> None:
    found = Neurons("made", "none", {}, {Q: part}, {})
    with pytest.raises(UsageError, match=f"{Q.replace('.', '.')}.*{part.form}"):
        guard_class(name)(neurons=found).attach(model, adamw(model))


def test_entries_under_lora_mean_nothing(model, half_marked) -> None:
    import peft

    neurons, _ = half_marked(model, "entries")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(UsageError, match=r"LoRA factors over it.*without --lora, or take --guard salora"):
        Freeze(neurons=neurons).attach(adapted, torch.optim.AdamW(p for p in adapted.parameters() if p.requires_grad))


def test_misfits(model, half_marked) -> None:
    neurons, _ = half_marked(model, "entries")
    with pytest.raises(UsageError, match="trains none of the tensors"):
        Freeze(neurons=neurons).attach(model, torch.optim.AdamW([model.lm_head.weight]))
    with pytest.raises(UsageError, match="torch optimizer, not to str"):
        Freeze(neurons=neurons).attach(model, "adamw")
    other = Neurons(
        "made", "none", {}, {"model.layers.7.self_attn.q_proj.weight": Part.of_entries(numpy.ones((2, 2), bool))}, {}
    )
    with pytest.raises(MismatchError, match=r"layers\.7"):
        Freeze(neurons=other).attach(model, adamw(model))
    other = Neurons("made", "none", {}, {Q: Part.of_entries(numpy.ones((2, 3), bool))}, {})
    with pytest.raises(MismatchError, match=r"\[2, 3\].*\[16, 16\]"):
        Freeze(neurons=other).attach(model, adamw(model))


def test_unknown_guard() -> None:
    with pytest.raises(UsageError, match=f"--guard fence: unknown; guards are {', '.join(GUARDS)}"):
        guard_class("fence")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_names_of_a_checkpoint_without_its_head(model, train, prefix: str) -> None:
    name = Q if prefix else Q.removeprefix("model.")
    found = Neurons("made", "none", {}, {name: Part.of_entries(numpy.ones((16, 16), bool))}, {})
    was = model.get_parameter(Q).detach().clone()
    optimizer = adamw(model)
    Freeze(neurons=found).attach(model, optimizer)
    train(model, optimizer, 2)
    assert torch.equal(model.get_parameter(Q), was)


def test_inside_a_trainer(model, half_marked, tmp_path: Path) -> None:
    """A stock Trainer with accelerate's optimizer, a scheduler, clipping and weight decay."""
    from transformers import Trainer, TrainingArguments

    neurons, masks = half_marked(model, "entries")
    rows = [{"input_ids": torch.arange(i, i + 6), "labels": torch.arange(i, i + 6)} for i in range(12)]
    was = before(model)
    arguments = TrainingArguments(tmp_path, max_steps=4, per_device_train_batch_size=3, learning_rate=1e-2, weight_decay=0.3,
                                  report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True)  # fmt: skip
    callback = Freeze(neurons=neurons).trainer_callback()
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback]).train()
    for name, mask in masks.items():
        kept = torch.from_numpy(mask)
        now = model.get_parameter(name)
        assert torch.equal(now[kept], was[name][kept]) and (now[~kept] != was[name][~kept]).any()
