"""The verbs of weightguard as functions. This folder is the only one that composes the others.

Every function takes what the command of the same name takes, and returns objects; nothing heavy is imported before it
is called. `progress(stage, done, total)` is called often; bytes for "read", "write" and "verify", else counts.
"""

from weightguard.api.calling import Progress, silent
from weightguard.api.flags import attack_options, attacks, guard_options, kind_options, kinds, method_options
from weightguard.api.grading import (
    enforce,
    evaluate,
    gate,
    is_verdict,
    landscape,
    render,
    verdict_forms,
    verify_verdict,
)
from weightguard.api.learning import attack, finetune
from weightguard.api.measuring import activations, compare, inspect, neurons, schema, stats
from weightguard.api.repairs import Applied, Verification, apply, demo, repair, suggest, verify
from weightguard.api.testing import validate

__all__ = [
    "Applied", "Progress", "Verification", "activations", "apply", "attack", "attack_options", "attacks", "compare",
    "demo", "enforce", "evaluate", "finetune", "gate", "guard_options", "inspect", "is_verdict", "kind_options",
    "kinds", "landscape", "method_options", "neurons", "render", "repair", "schema", "silent", "stats", "suggest", "validate",
    "verdict_forms", "verify", "verify_verdict",
]  # fmt: skip
