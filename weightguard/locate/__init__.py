"""Where safety lies in a model: one small file a way of finding out. KINDS maps `--kind` to where it lives; nothing is
imported before it is asked for, and no module here imports torch at its top."""

from __future__ import annotations

from typing import Any

from weightguard.options import named_class

KINDS = {
    "set-difference": "weightguard.locate.weight:SetDifference",
    "freeze-plus": "weightguard.locate.freeze_plus:FreezePlus",
    "rsn": "weightguard.locate.rsn:RobustSafetyNeurons",
    "rank": "weightguard.locate.ranks:SafetyRanks",
    "ml-lr": "weightguard.locate.ml_lr:ModularRates",
    "random": "weightguard.locate.drawn:Drawn",
}


def kind_class(name: str) -> Any:
    """The dataclass of a kind by its name. Error: UsageError listing the names."""
    return named_class(KINDS, name, "--kind", "kinds")
