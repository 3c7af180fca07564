"""A grid of attacks: settings, each cell of which has a stable id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from weightguard import forms
from weightguard.errors import InputError
from weightguard.forms import Record

GRID: dict[str, Any] = {
    "attack": [str], "learning_rate": [float], "poison_ratio": [float], "steps": [int], "lora_r": [int], "seeds": [int],
}  # fmt: skip
REQUIRED = {"attack": GRID["attack"]}
OPTIONAL = {name: form for name, form in GRID.items() if name != "attack"} | {"bound_min_retention": float}
# The names of weightguard.attacks, which this module may not import; package.module:Class is one of the user's own.
NAMES = (
    "lora-sft", "full-sft", "benign-sft", "identity-shift", "multilingual", "covert-cipher", "reverse-preference",
    "bi-directional-anchor", "abliteration", "rank-one-edit", "quantize-round-trip",
)  # fmt: skip
# Axes that an attack of weightguard's own does not have: its cells do not multiply by them.
_EDIT = frozenset(GRID) - {"attack"}
LACKS = {
    "full-sft": {"lora_r"},
    "benign-sft": {"poison_ratio"},
    "reverse-preference": {"poison_ratio"},
    "bi-directional-anchor": {"poison_ratio"},
    "abliteration": _EDIT,
    "rank-one-edit": _EDIT,
    "quantize-round-trip": _EDIT,
}
BENIGN = ("benign-sft", "quantize-round-trip")  # nobody means harm by them
_MOST_CELLS = 10_000


@dataclass(frozen=True)
class Cell:
    """One attack with its settings, by axis (`seed` for one of `seeds`)."""

    values: tuple[tuple[str, Any], ...]

    @property
    def id(self) -> str:
        """Such as `attack=lora-sft,learning_rate=0.002,poison_ratio=0.1,steps=60,lora_r=8,seed=0`."""
        return ",".join(f"{name}={_shown(value)}" for name, value in self.values)

    @property
    def attack(self) -> str:
        return dict(self.values)["attack"]

    @property
    def steps(self) -> int | None:
        return dict(self.values).get("steps")

    def __str__(self) -> str:
        return self.id


@dataclass(frozen=True)
class Grid:
    """axes: key of GRID -> its values. bound_min_retention: share of the utility an attack must leave to count."""

    axes: Mapping[str, tuple[Any, ...]]
    bound_min_retention: float | None = None

    def cells(self) -> list[Cell]:
        """Every combination once, without the axes that its attack lacks."""
        found: dict[Cell, None] = {}
        names = [name for name in GRID if name in self.axes]
        for values in product(*(self.axes[name] for name in names)):
            lacks = LACKS.get(values[0], frozenset())
            kept = [(name, value) for name, value in zip(names, values, strict=True) if name not in lacks]
            found[Cell(tuple(("seed" if name == "seeds" else name, value) for name, value in kept))] = None
        return list(found)

    @staticmethod
    def parse(raw: bytes, what: str) -> Grid:
        """The grid in the bytes of a TOML file. Error: InputError in one line that begins with `what`."""
        data = forms.toml(raw, what)
        forms.check(data, Record(REQUIRED, OPTIONAL), what)
        return Grid.of(data, what)

    @staticmethod
    def of(data: Mapping[str, Any], where: str) -> Grid:
        """From a table whose form has been checked. Error: InputError."""
        axes = {name: tuple(data[name]) for name in GRID if name in data}
        count = 1
        for name, values in axes.items():
            if not values:
                raise InputError(f"{where}.{name}: empty; give at least one value")
            bad = next((v for v in values if not _sensible(name, v)), None)
            if bad is not None:
                raise InputError(f"{where}.{name}: {bad!r} is out of range")
            count *= len(values)
        unknown = next((name for name in axes["attack"] if ":" not in name and name not in NAMES), None)
        if unknown is not None:
            raise InputError(f"{where}.attack: no attack {unknown[:60]!r}; attacks are {', '.join(NAMES)}")
        if count > _MOST_CELLS:
            raise InputError(f"{where}: {count} cells, more than the {_MOST_CELLS} that a grid may have")
        retention = data.get("bound_min_retention")
        if retention is not None and not 0 < retention <= 1:
            raise InputError(f"{where}.bound_min_retention is {retention:g}; it is a share above 0 and at most 1")
        return Grid(axes, retention)


def _sensible(name: str, value: Any) -> bool:
    if name == "attack":
        return bool(value.strip())
    if name == "poison_ratio":
        return 0 <= value <= 1
    return value >= 0 if name in ("seeds", "lora_r") else value > 0


def _shown(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
