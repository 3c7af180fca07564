"""SaLoRA (arXiv:2501.01765): LoRA whose update cannot move the outputs that safety data use.

Published, per module: V_s spans the top outputs W x on safety data, C = I − V_s V_sᵀ, and y = W_res x + s·C B A x with
B, A begun at B0 = V_t V_tᵀ U √S, A0 = √S Qᵀ (W ≈ U S Qᵀ of rank r, V_t the same as V_s on task data) and
W_res = W − s·C B0 A0, so that the model begins where it was.

Here the base is not rewritten: the same model is a stock LoRA of rank 2r, A' = [A; A0], B' = [C B, −C B0], whose second
halves stay; with `start="zero"`, where B0 = 0, there is no second half. It can be saved at any step by stock peft and be
loaded over the untouched base. C B is held, not B: the gradient of lora_B is projected, and after each step lora_B
itself, which walks through the very points that training B under a fixed C does (weight decay and elementwise
optimizers included), and C is never formed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weightguard.errors import MismatchError, UsageError
from weightguard.guards.attaching import Handle, bare, callback
from weightguard.options import option

if TYPE_CHECKING:
    import torch

    from weightguard.statistics.grams import Grams

FACTS = ("spanned", "spectral_gap", "safety_energy", "smallest_angle", "mean_angle", "initialisation_kept")


@dataclass(frozen=True, eq=False)
class Start:
    """One module. safety: V_s (out, r_s) float64; b: C B0 (out, r), a: A0 (r, in), float64; facts: what was measured."""

    safety: torch.Tensor
    b: torch.Tensor
    a: torch.Tensor
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class SaLoRA:
    """Keep V_sᵀ·update = 0 for every adapted module. `starts`, by on-disk tensor name, come from `measured`.

    guard = SaLoRA(safety_rank=32, task_rank=32).measured(model, safety_grams, task_grams, rank=16)
    model = peft.get_peft_model(model, peft.LoraConfig(r=32, lora_alpha=64, ...))   # twice the rank and alpha
    guard.initialise(model)
    handle = guard.attach(model, optimizer)
    """

    NAME: ClassVar[str] = "salora"
    PAPER: ClassVar[str] = "arXiv:2501.01765"
    NEEDS: ClassVar[tuple[str, ...]] = ("lora", "safety")

    safety_rank: int = option(32, "output directions of the safety data that the update may not use")
    task_rank: int = option(32, "output directions of the task data in which the update begins")
    start: str = option("task", "task: begin in the task's directions, as published; zero: begin as plain LoRA does, lora_B = 0",
                        ("task", "zero"))  # fmt: skip
    export: str = option("merged-rank", "merged-rank: an adapter of twice the rank over the untouched base; residual: a rewritten "
                         "base and an adapter of the rank asked for", ("merged-rank", "residual"))  # fmt: skip
    starts: Mapping[str, Start] = field(default_factory=dict)

    @property
    def halves(self) -> int:
        """2 where the factors carry a constant half beside the one that learns."""
        return 2 if self.start == "task" else 1

    def measured(self, model: Any, safety: Grams, task: Grams, rank: int) -> Self:
        """With a start for every linear the Grams cover; `model` is the untouched one. Errors: UsageError, DataError."""
        from weightguard.guards.directions import start_of
        from weightguard.statistics.parameters import targets

        starts = {}
        for name, target in targets(model, safety.keys).items():
            weight = target.oriented(target.parameter.detach()).cpu()
            ranks = (self.safety_rank, self.task_rank, rank)
            starts[name] = Start(*start_of(name, weight, safety.gram(name), task.gram(name), ranks))
        return dataclasses.replace(self, starts=starts)

    def initialise(self, model: Any) -> None:
        """Fill the factors of a fresh stock LoRA of rank 2r, after which the model answers as its base.

        From zero, what peft itself draws is the start, of rank r.
        Errors: UsageError (another rank), MismatchError (a module without a start).
        """
        import torch

        for name, a, b in self._factors(model):
            start = self.starts[name]
            r = start.a.shape[0]
            if a.shape[0] != self.halves * r:
                raise UsageError(
                    f"--guard salora of rank {r} needs LoRA factors of rank {self.halves * r}, found {a.shape[0]}"
                )
            if self.start == "zero":
                continue
            with torch.no_grad():
                a.copy_(torch.cat([start.a, start.a]))
                b.copy_(torch.cat([start.b, -start.b], dim=1))

    def tensors(self) -> dict[str, torch.Tensor]:
        """What was measured, for a file; see `with_tensors`."""
        import torch

        found: dict[str, torch.Tensor] = {}
        for name, start in self.starts.items():
            facts = torch.tensor([start.facts[key] for key in FACTS], dtype=torch.float64)
            parts = {"safety": start.safety, "b": start.b, "a": start.a, "facts": facts}
            found |= {f"{name}|{key}": part.contiguous() for key, part in parts.items()}
        return found

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Self:
        """With the starts that `tensors` gave."""
        names = [key.removesuffix("|safety") for key in tensors if key.endswith("|safety")]
        starts = {}
        for name in names:
            safety, b, a, facts = (tensors[f"{name}|{key}"] for key in ("safety", "b", "a", "facts"))
            starts[name] = Start(safety, b, a, dict(zip(FACTS, facts.tolist(), strict=True)))
        return dataclasses.replace(self, starts=starts)

    def attach(self, model: Any, optimizer: Any) -> Handle:
        """Project and keep from now on; for a model that was initialised, or loaded from an adapter saved on the way.

        Errors: UsageError (no starts, no optimizer of torch), MismatchError.
        """
        from weightguard.guards.keeping import after_each_step

        inner = bare(optimizer)
        works, handles = [], []
        for name, a, b in self._factors(model):
            module = _Module(a, b, self.starts[name].safety, a.shape[0] // self.halves)
            works.append(module.restore)
            handles += [a.register_hook(module.gradient_of_a), b.register_hook(module.gradient_of_b)]
        step = after_each_step(inner, works)
        return Handle(step.detach, *(handle.remove for handle in handles))

    def trainer_callback(self) -> Any:
        """The same for a `transformers.Trainer`."""
        return callback(self)

    def _factors(self, model: Any) -> Iterator[tuple[str, torch.nn.Parameter, torch.nn.Parameter]]:
        """(tensor, lora_A, lora_B) of every adapted module."""
        from weightguard.statistics.parameters import targets

        if not self.starts:
            raise UsageError("--guard salora has nothing measured; call `measured` first")
        by_base = {id(target.module): name for name, target in targets(model, self.starts).items()}
        layers = [layer for layer in model.modules() if hasattr(layer, "lora_A") and len(layer.lora_A)]
        if not layers:
            raise UsageError("--guard salora goes with LoRA; make the model a peft model first")
        for layer in layers:
            name = by_base.get(id(layer.base_layer))
            if name is None:
                raise MismatchError("--guard salora: an adapted module was not measured; measure what LoRA targets")
            adapter = next(iter(layer.lora_A))
            yield name, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight


class _Module:
    """lora_A (n, in) and lora_B (out, n) of one module while they train: the first r of n learn, the others stay."""

    def __init__(self, a: torch.nn.Parameter, b: torch.nn.Parameter, safety: torch.Tensor, r: int) -> None:
        self.a, self.b, self.r = a, b, r
        self.wide = safety.to(b.device)
        self.narrow = self.wide.to(b.dtype)
        self.kept = (a.detach()[self.r :].clone(), b.detach()[:, self.r :].clone())

    def gradient_of_a(self, gradient: torch.Tensor) -> torch.Tensor:
        found = gradient.clone()
        found[self.r :] = 0
        return found

    def gradient_of_b(self, gradient: torch.Tensor) -> torch.Tensor:
        found = gradient.clone()
        found[:, self.r :] = 0
        v = self.narrow.to(gradient.dtype)
        return found - v @ (v.T @ found)

    def restore(self) -> None:
        self.a[self.r :] = self.kept[0]
        learnt = self.b[:, : self.r].double()
        self.b[:, : self.r] = (learnt - self.wide @ (self.wide.T @ learnt)).to(self.b.dtype)
        self.b[:, self.r :] = self.kept[1]
