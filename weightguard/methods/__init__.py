"""One small file a method. METHODS maps the name on the command line to where the method lives; nothing is imported
before it is asked for, and no method module imports torch at its top."""

from __future__ import annotations

from typing import Any

from weightguard.options import named_class

METHODS = {
    "antidote": "weightguard.methods.antidote:Antidote",
    "gradient-reset": "weightguard.methods.gradient_reset:GradientReset",
    "magnitude": "weightguard.methods.magnitude:Magnitude",
    "prune": "weightguard.methods.prune:Prune",
    "random": "weightguard.methods.random:Random",
    "realign": "weightguard.methods.realign:Realign",
    "refit": "weightguard.methods.refit:Refit",
    "remove-ranks": "weightguard.methods.remove_ranks:RemoveRanks",
    "restore": "weightguard.methods.restore:Restore",
    "safe-lora": "weightguard.methods.safe_lora:SafeLora",
    "safety-vector": "weightguard.methods.safety_vector:SafetyVector",
    "scale": "weightguard.methods.scale:UniformScaling",
    "truncate": "weightguard.methods.truncate:Truncate",
    "undo-abliteration": "weightguard.methods.undo_abliteration:UndoAbliteration",
}


def method_class(name: str) -> Any:
    """The dataclass of a method by its name. Error: UsageError listing the names."""
    return named_class(METHODS, name, "--method", "methods")
