"""How large a repair is, so that a control of the same size can be made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from weightguard.api.subject import Subject
from weightguard.checkpoint import check_pairing
from weightguard.errors import MismatchError

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Size:
    """changed: entries the repair changed over those that fine-tuning had changed.

    left: ‖after − reference‖/‖before − reference‖.
    """

    changed: float
    left: float


def size_of(before: Subject, after: Subject, reference: Subject, progress: Progress) -> Size:
    """Over the decoder's linears, an adapter merged, sums in float64. Error: MismatchError (shapes, nothing fine-tuned)."""
    from weightguard.weights import tuned_tensor

    for other in (after, reference):
        check_pairing(before.model, other.model, list(before.named))
    sources = [each.sources("weight") for each in (before, after, reference)]
    moved = changed = 0
    update = rest = 0.0
    for done, name in enumerate(before.named, 1):
        was, now, aligned = (tuned_tensor(source, name).double() for source in sources)
        moved, changed = moved + int((was != aligned).sum()), changed + int((now != was).sum())
        update, rest = update + float((was - aligned).square().sum()), rest + float((now - aligned).square().sum())
        progress("size of the repair", done, len(before.named))
    if not update:
        raise MismatchError("--controls: BEFORE has the weights of the reference, so there is no update to control for")
    return Size(min(1.0, changed / moved), sqrt(rest / update))
