"""How often a verdict was right, counted on models that were edited in known ways.

Counts: 156 generated models of hidden 256 in fp32 and bf16, 12 kinds and what belongs to none; three quarters of them
are hard on purpose (ranks near the rounding, abliteration at a tenth of its strength under heavy fine-tuning, fine-tuning
that is nearly noise, merges of a percent, one entry in a hundred pruned). They are the set `counted` of
benchmarks/study_verdicts.py, which prints these counts and, on other cases, how far the confidences held.
Confidence is (right + 1)/(given + 2). An "unknown" depends on how far the nearest kind was: its margin was the only one
that told right from wrong. Verdicts that follow from equality of values are certain.
"""

from __future__ import annotations

CERTAIN = ("identical", "re-sharded or re-typed only")  # and the same in what was compared
NEAR = 0.3  # an "unknown" nearer to a kind than this may well be that kind
# Verdict -> (right, given).
COUNTS = {
    "quantised round trip": (12, 12),
    "pruning": (12, 12),
    "model merge or interpolation": (10, 10),
    "single-layer edit": (12, 12),
    "abliteration": (9, 9),
    "unrelated model": (12, 12),
    "LoRA merge": (12, 12),
    "noise": (11, 11),
    "full fine-tuning": (10, 14),
    "unknown, near": (1, 4),
    "unknown, far": (23, 24),
}


def confidence(kind: str, margin: float) -> float:
    """The confidence of a verdict; `margin`: of its weakest check, for "unknown" of the nearest kind's failure."""
    if kind.startswith(CERTAIN):
        return 1.0
    key = f"{kind}, {'near' if margin < NEAR else 'far'}" if kind == "unknown" else kind
    right, given = COUNTS[key]
    return (right + 1) / (given + 2)
