"""Abliteration (arXiv:2406.11717): one direction of the residual stream is gone from the matrices that write to it."""

from __future__ import annotations

from collections.abc import Mapping

from weightguard.comparison.case import Case, middle
from weightguard.comparison.finding import Finding, check
from weightguard.statistics.removal import Removed

NAME = "abliteration"
LEAST = 0.05  # share of the direction that is gone


def look(case: Case) -> Finding | None:
    common = common_loss(case)
    if common is None:
        return None
    leading = [case.spectra[c.name].captured(1) for c in case.writers if c.name in case.spectra]
    if common.holds or middle(leading) < 0.5:  # no direction of its own can be all of an update that has several
        return common
    own = _finding(case, case.own_removals, "a direction of its own for each")
    # A direction of its own is weaker evidence: it must be all of the update, and in several matrices.
    whole = middle([r.explained for r in case.own_removals.values()])
    sure = (*own.checks, check("which is {share} of their update", whole, 0.8, 1.0))
    sure = (*sure, check("in {value} matrices", len(case.own_removals), 3, 6))
    roles = list(dict.fromkeys(c.role for c in case.writers))
    stricter = Finding(NAME, sure, {**own.details, "roles": roles})
    return stricter if stricter.holds else common


def common_loss(case: Case) -> Finding | None:
    """One direction for all matrices; None where fewer than two that write to the residual stream changed."""
    if len(case.writers) < 2:
        return None
    return _finding(case, case.removals, "one direction for all of them")


def _finding(case: Case, found: Mapping[str, Removed], how: str) -> Finding:
    gone = [r for r in found.values() if r.coherence > 0.8 and r.share > max(LEAST, 3 * r.everywhere)]
    seen = gone or list(found.values())
    explained = middle([r.explained for r in seen])
    checks = (
        check("as a whole they lost {share} of themselves", middle([r.everywhere for r in seen]), 0.3, 0.1),
        check("{share} of the changed o and down lost a direction", len(gone) / max(1, len(found)), 0.6, 0.9),
        check("in {value} matrices", len(gone), 1.5, 4),
        check("the loss is W's own component, cosine {value}", middle([r.coherence for r in seen]), 0.85, 0.98),
        check("{share} of it is gone", middle([r.share for r in seen]), LEAST, 0.3),
        check("the update there is {value} times its mean", middle([r.stands_out for r in seen]), 4, 20),
        check(
            "an ordinary direction of the base ({value} times the mean)", middle([r.ordinary for r in seen]), 0.02, 0.5
        ),
    )
    strength = middle([r.share for r in seen])
    later = "nothing else changed in them" if explained > 0.98 else "with other changes on top, as of fine-tuning"
    return Finding(NAME, checks, {"direction": how, "strength": strength, "explained": explained, "rest": later})
