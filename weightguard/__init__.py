"""weightguard: look into, repair and clear for release the weights of open language models.

import weightguard as wg
result = wg.repair("org/model", method="antidote", aligned="org/aligned", harmful="harmful.jsonl", out="repaired")
"""

from __future__ import annotations

import os

if not os.environ.get("HF_ENDPOINT", "set").strip():  # huggingface_hub would take nothing for an address
    del os.environ["HF_ENDPOINT"]

from weightguard.api import (
    apply,
    attack,
    compare,
    demo,
    evaluate,
    finetune,
    gate,
    inspect,
    landscape,
    neurons,
    repair,
    stats,
    suggest,
    verify,
)

__all__ = [
    "__version__", "apply", "attack", "compare", "demo", "evaluate", "finetune", "gate", "inspect", "landscape", "neurons",
    "repair", "stats", "suggest", "verify",
]  # fmt: skip


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("weightguard")
    raise AttributeError(f"module 'weightguard' has no attribute {name!r}")
