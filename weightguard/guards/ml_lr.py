"""ML-LR (arXiv:2410.04524): modules learn at different rates, the ones that matter for safety more slowly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from weightguard.errors import UsageError
from weightguard.guards.attaching import Handle, bare, callback, trained

if TYPE_CHECKING:
    import torch

    from weightguard.parts import Neurons
    from weightguard.statistics.parameters import Target


@dataclass(frozen=True, kw_only=True, eq=False)
class MlLr:
    """Every named tensor learns at its own multiple of the learning rate; a rate of 0 keeps it to the bit.

    Published: a greedy search finds the modules that may be perturbed without harm to safety; they keep the learning
    rate, the rest get a smaller one. Its constants are not known to us: the rates are those of the neurons file.
    Our reading: tensors the file does not name keep the learning rate; over LoRA the rate of a weight is that of the
    factors of its module; weight decay, which AdamW multiplies by the learning rate, shrinks with it.
    """

    NAME: ClassVar[str] = "ml-lr"
    PAPER: ClassVar[str] = "arXiv:2410.04524"
    NEEDS: ClassVar[tuple[str, ...]] = ("neurons",)

    neurons: Neurons

    def attach(self, model: Any, optimizer: Any) -> Handle:
        """Give the parameters groups of their own. Errors: UsageError (no rates, nothing trained), MismatchError.

        The groups are there while a step runs only: schedulers and saved optimizer states, which count groups, never
        see them, so they may have been made before.
        """
        inner = bare(optimizer)
        rates = self._rates(model, inner)
        groups = _Groups(rates)
        return Handle(
            inner.register_step_pre_hook(groups.split).remove,
            inner.register_step_post_hook(groups.join).remove,
            lambda: groups.join(inner),
        )

    def trainer_callback(self) -> Any:
        """The same for a `transformers.Trainer`."""
        return callback(self)

    def _rates(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, float]:
        """Identity of each trained parameter that has a rate -> the rate."""
        from weightguard.statistics.parameters import targets

        for name, part in self.neurons.parts.items():
            if part.rate is None:
                raise UsageError(
                    f"--guard ml-lr takes learning-rate factors; the neurons of tensor {name!r} have the form {part.form!r}"
                )
        learning = trained(optimizer)
        named = targets(model, self.neurons.parts)
        layers = _factors(model, named)
        rates: dict[int, float] = {}
        for name, target in named.items():
            target.check_shape(self.neurons.parts[name].shape)
            rate = float(self.neurons.parts[name].rate or 0)
            rates |= {id(p): rate for p in layers.get(name, [target.parameter]) if id(p) in learning}
        if not rates:
            raise UsageError("--guard ml-lr: the optimizer trains none of the tensors that have a rate")
        return rates


def _factors(model: torch.nn.Module, named: Mapping[str, Target]) -> dict[str, list[torch.nn.Parameter]]:
    """Tensor under LoRA -> the factors of its module."""
    over = {id(target.module): name for name, target in named.items() if target.adapted}
    found = {}
    for layer in model.modules():
        name = over.get(id(getattr(layer, "base_layer", None)))
        if name is not None:
            found[name] = [p for path, p in layer.named_parameters() if not path.startswith("base_layer.")]
    return found


class _Groups:
    """An optimizer's own groups, and the same parameters by rate while a step runs."""

    def __init__(self, rates: Mapping[int, float]) -> None:
        self.rates = rates
        self.own: list[dict[str, Any]] = []
        self.parts: list[list[dict[str, Any]]] = []

    def split(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self.join(optimizer)  # an earlier step that failed left the groups split
        self.own = optimizer.param_groups
        self.parts = [self._parts(group) for group in self.own]
        optimizer.param_groups = [part for parts in self.parts for part in parts]

    def _parts(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        by_rate: dict[float, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            by_rate.setdefault(self.rates.get(id(parameter), 1.0), []).append(parameter)
        return [
            {**group, "params": held, "lr": group["lr"] * rate if rate != 1 else group["lr"]}
            for rate, held in by_rate.items()
            if rate
        ]

    def join(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if not self.own:
            return
        for group, parts in zip(self.own, self.parts, strict=True):
            if parts:  # what an optimizer notes in its groups (a count, an estimate) goes back into its own
                group.update({key: value for key, value in parts[0].items() if key not in ("params", "lr")})
        optimizer.param_groups, self.own, self.parts = self.own, [], []
