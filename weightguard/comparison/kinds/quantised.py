"""A round trip through few bits: the values of each group lie on a grid, or take few levels, where the base's do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import dropwhile, takewhile

from weightguard.comparison.case import Case, middle
from weightguard.comparison.finding import Check, Finding, check
from weightguard.comparison.grids import Grid, beyond_rounding
from weightguard.comparison.kinds import abliterated
from weightguard.comparison.pairs import TensorChange
from weightguard.statistics.subspace import rounding_of

NAME = "quantised round trip"
FEW = 17  # levels of 4 bits, and a zero
EIGHT = 256
FURTHER = 0.02  # share of a matrix's entries that moved over half a step
# What was done before the rounding; `api.suggesting` goes by the first two.
LOST = "one direction is gone from o and down as well"
MORE = "quantised, and changed before by more than rounding to the nearest step (or rounded with what makes up for it, as GPTQ)"
NOT_SEEN = "no more than rounding is seen; what is smaller than half a step would not be"
NOT_ASKED = "what was done before is not seen: the levels are uneven"
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
    finding = Finding(NAME, checks, {"grid": best})
    return _with_before(case, finding) if finding.holds else finding


def _with_before(case: Case, finding: Finding) -> Finding:
    """What else was done to the model: a direction that its o and down lost, else that it moved by more than rounding."""
    moved = [far for c in case.few_linears if (far := moved_further(c)) is not None]
    lost = abliterated.common_loss(case)
    if lost is not None and lost.holds:
        found, said = LOST, (LOST, *(check.said for check in lost.checks[2:5]))
    elif sum(far > FURTHER for far in moved) > 1:
        found = MORE
        said = (
            f"{MORE}: in the matrix where most did, {100 * max(moved):.3g} % of the entries moved over half a step",
        )
    else:
        found = NOT_SEEN if moved else NOT_ASKED
        said = (found,)
    checks = (*finding.checks, Check("; ".join(said), 1.0))
    return Finding(finding.kind, checks, {**finding.details, "before": found})


def moved_further(change: TensorChange) -> float | None:
    """Share of its first entries that moved by more than rounding to its own grid does; None where it has no even one."""
    even = last_even(change.grids)
    if even is None or change.corner is None or _is_table(change.grids, even):
        return None
    ours, theirs = (side.float() for side in change.corner)
    storing = sum(rounding_of(dtype) for dtype in (change.precision, change.dtypes[1]))
    return beyond_rounding(ours, theirs, even.group, storing)


def _is_table(grids: Sequence[Grid], even: Grid) -> bool:
    """16 levels that lie near some grid of many bits, as NF4's do, are no even ones."""
    fine = even.bits is not None and even.bits > 5
    return fine and any(grid.levels <= FEW and grid.group >= 64 for grid in grids[:-1])


def last_even(grids: Sequence[Grid]) -> Grid | None:
    """The even grid with the largest groups."""
    least = min((g.bits for g in grids if g.bits is not None), default=0)

    def fits(grid: Grid) -> bool:
        return grid.bits is not None and grid.bits <= least + 1

    even = list(takewhile(fits, dropwhile(lambda grid: not fits(grid), grids)))
    return even[-1] if even else None


def grid_of(grids: Sequence[Grid]) -> str | None:
    """The even grid with the largest groups that lie on it, else few uneven levels, in words; of grids by group size.

    Parts of a group lie on its grid as well, if they are not too small to show it, and reach over half of it or more;
    several groups together lie on none, or by chance on a much finer one.
    """
    if len(grids) < 2:
        return None
    row, whole, even = grids[-2], grids[-1], last_even(grids)
    if even is not None:
        return f"{even.bits} bits in {_extent(even, row, whole)}"
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
