"""SaLoRA against the published form written out naively in float64: C dense, base rewritten, B parametrised."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrize

from weightguard.errors import MismatchError, UsageError
from weightguard.guards.salora import FACTS, SaLoRA
from weightguard.statistics.grams import Grams

RANK, SAFETY, TASK = 3, 4, 5
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def grams(model: Any, names: list[str], shapes: dict[str, tuple[int, int]], seed: int) -> Grams:
    torch.manual_seed(seed)
    sums = {}
    for name in names:
        x = torch.randn(50, shapes[name][1], dtype=torch.float64)
        sums[name] = x.T @ x
    return Grams(sums, {name: name for name in names}, 50)


@pytest.fixture
def made(any_model, linears) -> SimpleNamespace:
    """The untouched model, a guard that measured it, the adapted model with its first factors."""
    return adapt(any_model, linears)


def adapt(model: Any, linears: Any, **options: Any) -> SimpleNamespace:
    import peft

    family = model.config.model_type
    shapes = {n: s for n, s, _ in linears(model) if n.removesuffix(".weight").rpartition(".")[2] in TARGETS[family]}
    names = list(shapes)
    guard = SaLoRA(safety_rank=SAFETY, task_rank=TASK)
    guard = guard.measured(model, grams(model, names, shapes, 1), grams(model, names, shapes, 2), RANK)
    base = copy.deepcopy(model)
    config = peft.LoraConfig(r=2 * RANK, lora_alpha=4 * RANK, target_modules=TARGETS[family],
                             fan_in_fan_out=family == "gpt2", **options)  # fmt: skip
    adapted = peft.get_peft_model(model, config)
    guard.initialise(adapted)
    return SimpleNamespace(base=base, guard=guard, adapted=adapted, shapes=shapes)


def optimizer_of(model: Any, **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.2, **options)


def logits(model: Any) -> torch.Tensor:
    torch.set_num_threads(1)
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(24).reshape(2, 12)).logits


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max() / right.abs().max())


def factors(model: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {
        name: (m.lora_A["default"].weight.detach(), m.lora_B["default"].weight.detach())
        for name, m in model.named_modules()
        if hasattr(m, "lora_A")
    }


def test_it_begins_where_the_base_is(made) -> None:
    assert distance(logits(made.adapted), logits(made.base)) <= 1e-6
    sizes = [b[:, :RANK].norm() for _, b in factors(made.adapted).values()]
    assert min(sizes) > 0.01  # B0 is not zero: the start is a start


def test_the_update_never_reaches_the_safety_directions(made, train) -> None:
    optimizer = optimizer_of(made.adapted)
    with made.guard.attach(made.adapted, optimizer):
        train(made.adapted, optimizer, 20)
    assert distance(logits(made.adapted), logits(made.base)) > 0.05
    for name, (a, b) in factors(made.adapted).items():
        tensor = next(t for t in made.shapes if t.removesuffix(".weight") in name)
        v = made.guard.starts[tensor].safety
        assert v.shape == (made.shapes[tensor][0], SAFETY)
        assert (v.T @ b.double() @ a.double()).abs().max() <= 1e-6
        first = 2.0 * b[:, :RANK].double() @ a[:RANK].double()
        assert first.norm() > 1e-2 and (v.T @ first).abs().max() <= 1e-6


class Projected(torch.nn.Module):
    def __init__(self, c: torch.Tensor) -> None:
        super().__init__()
        self.c = c

    def forward(self, b: torch.Tensor) -> torch.Tensor:
        return self.c @ b


def published(made: SimpleNamespace, transposed: dict[str, bool]) -> Any:
    """W_res = W − s·C B0 A0 and a LoRA of rank r whose B is seen through a dense C; everything in float64."""
    import peft

    model = copy.deepcopy(made.base).double()
    for name, start in made.guard.starts.items():
        change = 2.0 * start.b @ start.a
        with torch.no_grad():
            model.get_parameter(name).sub_(change.T if transposed[name] else change)
    config = made.adapted.peft_config["default"]
    plain = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=config.target_modules,
                            fan_in_fan_out=config.fan_in_fan_out)  # fmt: skip
    adapted = peft.get_peft_model(model, plain, autocast_adapter_dtype=False).double()
    for path, module in adapted.named_modules():
        name = next((n for n in made.guard.starts if path.endswith(n.removesuffix(".weight"))), None)
        if name is not None and hasattr(module, "lora_A"):
            start = made.guard.starts[name]
            with torch.no_grad():
                module.lora_A["default"].weight.copy_(start.a)
                module.lora_B["default"].weight.copy_(start.b)
            c = torch.eye(start.safety.shape[0], dtype=torch.float64) - start.safety @ start.safety.T
            parametrize.register_parametrization(module.lora_B["default"], "weight", Projected(c))
    return adapted


def test_it_walks_as_the_published_form_does(made, train, linears) -> None:
    """AdamW with weight decay and momentum, eight steps in float64: the same function at the end."""
    transposed = {name: turned for name, _, turned in linears(made.base)}
    naive = published(made, transposed)
    train(naive, optimizer_of(naive), 8)
    ours = made.adapted.double()
    optimizer = optimizer_of(ours)
    made.guard.initialise(ours)  # in float64, as the twin
    handle = made.guard.attach(ours, optimizer)
    train(ours, optimizer, 8)
    handle.detach()
    assert distance(logits(ours), logits(naive)) <= 1e-9
    assert distance(logits(ours), logits(made.base.double())) > 0.01


@pytest.mark.parametrize("after", [3, 7])
def test_stock_save_at_any_step_and_resume(made, train, tmp_path: Path, after: int) -> None:
    """What stock peft saves on the way gives the trained logits over the untouched base, and training goes on from it."""
    import peft

    optimizer = optimizer_of(made.adapted)
    handle = made.guard.attach(made.adapted, optimizer)
    train(made.adapted, optimizer, after)
    made.adapted.save_pretrained(tmp_path / "adapter")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer")
    want = logits(made.adapted)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(made.base), tmp_path / "adapter", is_trainable=True)
    assert distance(logits(loaded), want) <= 1e-6
    resumed = optimizer_of(loaded)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer"))
    made.guard.attach(loaded.train(), resumed)
    train(loaded, resumed, 3)
    train(made.adapted.train(), optimizer, 3)
    handle.detach()
    for (name, ours), theirs in zip(made.adapted.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_rslora(model, linears, train) -> None:
    """s = alpha/√r: of twice the rank and √2 times alpha it is the same s."""
    found = adapt(model, linears, use_rslora=True)
    assert distance(logits(found.adapted), logits(found.base)) <= 1e-6
    optimizer = optimizer_of(found.adapted)
    found.guard.attach(found.adapted, optimizer)
    train(found.adapted, optimizer, 3)
    assert distance(logits(found.adapted), logits(found.base)) > 1e-3


def test_a_start_at_zero_is_a_plain_lora_of_the_rank_itself(model, linears, train) -> None:
    import peft

    base = copy.deepcopy(model)
    shapes = {n: s for n, s, _ in linears(model)}
    guard = SaLoRA(safety_rank=SAFETY, task_rank=TASK, start="zero")
    guard = guard.measured(model, grams(model, list(shapes), shapes, 1), grams(model, list(shapes), shapes, 2), RANK)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["q_proj", "up_proj"])
    )
    fresh = factors(adapted)
    guard.initialise(adapted)
    assert torch.equal(logits(adapted), logits(base)) and all(a.any() and not b.any() for a, b in fresh.values())
    optimizer = optimizer_of(adapted)
    guard.attach(adapted.train(), optimizer)
    train(adapted, optimizer, 12)
    for name, (a, b) in factors(adapted).items():
        v = guard.starts[next(t for t in shapes if t.removesuffix(".weight") in name)].safety
        assert (v.T @ b.double() @ a.double()).abs().max() <= 1e-6 and b.norm() > 0.01
    assert distance(logits(adapted), logits(base)) > 0.01


def test_starts_are_the_formula(model, linears) -> None:
    """V_s, V_t from an SVD of Y = X Wᵀ, U S Qᵀ from an SVD of W."""
    found = adapt(model, linears)
    name = "model.layers.0.self_attn.v_proj.weight"
    shape = found.shapes[name]
    weight = found.base.get_parameter(name).detach().double()
    v = {}
    for role, seed, rank in (("safety", 1, SAFETY), ("task", 2, TASK)):
        gram = grams(model, list(found.shapes), found.shapes, seed).gram(name)
        y = torch.linalg.cholesky(gram).T @ weight.T  # any X with XᵀX = G
        v[role] = torch.linalg.svd(y, full_matrices=False)[2][:rank].T
    u, s, q = torch.linalg.svd(weight, full_matrices=False)
    c = torch.eye(shape[0]) - v["safety"] @ v["safety"].T
    b0 = v["task"] @ v["task"].T @ u[:, :RANK] @ torch.diag(s[:RANK].sqrt())
    a0 = torch.diag(s[:RANK].sqrt()) @ q[:RANK]
    start = found.guard.starts[name]
    assert (start.b @ start.a - c @ b0 @ a0).abs().max() < 1e-10
    facts = dict(start.facts)
    assert tuple(facts) == FACTS
    cosines = torch.linalg.svdvals(v["safety"].T @ v["task"]).clamp(max=1)
    angles = torch.rad2deg(torch.acos(cosines))
    assert facts["smallest_angle"] == pytest.approx(float(angles.min()), abs=1e-5)
    assert facts["mean_angle"] == pytest.approx(float(angles.mean()), abs=1e-5)
    assert facts["initialisation_kept"] == pytest.approx(float((c @ b0 @ a0).norm() / (b0 @ a0).norm()), rel=1e-9)
    values = (
        torch.linalg.svdvals(
            torch.linalg.cholesky(grams(model, list(found.shapes), found.shapes, 1).gram(name)).T @ weight.T
        )
        ** 2
    )
    assert facts["spectral_gap"] == pytest.approx(float(1 - values[SAFETY] / values[SAFETY - 1]), rel=1e-9)
    assert facts["safety_energy"] == pytest.approx(float(values[:SAFETY].sum() / values.sum()), rel=1e-9)


def test_what_was_measured_survives_a_file(model, linears) -> None:
    guard = adapt(model, linears).guard
    again = SaLoRA(safety_rank=SAFETY, task_rank=TASK).with_tensors(guard.tensors())
    assert {n: dict(s.facts) for n, s in again.starts.items()} == {n: dict(s.facts) for n, s in guard.starts.items()}
    assert all(torch.equal(again.starts[n].safety, s.safety) for n, s in guard.starts.items())


def test_inside_a_trainer_that_saves_on_the_way(model, linears, tmp_path: Path) -> None:
    """A stock Trainer's own checkpoint of a run at work is an adapter that keeps the promise over the untouched base."""
    import peft
    from transformers import Trainer, TrainingArguments

    found = adapt(model, linears)
    rows = [{"input_ids": torch.arange(i, i + 6), "labels": torch.arange(i, i + 6)} for i in range(12)]
    arguments = TrainingArguments(tmp_path, max_steps=6, save_steps=4, per_device_train_batch_size=3, learning_rate=1e-2,
                                  weight_decay=0.3, report_to=[], disable_tqdm=True, use_cpu=True)  # fmt: skip
    callback = found.guard.trainer_callback()
    Trainer(model=found.adapted, args=arguments, train_dataset=rows, callbacks=[callback]).train()
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(found.base), tmp_path / "checkpoint-4")
    for each in (loaded, found.adapted):
        assert distance(logits(each), logits(found.base)) > 1e-3
        for name, (a, b) in factors(each).items():
            v = found.guard.starts[next(t for t in found.shapes if t.removesuffix(".weight") in name)].safety
            assert (v.T @ b.double() @ a.double()).abs().max() <= 1e-6


def test_nothing_dense_is_made(model, linears, train) -> None:
    """No tensor of shape (out, out) comes up while it trains, other than weights that have that shape."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found = adapt(model, linears)
    optimizer = optimizer_of(found.adapted)
    found.guard.attach(found.adapted, optimizer)
    module = next(m for n, m in found.adapted.named_modules() if n.endswith("1.mlp.down_proj"))
    size = module.base_layer.weight.shape[0]  # (16, 24)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            out = function(*arguments, **(keywords or {}))
            seen.extend([str(function)] if isinstance(out, torch.Tensor) and out.shape == (size, size) else [])
            return out

    with Watch():
        optimizer.step()  # the projection of all modules, no forward pass
    assert [each for each in seen if "detach" not in each] == []


def test_misfits(model, linears) -> None:
    import peft

    found = adapt(model, linears)
    optimizer = optimizer_of(found.adapted)
    with pytest.raises(UsageError, match="nothing measured"):
        SaLoRA().attach(found.adapted, optimizer)
    with pytest.raises(UsageError, match="goes with LoRA"):
        found.guard.attach(found.base, torch.optim.AdamW(found.base.parameters()))
    narrow = peft.get_peft_model(copy.deepcopy(found.base), peft.LoraConfig(r=RANK, target_modules=["q_proj"]))
    with pytest.raises(UsageError, match="needs LoRA factors of rank 6, found 3"):
        found.guard.initialise(narrow)
    other = peft.get_peft_model(copy.deepcopy(found.base), peft.LoraConfig(r=2 * RANK, target_modules=["o_proj"]))
    with pytest.raises(MismatchError, match="was not measured"):
        found.guard.attach(other, optimizer_of(other))


@pytest.mark.parametrize(
    ("ranks", "said"),
    [((0, 4, 3), "--safety-rank 0"), ((4, 99, 3), "--task-rank 99"), ((4, 4, 17), "--lora r 17"),
     ((16, 4, 3), "nothing could learn"), ((8, 8, 8), "--safety-rank 8: takes all")],
)  # fmt: skip
def test_ranks_beyond_the_dimensions(model, linears, ranks: tuple[int, int, int], said: str) -> None:
    shapes = {n: s for n, s, _ in linears(model) if "self_attn" in n}
    found = [grams(model, list(shapes), shapes, seed) for seed in (1, 2)]
    with pytest.raises(UsageError, match=said):
        SaLoRA(safety_rank=ranks[0], task_rank=ranks[1]).measured(model, *found, ranks[2])
