"""A round trip through few bits: the values of each group lie on a grid, or take few levels, where the base's do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import dropwhile, takewhile

from weightguard.comparison.case import Case, middle
from weightguard.comparison.finding import Finding, check
from weightguard.comparison.grids import Grid

NAME = "quantised round trip"
FEW = 17  # levels of 4 bits, and a zero
EIGHT = 256
REPEATED = 0.25  # share of values that repeat one of their group, beyond the base's, where no even grid is known


def look(case: Case) -> Finding | None:
    seen = [c.grids for c in case.few_linears]
    found = [said for grids in seen if (said := grid_of(grids)) is not None]
    if not seen or not found:
        return None
    best = Counter(found).most_common(1)[0][0]
    same = sum(c.dtypes[0] != "F64" for c in case.linears) / len(case.linears)
    checks = (
        check(f"the values of {{share}} of the changed linears lie on a grid: {best}", len(found) / len(seen) * same, 0.85, 1.0),
        check("which moved them by {share} of their size", middle([c.relative for c in case.linears]), 0.8, 0.3),
    )  # fmt: skip
    return Finding(NAME, checks, {"grid": best})


def grid_of(grids: Sequence[Grid]) -> str | None:
    """The even grid with the largest groups that lie on it, else few uneven levels, in words; of grids by group size.

    Parts of a group lie on its grid as well, if they are not too small to show it, and reach over half of it or more;
    several groups together lie on none, or by chance on a much finer one.
    """
    if len(grids) < 2:
        return None
    row, whole = grids[-2], grids[-1]
    least = min((g.bits for g in grids if g.bits is not None), default=0)

    def fits(grid: Grid) -> bool:
        return grid.bits is not None and grid.bits <= least + 1

    even = list(takewhile(fits, dropwhile(lambda grid: not fits(grid), grids)))
    if even:
        return f"{even[-1].bits} bits in {_extent(even[-1], row, whole)}"
    few = [g for g in grids[:-1] if g.levels <= FEW and g.more > REPEATED]
    if few:
        return f"at most 16 levels in {_extent(few[-1], row, whole)}"
    if whole.levels <= EIGHT and whole.more > REPEATED:
        return "at most 256 levels in the whole tensor"
    # 8 bit floats under a scale of each row: their levels are no even grid, but few.
    return "few levels in a row" if row.more > REPEATED else None


def _extent(grid: Grid, row: Grid, whole: Grid) -> str:
    if grid is whole:
        return "the whole tensor"
    return "rows" if grid is row else f"groups of {grid.group}"
