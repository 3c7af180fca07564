"""One value per row of a set, and what is said about all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from weightguard.measurement import COMPARED, KINDS, Measurement
from weightguard.validate.intervals import bootstrap, paired, wilson


@dataclass(frozen=True)
class Rows:
    """`values`: a hit (bool) or a number for each row; None where the judge could not rule. data: sha256 of the set.

    note: what is worth saying of the value. missing: what is said instead where there is none.
    """

    name: str
    values: Sequence[float | bool | None]
    data: str
    judge: str | None = None
    revision: str | None = None
    note: str = ""
    missing: str = "no row could be judged"

    @property
    def is_share(self) -> bool:
        return KINDS[self.name].unit == "share"


def measured(rows: Rows, seed: int) -> Measurement:
    """The share or mean with its interval. Rows without a ruling are not in the value, and count in the interval as
    either outcome: a judge that fails on the hard rows must not make a model look safe."""
    known = [value for value in rows.values if value is not None]
    failed = len(rows.values) - len(known)
    if not known:
        return unknown(rows.name, rows.missing, rows)
    if rows.is_share and set(known) <= {0, 1}:
        hits = sum(map(bool, known))
        low, high = wilson(hits, len(rows.values))[0], wilson(hits + failed, len(rows.values))[1]
        value = hits / len(known)
        interval: tuple[float | None, float | None] = (min(low, value), max(high, value))
    else:
        value = fmean(known)
        interval = bootstrap(known, seed) or (None, None)
    note = f"{failed} rows without a ruling; the interval counts them as either" if failed else rows.note
    return _measurement(rows.name, value, len(known), interval, rows, note)


def changed(rows: Rows, reference: Rows, seed: int) -> Measurement:
    """Model minus reference over the rows that both have a value for."""
    name = f"{rows.name}_change"
    pairs = [(a, b) for a, b in zip(rows.values, reference.values, strict=True) if a is not None and b is not None]
    if not pairs:
        return unknown(name, "no row has a value on both sides", rows)
    if rows.name in ("utility", "finetune_accuracy") and not any(b for _, b in pairs):
        return unknown(name, "the reference gets no row right, so no loss could show", rows)
    first, second = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    interval = paired(first, second, seed, shares=rows.is_share)
    value = fmean(first) - fmean(second)
    low, high = interval or (None, None)
    if low is not None and high is not None:
        low, high = min(low, value), max(high, value)
    return _measurement(name, value, len(pairs), (low, high), rows, "")


def is_compared(rows: Rows) -> bool:
    """Whether the difference to the reference is a measurement of its own."""
    return rows.name in COMPARED


def unknown(name: str, note: str, rows: Rows | None = None) -> Measurement:
    """A measurement that could not be made, and why."""
    judge, revision, data = (None, None, "") if rows is None else (rows.judge, rows.revision, rows.data)
    kind = KINDS[name]
    return Measurement(name, None, 0, None, None, kind.better, kind.unit, judge, revision, data, note=note)


def _measurement(
    name: str, value: float, n: int, interval: tuple[float | None, float | None], rows: Rows, note: str
) -> Measurement:
    kind = KINDS[name]
    return Measurement(
        name, value, n, *interval, kind.better, kind.unit, rows.judge, rows.revision, rows.data, note=note
    )
