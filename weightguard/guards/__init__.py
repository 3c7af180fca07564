"""Guards constrain later fine-tuning so that alignment survives it. One small file a guard; GUARDS maps the name on the
command line to where it lives; nothing is imported before it is asked for.

A guard is a frozen dataclass; `attach(model, optimizer)` hangs it onto anybody's training loop and returns a handle
that detaches, `trainer_callback()` does the same inside a `transformers.Trainer`.

    handle = Freeze(neurons=Neurons.load(path)).attach(model, optimizer)
    ...
    handle.detach()
"""

from __future__ import annotations

from typing import Any

from weightguard.options import named_class

GUARDS = {
    "freeze": "weightguard.guards.freeze:Freeze",
    "freeze-plus": "weightguard.guards.freeze_plus:FreezePlus",
    "ml-lr": "weightguard.guards.ml_lr:MlLr",
    "rsn": "weightguard.guards.rsn:Rsn",
    "salora": "weightguard.guards.salora:SaLoRA",
}


def guard_class(name: str) -> Any:
    """The dataclass of a guard by its name. Error: UsageError listing the names."""
    return named_class(GUARDS, name, "--guard", "guards")
