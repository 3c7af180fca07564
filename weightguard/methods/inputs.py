"""What a method may look at, and the few things all entry-selecting methods say in the same way."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from weightguard.errors import UsageError
from weightguard.options import as_share, option, settings

if TYPE_CHECKING:
    import numpy

    from weightguard.checkpoint import Linear, LoraPair
    from weightguard.parts import Neurons
    from weightguard.statistics.in_memory import InMemory
    from weightguard.statistics.norms import InputNorms
    from weightguard.statistics.sites import SideBySide
    from weightguard.statistics.subspace import Direction
    from weightguard.weights import Sources

__all__ = ["Inputs", "as_share", "option", "settings"]


@dataclass(frozen=True)
class Inputs:
    """`linears`: the tensors the method may edit, by on-disk name: decoder linears, or the factors of an adapter.

    `harmful` and `utility`: input norms on harmful and on harmless data, where the method asks for them. `direction`:
    the alignment direction of a linear of the full model, read when called. `factors`: base tensor -> LoRA pair.
    `neurons`: what `weightguard neurons` found, already known to belong to these sources. `side_by_side`: starts a walk
    of the aligned, the tuned and the repaired model through safety and benign rows, on `device`. `in_memory`: loads the
    tuned model for gradients on those rows. `kept`: what a method measured and will need again at the next strength;
    never part of a result.
    """

    sources: Sources
    linears: Mapping[str, Linear]
    harmful: InputNorms | None = None
    utility: InputNorms | None = None
    direction: Callable[[str], Direction] | None = None
    factors: Mapping[str, LoraPair] = field(default_factory=dict)
    neurons: Neurons | None = None
    side_by_side: Callable[[], SideBySide] | None = None
    in_memory: Callable[[], InMemory] | None = None
    device: str = "cpu"
    kept: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FromBehaviour:
    """What methods share that learn from safety and benign rows."""

    NAME: ClassVar[str]
    NEEDS: ClassVar[tuple[str, ...]] = ("safety", "benign")
    target = "delta"  # not a field: there is no other

    scope: str = option("all", "roles to edit: all, or for example q,k,v")
    judge: str = option(
        "opening",
        "opening: leave out benign rows that the aligned model refuses, and count the repaired model's refusals per "
        "category, by how answers begin; none: neither",
        ("opening", "none"),
    )
    categories: str | None = option(None, "harm categories of the policy, a,b,c: each must be among the safety rows")

    @property
    def listed(self) -> tuple[str, ...]:
        """The categories of the policy. Error: UsageError for one without a name."""
        names = [] if self.categories is None else [name.strip() for name in self.categories.split(",")]
        if not all(names):
            raise UsageError(f"--categories {self.categories}: a name is empty; give a,b,c")
        return tuple(dict.fromkeys(names))

    def counted(self) -> dict[str, str]:
        """By role the tokens that count: all of a row's, or those of its response."""
        return {"safety": "response", "benign": "response"}

    def check_target(self, target: str) -> None:
        """Error: UsageError without an aligned model; and for categories that are none."""
        _ = self.listed
        if target == "weight":
            raise UsageError(f"--method {self.NAME} needs the model it was fine-tuned from; give --aligned")


def spooled(values: numpy.ndarray) -> numpy.ndarray:
    """The same array in a nameless temporary file: a plan of whole tensors need not fit in memory."""
    import numpy

    with tempfile.TemporaryFile() as file:
        kept: numpy.ndarray = numpy.memmap(file, values.dtype, "w+", shape=values.shape)
    kept[...] = values
    return kept
