"""Freeze+ (arXiv:2410.10862): safety-critical units, not single entries, do not take part in fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from weightguard.errors import UsageError
from weightguard.guards.attaching import Handle, callback

if TYPE_CHECKING:
    from weightguard.parts import Neurons


@dataclass(frozen=True, kw_only=True, eq=False)
class FreezePlus:
    """The marked rows and columns keep their bits through any training; everything else learns.

    Published: units are typed as safety-critical, utility-critical, complex and redundant by what their removal does to
    safety and to utility; the safety-critical ones, and some of the complex ones, are frozen while a user fine-tunes.
    Our reading: which types are kept is decided where the neurons are made, so a file that marks utility-critical units
    too keeps them too; a kept row keeps its bias; values are put back after each step, since weight decay and momentum
    move what has no gradient.
    """

    NAME: ClassVar[str] = "freeze-plus"
    PAPER: ClassVar[str] = "arXiv:2410.10862"
    NEEDS: ClassVar[tuple[str, ...]] = ("neurons",)

    neurons: Neurons

    def attach(self, model: Any, optimizer: Any) -> Handle:
        """Keep the units as they are now. Errors: UsageError (single entries are marked, not units), MismatchError."""
        from weightguard.guards.keeping import keep

        for name, part in self.neurons.parts.items():
            if part.form not in ("rows", "columns"):
                raise UsageError(
                    f"--guard freeze-plus keeps whole units; the neurons of tensor {name!r} have the form {part.form!r}; "
                    f"give rows and columns, or take --guard freeze"
                )
        return keep(self.neurons, model, optimizer, self.NAME)

    def trainer_callback(self) -> Any:
        """The same for a `transformers.Trainer`."""
        return callback(self)
