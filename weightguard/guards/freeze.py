"""Freeze (arXiv:2402.05162): safety-critical entries do not take part in fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from weightguard.guards.attaching import Handle, callback

if TYPE_CHECKING:
    from weightguard.parts import Neurons


@dataclass(frozen=True, kw_only=True, eq=False)
class Freeze:
    """The marked entries (rows, columns) keep their bits through any training; everything else learns.

    Published: the top share of Wanda or SNIP scores on safety data less that on utility data, frozen as a probe, and
    found not to stop fine-tuning attacks on a 7B model. Our reading: any mask may be kept; values are put back after
    each step, because a masked gradient does not keep an entry under AdamW.
    """

    NAME: ClassVar[str] = "freeze"
    PAPER: ClassVar[str] = "arXiv:2402.05162"
    NEEDS: ClassVar[tuple[str, ...]] = ("neurons",)

    neurons: Neurons

    def attach(self, model: Any, optimizer: Any) -> Handle:
        """Keep the entries as they are now. Errors: UsageError, MismatchError."""
        from weightguard.guards.keeping import keep

        return keep(self.neurons, model, optimizer, self.NAME)

    def trainer_callback(self) -> Any:
        """The same for a `transformers.Trainer`."""
        return callback(self)
