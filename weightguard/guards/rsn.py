"""RSN-Tune: safety neurons that the model's foundation skills do not share are kept, or are all that is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from weightguard.guards.attaching import Handle, callback
from weightguard.options import option

if TYPE_CHECKING:
    from weightguard.parts import Neurons


@dataclass(frozen=True, kw_only=True, eq=False)
class Rsn:
    """The neurons hold safety neurons minus foundation neurons. `train` says on which side of them learning happens.

    "others": user fine-tuning that may not touch them. "safety": realignment that touches nothing else (published as
    RSN-Tune); every parameter without neurons is then kept as a whole.
    """

    NAME: ClassVar[str] = "rsn"
    PAPER: ClassVar[str] = "RSN-Tune (ICLR 2025)"
    NEEDS: ClassVar[tuple[str, ...]] = ("neurons",)

    neurons: Neurons
    train: str = option("others", "what learns: others keeps the safety neurons, safety trains only them",
                        ("others", "safety"))  # fmt: skip

    def attach(self, model: Any, optimizer: Any) -> Handle:
        """Keep one side as it is now. Errors: UsageError, MismatchError."""
        from weightguard.guards.keeping import keep

        return keep(self.neurons, model, optimizer, self.NAME, others=self.train == "safety")

    def trainer_callback(self) -> Any:
        """The same for a `transformers.Trainer`."""
        return callback(self)
