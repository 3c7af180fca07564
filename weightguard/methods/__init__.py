"""One small file a method. METHODS maps the name on the command line to where the method lives; nothing is imported
before it is asked for, and no method module imports torch at its top."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from weightguard.errors import UsageError

METHODS = {
    "antidote": "weightguard.methods.antidote:Antidote",
    "magnitude": "weightguard.methods.magnitude:Magnitude",
    "random": "weightguard.methods.random:Random",
    "safe-lora": "weightguard.methods.safe_lora:SafeLora",
    "scale": "weightguard.methods.scale:UniformScaling",
    "undo-abliteration": "weightguard.methods.undo_abliteration:UndoAbliteration",
}


def method_class(name: str) -> Any:
    """The dataclass of a method by its name. Error: UsageError listing the names."""
    if name not in METHODS:
        raise UsageError(f"--method {name}: unknown; methods are {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(module), attribute)
