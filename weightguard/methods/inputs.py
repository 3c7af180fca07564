"""What a method may look at, and the few things all entry-selecting methods say in the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from weightguard.options import as_share, option, settings

if TYPE_CHECKING:
    from weightguard.checkpoint import Linear, LoraPair
    from weightguard.parts import Neurons
    from weightguard.statistics.norms import InputNorms
    from weightguard.statistics.subspace import Direction
    from weightguard.weights import Sources

__all__ = ["Inputs", "as_share", "option", "settings"]


@dataclass(frozen=True)
class Inputs:
    """`linears`: the tensors the method may edit, by on-disk name: decoder linears, or the factors of an adapter.

    `harmful` and `utility`: input norms on harmful and on harmless data, where the method asks for them. `direction`:
    the alignment direction of a linear of the full model, read when called. `factors`: base tensor -> LoRA pair.
    `neurons`: what `weightguard neurons` found, already known to belong to these sources. `kept`: what a method measured
    and will need again at the next strength; never part of a result.
    """

    sources: Sources
    linears: Mapping[str, Linear]
    harmful: InputNorms | None = None
    utility: InputNorms | None = None
    direction: Callable[[str], Direction] | None = None
    factors: Mapping[str, LoraPair] = field(default_factory=dict)
    neurons: Neurons | None = None
    kept: dict[str, Any] = field(default_factory=dict)
