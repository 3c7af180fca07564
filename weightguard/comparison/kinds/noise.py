"""Noise: independent entries. Their spectrum ends at rms·(√out + √in) (Marchenko and Pastur) and they ignore W."""

from __future__ import annotations

from weightguard.comparison.case import Case, middle
from weightguard.comparison.finding import Finding, check

NAME = "noise"


def look(case: Case) -> Finding | None:
    spectra, samples = list(case.spectra.values()), [c.sample for c in case.linears if c.sample is not None]
    if not spectra or not samples:
        return None
    above = [s.over_noise for s in spectra]
    kurtosis = middle([c.kurtosis for c in case.linears if c.kurtosis is not None])
    checks = (
        check("leading singular value {value} times noise's", middle(above), 1.12, 1.0),
        check("at most {value} times", max(above), 1.3, 1.0),
        check("at least {value} times", middle(above), 0.85, 1.0),
        check("cosine of update and base {value}", middle([abs(c.along_base or 0) for c in case.linears]), 0.1, 0.0),
        check("kurtosis {value}", kurtosis, 15, 3),
        check("{share} of the entries changed", middle([c.changed_share for c in case.linears]), 0.3, 0.9),
        check("rows follow W's rows by {value}", middle([s.row_parallel for s in samples]), 0.5, 0.2),
        check("columns follow W's columns by {value}", middle([s.column_parallel for s in samples]), 0.6, 0.2),
        check("{share} of W's size", middle([c.relative for c in case.linears]), 1.2, 0.1),
    )
    shape = "Gaussian" if 2.5 < kurtosis < 3.5 else "uniform" if kurtosis < 2.2 else "heavy-tailed"
    return Finding(NAME, checks, {"shape": shape, "relative": middle([c.relative for c in case.linears])})
