"""What every guard shares: a handle that detaches, the way into a Trainer, and the parameters an optimizer trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from weightguard.errors import UsageError

if TYPE_CHECKING:
    import torch


class Handle:
    """What a guard hung onto a model and an optimizer. `detach()` takes it off again; a second time does nothing."""

    def __init__(self, *removers: Callable[[], Any]) -> None:
        self._removers = removers

    def detach(self) -> None:
        removers, self._removers = self._removers, ()
        for remove in removers:
            remove()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


def bare(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside the wrappers of accelerate. Error: UsageError."""
    import torch

    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"a guard attaches to a torch optimizer, not to {type(optimizer).__name__}")
    return optimizer


def callback(guard: Any) -> Any:
    """A transformers TrainerCallback that attaches the guard when training begins and detaches it when it ends."""
    from transformers import TrainerCallback

    class Attached(TrainerCallback):
        def __init__(self) -> None:
            self.handle = Handle()

        def on_train_begin(self, args, state, control, model=None, optimizer=None, **_):
            self.handle.detach()
            self.handle = guard.attach(model, optimizer)

        def on_train_end(self, args, state, control, **_):
            self.handle.detach()

    return Attached()


def trained(optimizer: torch.optim.Optimizer) -> dict[int, torch.nn.Parameter]:
    """The parameters of an optimizer that learn, by identity."""
    held = (p for group in optimizer.param_groups for p in group["params"])
    return {id(p): p for p in held if p.requires_grad}
