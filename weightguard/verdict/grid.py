"""The attacks a policy wants to have been tried: a grid of settings, each cell with a stable id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from weightguard.errors import InputError

GRID: dict[str, Any] = {
    "attack": [str], "learning_rate": [float], "poison_ratio": [float], "steps": [int], "lora_r": [int], "seeds": [int],
}  # fmt: skip
_MOST_CELLS = 10_000


@dataclass(frozen=True)
class Grid:
    """axes: key of GRID -> its values. bound_min_retention: share of the utility an attack must leave to count."""

    axes: Mapping[str, tuple[Any, ...]]
    bound_min_retention: float | None = None

    def cells(self) -> list[str]:
        """Ids such as `attack=lora-sft,learning_rate=0.002,poison_ratio=0.1,steps=60,lora_r=8,seed=0`."""
        names = [name if name != "seeds" else "seed" for name in GRID]
        values = [self.axes[name] for name in GRID]
        return [",".join(f"{n}={_shown(v)}" for n, v in zip(names, cell, strict=True)) for cell in product(*values)]

    @staticmethod
    def of(data: Mapping[str, Any], where: str) -> Grid:
        """From the table of a policy, whose form has been checked. Error: InputError."""
        count = 1
        for name in GRID:
            if not data[name]:
                raise InputError(f"{where}.{name}: empty; give at least one value")
            bad = next((v for v in data[name] if not _sensible(name, v)), None)
            if bad is not None:
                raise InputError(f"{where}.{name}: {bad!r} is out of range")
            count *= len(data[name])
        if count > _MOST_CELLS:
            raise InputError(f"{where}: {count} cells, more than the {_MOST_CELLS} that a grid may have")
        retention = data.get("bound_min_retention")
        if retention is not None and not 0 < retention <= 1:
            raise InputError(f"{where}.bound_min_retention is {retention:g}; it is a share above 0 and at most 1")
        return Grid({name: tuple(data[name]) for name in GRID}, retention)


def _sensible(name: str, value: Any) -> bool:
    if name == "attack":
        return bool(value.strip())
    if name == "poison_ratio":
        return 0 <= value <= 1
    return value >= 0 if name == "seeds" else value > 0


def _shown(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
