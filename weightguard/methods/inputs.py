"""What a method may look at, and the few things all entry-selecting methods say in the same way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from weightguard.errors import UsageError

if TYPE_CHECKING:
    from weightguard.checkpoint import Linear, LoraPair
    from weightguard.statistics.norms import InputNorms
    from weightguard.statistics.subspace import Direction
    from weightguard.weights import Sources


@dataclass(frozen=True)
class Inputs:
    """`linears`: the tensors the method may edit, by on-disk name: decoder linears, or the factors of an adapter.

    `harmful` and `utility`: input norms on harmful and on harmless data, where the method asks for them. `direction`:
    the alignment direction of a linear of the full model, read when called. `factors`: base tensor -> LoRA pair.
    `kept`: what a method measured and will need again at the next strength; never part of a result.
    """

    sources: Sources
    linears: Mapping[str, Linear]
    harmful: InputNorms | None = None
    utility: InputNorms | None = None
    direction: Callable[[str], Direction] | None = None
    factors: Mapping[str, LoraPair] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)


def option(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field that is also a command line flag with this help text."""
    return field(default=default, metadata={"help": text, "choices": choices})


def as_share(value: float | str | Decimal | None, name: str) -> Decimal:
    """A share between 0 and 1, read as the decimal typed. Error: UsageError."""
    try:
        share = value if isinstance(value, Decimal) else Decimal(str(value))
    except InvalidOperation:
        raise UsageError(f"--{name} {value}: not a number") from None
    if not share.is_finite() or not 0 <= share <= 1:
        raise UsageError(f"--{name} {value}: must lie between 0 and 1")
    if share and share.adjusted() < -30:
        raise UsageError(f"--{name} {value}: too small to mean anything")  # and its fraction too long to compute with
    return share


def settings(method: Any) -> dict[str, Any]:
    """A method's options by flag name, as JSON values, without the ones that do not apply."""
    values = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    return {key: str(v) if isinstance(v, Decimal) else v for key, v in values.items() if v is not None}
