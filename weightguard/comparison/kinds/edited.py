"""One fact written into one place (ROME, arXiv:2202.05262): a single matrix changed, by very few directions."""

from __future__ import annotations

import math

from weightguard.comparison.case import Case
from weightguard.comparison.finding import Finding, check

NAME = "single-layer edit"


def look(case: Case) -> Finding | None:
    if not case.linears or len(case.changed) > 2 or len({c.layer for c in case.changed}) != 1:
        return None
    spectra = [case.spectra[c.name] for c in case.linears]
    rank = max(s.rank for s in spectra)
    touched = min(c.changed_share for c in case.linears)
    checks = (
        check("{value} tensors changed", len(case.changed), 3, 1),
        check("by an update of rank {value}", rank, 8.5, 1),
        check("which holds {share} of it", min(s.captured(rank) for s in spectra), 0.3, 0.9),
        # A fact is not written into a few numbers.
        check(f"in {100 * touched:.3g} % of the entries", math.log10(max(touched, 1e-12)), -2, -0.7),
        check("that is {share} of the directions there are", rank / min(min(c.shape) for c in case.linears), 0.3, 0.0),
    )
    first = case.linears[0]
    details = {"tensor": first.name, "layer": first.layer, "role": first.role, "rank": rank}
    return Finding(NAME, checks, details)
