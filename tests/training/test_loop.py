"""The loop against a plain one written out, and the promise that a killed run ends where an unbroken one does."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from weightguard.data import Encoded
from weightguard.errors import DataError, InputError, MismatchError, UsageError
from weightguard.training.loop import response_loss, train
from weightguard.training.recipe import Recipe
from weightguard.training.state import Moment, StateFile

CONFIG = {"model_type": "llama"}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                        num_attention_heads=4, attention_dropout=0.1)).eval()  # fmt: skip


def drawn(count: int) -> list[Encoded]:
    random = numpy.random.default_rng(0)
    lengths = random.integers(3, 12, count)
    return [
        Encoded(random.integers(0, 40, n), numpy.arange(n) >= random.integers(1, n), at) for at, n in enumerate(lengths)
    ]


def quiet(*_: object) -> None:
    pass


def test_the_loss_is_the_mean_over_response_tokens(model) -> None:
    from weightguard.statistics.forward import padded

    rows = drawn(6)
    ids, attention, counted = padded(rows, torch.device("cpu"))
    found = response_loss(model, ids, attention, counted)
    total, tokens = 0.0, 0
    twin = copy.deepcopy(model).double()
    for row in rows:
        with torch.no_grad():
            logits = twin(input_ids=torch.tensor(row.ids)[None]).logits[0]
        for at in range(1, len(row.ids)):
            if row.counted[at]:
                total -= float(torch.log_softmax(logits[at - 1], -1)[int(row.ids[at])])
                tokens += 1
    assert float(found.detach()) == pytest.approx(total / tokens, rel=1e-6)


def test_steps_are_those_of_adamw(model) -> None:
    """One thread, no dropout: the same weights as a loop that nothing was left out of."""
    model.config.attention_dropout = 0.0
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.0
    rows, recipe = drawn(10), Recipe(1e-2, steps=25, batch_size=4, weight_decay=0.1, clip=0.5, seed=3)
    twin = copy.deepcopy(model)
    losses = train(model, CONFIG, rows, recipe, quiet)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.1)
    order: list[int] = []
    while len(order) < 100:
        order += _epoch(3, len(order) // 10, 10)
    for step in range(25):
        warm = 1  # a twentieth of the steps
        rate = 1e-2 if step < warm else 0.5e-2 * (1 + math.cos(math.pi * (step - warm) / (25 - warm)))
        optimizer.param_groups[0]["lr"] = rate
        loss = _naive_loss(twin, [rows[at] for at in order[4 * step : 4 * step + 4]])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
        assert losses[step] == pytest.approx(float(loss.detach()), rel=1e-4)
    far = max(float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert far < 1e-4
    assert losses[-1] < losses[0]


def _epoch(seed: int, epoch: int, rows: int) -> list[int]:
    import random

    order = list(range(rows))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return order


def _naive_loss(model: Any, rows: list[Encoded]) -> torch.Tensor:
    parts = []
    for row in rows:
        logits = model(input_ids=torch.tensor(row.ids)[None]).logits[0, :-1]
        wanted = torch.tensor(row.counted[1:])
        parts.append(
            torch.nn.functional.cross_entropy(logits[wanted], torch.tensor(row.ids[1:])[wanted], reduction="none")
        )
    return torch.cat(parts).mean()


def test_every_row_comes_once_an_epoch_in_an_order_of_the_seed() -> None:
    recipe = Recipe(batch_size=3, seed=1)
    seen = [at for step in range(14) for at in recipe.batch(step, 7)]
    for epoch in range(6):
        assert sorted(seen[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert seen[:7] != seen[7:14]
    assert [Recipe(batch_size=3, seed=2).batch(step, 7) for step in range(3)] != [recipe.batch(s, 7) for s in range(3)]
    assert Recipe(epochs=2, batch_size=3).step_count(7) == 5 and Recipe(steps=9).step_count(7) == 9


def test_two_runs_give_the_same_bits_and_leave_torchs_generator_alone(model) -> None:
    rows, recipe = drawn(8), Recipe(1e-2, steps=6, batch_size=3, seed=1)
    twin = copy.deepcopy(model)
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    first = train(model, CONFIG, rows, recipe, quiet)
    assert torch.equal(torch.rand(1), want)
    torch.manual_seed(99)
    assert train(twin, CONFIG, rows, recipe, quiet) == first
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert not model.training


class Killed(Exception):
    pass


def killed_after(step: int):
    def progress(done: int, *_: object) -> None:
        if done == step:
            raise Killed

    return progress


@pytest.mark.parametrize("killed", [4, 5, 9])
def test_a_killed_run_goes_on_to_the_same_weights(model, tmp_path: Path, killed: int) -> None:
    """With dropout, momentum and a schedule; killed between two saves."""
    rows, recipe = drawn(8), Recipe(1e-2, steps=11, batch_size=3, seed=1)
    twin, again = copy.deepcopy(model), copy.deepcopy(model)
    want = train(twin, CONFIG, rows, recipe, quiet)
    state = StateFile(tmp_path / "state", {"data": "x"}, 2, {"v": torch.arange(3.0)})
    with pytest.raises(Killed):
        train(model, CONFIG, rows, recipe, killed_after(killed), state=state)
    assert state.check().step == (killed - 1) // 2 * 2 if killed % 2 else killed - killed % 2
    assert torch.equal(state.check().extras["v"], torch.arange(3.0))
    torch.manual_seed(77)
    losses = train(again, CONFIG, rows, recipe, quiet, state=state, resume=True)
    assert losses == want
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), twin.parameters(), strict=True))


def test_the_state_of_another_run_is_refused(model, tmp_path: Path) -> None:
    rows, recipe = drawn(8), Recipe(1e-2, steps=6, batch_size=3)
    state = StateFile(tmp_path / "state", {"data": "x"}, 2)
    with pytest.raises(InputError, match="no unfinished run"):
        train(model, CONFIG, rows, recipe, quiet, state=state, resume=True)
    with pytest.raises(Killed):
        train(model, CONFIG, rows, recipe, killed_after(3), state=state)
    with pytest.raises(MismatchError, match=r"another data \(x, now y\)"):
        StateFile(tmp_path / "state", {"data": "y"}, 2).check()
    (tmp_path / "state").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(InputError, match="damaged state"):
        state.check()


def test_mixed_precision_keeps_weights_in_float32(model) -> None:
    rows, recipe = drawn(8), Recipe(1e-2, steps=5, batch_size=3)
    twin = copy.deepcopy(model)
    losses = train(model, CONFIG, rows, recipe, quiet, autocast=torch.bfloat16)
    full = train(twin, CONFIG, rows, recipe, quiet)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses != full and losses == pytest.approx(full, rel=0.05)


def test_rows_without_an_answer_and_a_loss_that_explodes(model) -> None:
    nothing = [Encoded(numpy.array([1, 2, 3]), numpy.zeros(3, bool), 1)]
    with pytest.raises(DataError, match="no row of the data has a response token"):
        train(model, CONFIG, nothing, Recipe(), quiet)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("inf"))
    with pytest.raises(UsageError, match="loss of step 1 is"):
        train(model, CONFIG, drawn(4), Recipe(steps=3), quiet)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UsageError, match="nothing to train"):
        train(model, CONFIG, drawn(4), Recipe(steps=3), quiet)


@pytest.mark.parametrize(
    ("options", "flag"),
    [({"learning_rate": 0.0}, "--lr 0"), ({"learning_rate": math.nan}, "--lr nan"), ({"steps": 0}, "--steps 0"),
     ({"batch_size": 0}, "--batch-size 0"), ({"epochs": -1}, "--epochs -1"), ({"schedule": "jump"}, "--schedule jump"),
     ({"weight_decay": -0.1}, "--weight-decay -0.1"), ({"seed": -1}, "--seed -1"), ({"clip": 0}, "--clip 0")],
)  # fmt: skip
def test_settings_out_of_range(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        Recipe(**options).check()


def test_the_setting_that_differs_is_named(tmp_path: Path) -> None:
    """The innermost one: a recipe of ten settings shows the one that is another."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    begun = StateFile(tmp_path / "state", {"recipe": {"lr": 0.1, "seed": 0}}, 1)
    begun.save(Moment(1, (0.5,)), {"weight": weight}, optimizer)
    with pytest.raises(MismatchError, match=r"another seed \(0, now 3\); repeat its command with --resume"):
        StateFile(tmp_path / "state", {"recipe": {"lr": 0.1, "seed": 3}}, 1).check()
