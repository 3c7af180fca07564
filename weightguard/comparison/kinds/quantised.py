"""A round trip through few bits: the values of each group lie on a grid, or take few levels, where the base's do not."""

from __future__ import annotations

from weightguard.comparison.case import Case
from weightguard.comparison.finding import Finding, check
from weightguard.comparison.samples import Grid, Sample

NAME = "quantised round trip"
FEW = 17  # levels of 4 bits, and a zero
EIGHT = 256


def look(case: Case) -> Finding | None:
    seen = [c.sample for c in case.linears if c.sample is not None]
    found = [g for s in seen if (g := grid_of(s)) is not None]
    if not seen or not found:
        return None
    best = max(set(found), key=found.count)
    same = sum(c.dtypes[0] != "F64" for c in case.linears) / len(case.linears)
    said = f"the values of {{share}} of the changed linears lie on a grid: {best}"
    return Finding(NAME, (check(said, len(found) / len(seen) * same, 0.85, 1.0),), {"grid": best})


def grid_of(sample: Sample) -> str | None:
    """The coarsest grid that explains a sample, in words."""
    grids = [g for g in sample.grids if g.bits is not None and _more(g) > 0.03]
    if grids:
        best = min(grids, key=lambda g: (g.bits, -g.group))
        return f"{best.bits} bits in {'rows' if best is sample.grids[-1] else f'groups of {best.group}'}"
    few = [g for g in sample.grids if g.levels <= FEW and _more(g) > 0.25]
    if few:
        return f"at most 16 levels in groups of {max(g.group for g in few)}"
    if sample.whole.levels <= EIGHT and _more(sample.whole) > 0.25:
        return "at most 256 levels in a tensor"
    # 8 bit floats under a scale of each row: their levels are no even grid, but few.
    return "few levels in a row" if _more(sample.grids[-1]) > 0.25 else None


def _more(grid: Grid) -> float:
    return grid.repeats - grid.base_repeats
