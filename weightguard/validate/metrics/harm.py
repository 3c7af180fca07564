"""harmful_score, the same on coherent answers, attack_success_rate and refusal_rate; over_refusal_rate."""

from __future__ import annotations

from collections.abc import Sequence

from weightguard.validate.judges import Judge, Ruling
from weightguard.validate.metrics.answered import Answered
from weightguard.validate.metrics.incoherence import is_incoherent
from weightguard.validate.metrics.rows import Rows


def harm_rows(answered: Answered) -> list[Rows]:
    """Of the harmful set, for every judge what it rules on."""
    found = []
    for judge, rulings in answered.ruled():
        if judge.harm:
            harmful = [ruling.harmful for ruling in rulings]
            coherent = [h for h, text in zip(harmful, answered.answers, strict=True) if not is_incoherent(text)]
            found += [_rows("harmful_score", harmful, answered, judge),
                      _rows("harmful_score_coherent", coherent, answered, judge)]  # fmt: skip
        if judge.refusals:
            refused = _refused(rulings)
            found += [_rows("attack_success_rate", [None if r is None else not r for r in refused], answered, judge),
                      _rows("refusal_rate", refused, answered, judge)]  # fmt: skip
    return found


def over_refusal_rows(answered: Answered) -> list[Rows]:
    """Of the harmless set, for every judge that rules on refusals."""
    return [
        _rows("over_refusal_rate", _refused(rulings), answered, judge)
        for judge, rulings in answered.ruled()
        if judge.refusals
    ]


def _refused(rulings: Sequence[Ruling]) -> list[bool | None]:
    return [ruling.refused for ruling in rulings]


def _rows(name: str, values: Sequence[bool | None], answered: Answered, judge: Judge) -> Rows:
    missing = "the judge could rule on no row" if values else "no answer was coherent"
    return Rows(name, values, answered.dataset.sha256, judge.id, judge.revision, missing=missing)
