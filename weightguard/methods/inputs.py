"""What a method may look at, and the few things all entry-selecting methods say in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightguard.options import as_share, option, settings

if TYPE_CHECKING:
    from weightguard.checkpoint import Linear
    from weightguard.neurons import Neurons
    from weightguard.statistics.norms import InputNorms
    from weightguard.weights import Sources

__all__ = ["Inputs", "as_share", "option", "settings"]


@dataclass(frozen=True)
class Inputs:
    """`linears`: the tensors the method may edit, by on-disk name: decoder linears, or the factors of an adapter.

    `harmful` and `utility`: input norms on harmful and on harmless data, where the method asks for them. `neurons`: what
    `weightguard neurons` found, for the methods that act on it; already known to belong to these sources.
    """

    sources: Sources
    linears: Mapping[str, Linear]
    harmful: InputNorms | None = None
    utility: InputNorms | None = None
    neurons: Neurons | None = None
