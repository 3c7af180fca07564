"""What a guard adds to a training step: the lab's model at hidden 512, steps with and without each guard, in turn.

    python benchmarks/bench_guards.py           # ratios to the unguarded step; the limit is 1.05
    python benchmarks/bench_guards.py --smoke   # small, for CI: that guards do what they say, and that it runs

Before anything is timed, kept entries are compared to the bit after a step.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import timer
import torch

from weightguard.guards.freeze import Freeze
from weightguard.guards.freeze_plus import FreezePlus
from weightguard.guards.ml_lr import MlLr
from weightguard.guards.rsn import Rsn
from weightguard.guards.salora import SaLoRA
from weightguard.parts import Neurons, Part
from weightguard.statistics.grams import Grams

LIMIT = 1.05
VOCABULARY, ROWS, TOKENS = 404, 32, 14  # the lab's words, its batch, its usual row
RANK = 16


@dataclass
class Trained:
    """A model, its optimizer, and one training step of both."""

    model: Any
    optimizer: torch.optim.Optimizer
    ids: torch.Tensor

    def step(self) -> None:
        loss = self.model(input_ids=self.ids, labels=self.ids).loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def build(hidden: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    size = LlamaConfig(vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=hidden * 168 // 64, num_hidden_layers=3,
                       num_attention_heads=4)  # fmt: skip
    return LlamaForCausalLM(size)


def trained(model: Any) -> Trained:
    parameters = [p for p in model.parameters() if p.requires_grad]
    ids = torch.randint(0, VOCABULARY, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    return Trained(model, torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.1, fused=True), ids)


def linears(model: Any) -> dict[str, tuple[int, int]]:
    return {n: tuple(p.shape) for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n and "lora" not in n}


def neurons(shapes: dict[str, tuple[int, int]], form: str, share: float) -> Neurons:
    draw = numpy.random.default_rng(0)
    parts = {}
    for name, shape in shapes.items():
        if form == "rate":
            parts[name] = Part("rate", shape, rate=share if "q_proj" in name else 1.0)
        elif form == "entries":
            parts[name] = Part.of_entries(draw.random(shape) < share)
        else:
            parts[name] = Part.of_units(form, draw.random(shape[form == "columns"]) < share, shape)
    return Neurons("made", "none", {}, parts, {})


def full_guards(shapes: dict[str, tuple[int, int]]) -> dict[str, Any]:
    return {
        "freeze, 3 % of entries": Freeze(neurons=neurons(shapes, "entries", 0.03)),
        "freeze, 90 % of entries": Freeze(neurons=neurons(shapes, "entries", 0.9)),
        "freeze-plus, 10 % of rows": FreezePlus(neurons=neurons(shapes, "rows", 0.1)),
        "freeze-plus, 10 % of columns": FreezePlus(neurons=neurons(shapes, "columns", 0.1)),
        "rsn, only 3 % of entries train": Rsn(neurons=neurons(shapes, "entries", 0.03), train="safety"),
        "ml-lr": MlLr(neurons=neurons(shapes, "rate", 0.1)),
    }


def check(one: Trained, guard: Any) -> None:
    """Kept entries are the same bits after a step; with rates, nothing is said about bits."""
    before = {n: p.detach().clone() for n, p in one.model.named_parameters()}
    with guard.attach(one.model, one.optimizer):
        one.step()
    for name, part in guard.neurons.parts.items():
        if part.mask is not None:
            kept = torch.from_numpy(part.entries())
            kept = ~kept if getattr(guard, "train", "") == "safety" else kept
            assert torch.equal(one.model.get_parameter(name)[kept], before[name][kept]), name


def rows(plain: Trained, guarded: dict[str, Callable[[], object]], rounds: int, against: str) -> list[dict]:
    found = timer.best({"plain": plain.step, **guarded}, rounds)
    floor = found.pop("plain").cpu
    return [timer.row(name, "-", timing.cpu, floor, against, LIMIT) for name, timing in found.items()]


def under(one: Trained, guard: Any) -> Callable[[], object]:
    """A step inside the guard; attaching is done once a run, so it is not part of the step."""
    copied = trained(copy.deepcopy(one.model))
    guard.attach(copied.model, copied.optimizer)
    return copied.step


def full_rows(hidden: int, rounds: int) -> list[dict]:
    one = trained(build(hidden))
    guards = full_guards(linears(one.model))
    for guard in guards.values():
        check(one, guard)
    return rows(one, {n: under(one, g) for n, g in guards.items()}, rounds, f"AdamW step, hidden {hidden}")


def salora_rows(hidden: int, rounds: int) -> list[dict]:
    import peft

    def lora(model: Any, rank: int) -> Any:
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        return peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names))

    base = build(hidden)
    shapes = linears(base)
    draws = {n: torch.randn(64, s[1], dtype=torch.float64) for n, s in shapes.items()}
    grams = Grams({n: x.T @ x for n, x in draws.items()}, {n: n for n in shapes}, 64)
    found = []
    narrow = trained(lora(copy.deepcopy(base), RANK))
    for start, rank in (("zero", RANK), ("task", 2 * RANK)):
        guard = SaLoRA(safety_rank=16, task_rank=16, start=start).measured(base, grams, grams, RANK)
        plain, one = (trained(lora(copy.deepcopy(base), rank)) for _ in range(2))
        guard.initialise(one.model)
        guard.attach(one.model, one.optimizer)
        timings = timer.best({"narrow": narrow.step, "plain": plain.step, "guarded": one.step}, rounds)
        said = f"LoRA step, rank {rank}, hidden {hidden}"
        found.append(timer.row(f"salora, from {start}", "-", timings["guarded"].cpu, timings["plain"].cpu, said, LIMIT))
        if rank != RANK:  # what the constant half costs, which keeps the base and every saved adapter stock
            said = f"LoRA step, rank {RANK}, hidden {hidden}"
            found.append(timer.row(f"salora, from {start}", "-", timings["guarded"].cpu, timings["narrow"].cpu, said))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--smoke", action="store_true", help="small, for CI")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    timer.print_machine()
    hidden, rounds = (64, 1) if options.smoke else (512, options.rounds)
    timer.print_rows([*full_rows(hidden, rounds), *salora_rows(hidden, rounds)])


if __name__ == "__main__":
    main()
