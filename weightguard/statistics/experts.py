"""What routed experts are given: transformers packs a layer's experts in one module, so no module sees the input of one.

The experts module is told which token goes where. From that the input of each expert's gate and up is known, and that
of its down is computed again; what the model itself computes is left to it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from weightguard.checkpoint import Family, Linear
from weightguard.errors import UnsupportedError

# (site, expert, inputs (n, in), counted (n,))
Seen = tuple[str, int, torch.Tensor, torch.Tensor]


def expert_modules(family: Family, modules: dict[str, torch.nn.Module]) -> dict[int, torch.nn.Module]:
    """Layer -> the module that holds its routed experts. Error: UnsupportedError where peft has put factors over them."""
    pattern = re.compile(rf"{family.place}{family.block}\.(\d{{1,5}})\.\w+\.experts$")
    found = {match[1]: module for path, module in modules.items() if (match := pattern.search(path))}
    if not all(map(packs_experts, found.values())):
        raise UnsupportedError(
            "the adapter changes routed experts, which peft runs packed, so that no single one can be measured; "
            "merge the adapter with peft first, or take a method that needs no data"
        )
    return {int(layer): module for layer, module in found.items()}


def packs_experts(module: torch.nn.Module) -> bool:
    """True for the module that holds the routed experts of a layer."""
    return isinstance(getattr(module, "gate_up_proj", None), torch.nn.Parameter)


def expert_count(experts: Any) -> int:
    """How many experts a module packs."""
    return experts.gate_up_proj.shape[0]


def expert_weight(
    experts: Any, role: str, expert: int
) -> tuple[torch.nn.Parameter, Callable[[torch.Tensor], torch.Tensor]]:
    """The parameter that packs a linear of all experts, and what gives the part of one linear in one of them."""
    parameter = experts.down_proj if role == "expert_down" else experts.gate_up_proj
    if role in ("expert_down", "expert_gate_up"):
        return parameter, lambda packed: packed[expert]
    half = parameter.shape[1] // 2  # gate and up lie apart on disk, one above the other in memory
    rows = slice(0, half) if role == "expert_gate" else slice(half, None)
    return parameter, lambda packed: packed[expert, rows]


def routed(experts: Any, given: tuple[torch.Tensor, ...], counted: torch.Tensor) -> Iterator[Seen]:
    """Inputs of both linears of every expert, also of those that no token reached. given: what the module's forward is.

    counted: bool, one per token in the order of the batch.
    """
    for expert in range(expert_count(experts)):
        inputs, chosen = _sent(expert, expert_count(experts), given, counted.reshape(-1))
        yield "expert_in", expert, inputs, chosen
        yield "expert_out", expert, _between(experts, expert, inputs), chosen


def _sent(
    expert: int, count: int, given: tuple[torch.Tensor, ...], counted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens sent to one expert (n, in), and which of them count."""
    if len(given) == 1:  # Llama 4 gives every expert every token, times its router's score: zero where it is not routed
        tokens = given[0].reshape(count, -1, given[0].shape[-1])[expert]
        sent = tokens.any(dim=1)
        return tokens[sent], counted[sent]
    hidden, index = given[0].reshape(-1, given[0].shape[-1]), given[1]
    sent = (index == expert).any(dim=1)
    return hidden[sent], counted[sent]


def _between(experts: Any, expert: int, inputs: torch.Tensor) -> torch.Tensor:
    """Inputs of an expert's down (n, width), as its own activation makes them."""
    weight = experts.gate_up_proj[expert]
    found = inputs @ (weight if getattr(experts, "is_transposed", True) else weight.T)
    if getattr(experts, "has_bias", False):
        found = found + experts.gate_up_proj_bias[expert]
    if hasattr(experts, "_apply_gate"):
        return experts._apply_gate(found)
    gate, up = found.chunk(2, dim=-1)
    return up * experts.act_fn(gate)


@dataclass(frozen=True, eq=False)
class Routed:
    """Routed experts of a layer and the counted tokens in front of them. hidden (n, width); index (n, k): who gets each.

    The weights are those of the module that was given, also after it has lost them; new ones written into them count.
    """

    experts: Any
    hidden: torch.Tensor
    index: torch.Tensor

    @classmethod
    def of(cls, experts: Any, given: tuple[torch.Tensor, ...], counted: torch.Tensor) -> Routed:
        """From what the module's forward is given. counted: bool, one per token in the order of the batch."""
        held, chosen = copy.copy(experts), counted.reshape(-1)
        held._parameters = {k: torch.nn.Parameter(p.data, False) for k, p in experts._parameters.items()}
        return cls(held, given[0].reshape(-1, given[0].shape[-1])[chosen], given[1][chosen])

    def tokens(self, expert: int) -> torch.Tensor:
        """Numbers of the tokens that are sent to an expert, ascending."""
        return (self.index == expert).any(dim=1).nonzero()[:, 0]

    @torch.inference_mode()
    def inputs(self, linear: Linear, tokens: torch.Tensor) -> torch.Tensor:
        """What a linear of an expert is given (n, in) when the expert is given these tokens."""
        assert linear.expert is not None
        hidden = self.hidden[tokens]
        return _between(self.experts, linear.expert, hidden) if linear.role == "expert_down" else hidden

    @torch.inference_mode()
    def outputs(self, linear: Linear, tokens: torch.Tensor) -> torch.Tensor:
        """What the linear answers then (n, out), with its bias."""
        weight, bias = self._weight(linear), self.bias(linear)
        found = self.inputs(linear, tokens) @ (weight if linear.transposed else weight.T)
        return found if bias is None else found + bias

    def bias(self, linear: Linear) -> torch.Tensor | None:
        """The bias (out,) of a linear of an expert, where it has one."""
        found = getattr(self.experts, f"{'down' if linear.role == 'expert_down' else 'gate_up'}_proj_bias", None)
        return None if found is None else found[linear.expert]

    def put(self, linear: Linear, stored: torch.Tensor) -> None:
        """New weights of a linear, as files hold them."""
        self._weight(linear).copy_(stored)

    def _weight(self, linear: Linear) -> torch.Tensor:
        assert linear.expert is not None
        packed, part = expert_weight(self.experts, linear.role, linear.expert)
        return part(packed.data)
