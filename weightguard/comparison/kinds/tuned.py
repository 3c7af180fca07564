"""Full fine-tuning: most matrices moved a little, with structure above noise and no shape that another kind explains."""

from __future__ import annotations

from weightguard.comparison.case import Case, middle
from weightguard.comparison.finding import Finding, check

NAME = "full fine-tuning"
HALF = ("BF16", "F16")


def look(case: Case) -> Finding | None:
    spectra, samples = list(case.spectra.values()), [c.sample for c in case.linears if c.sample is not None]
    if not spectra or not samples:
        return None
    cosines = sorted(c.cosine or 0.0 for c in case.linears)
    least = 0.15 if case.linears[0].precision in HALF else 0.5  # rounding to few bits swallows small steps
    kurtosis = middle([c.kurtosis for c in case.linears if c.kurtosis is not None])
    parallel = middle([max(s.row_parallel, s.column_parallel) for s in samples])
    full = sum(s.is_full or s.rank > 0.5 * len(s.values) for s in spectra) / len(spectra)
    checks = (
        check("{share} of all linears changed", len(case.linears) / len(case.all_linears), 0.4, 0.9),
        check("{share} of their entries", middle([c.changed_share for c in case.linears]), least, 0.8),
        check("cosine to the base {value} or more", cosines[int(0.05 * len(cosines))], 0.4, 0.95),
        check("leading singular value {value} times noise's", middle([s.over_noise for s in spectra]), 1.2, 1.8),
        check(_ranks(case), full, 0.3, 0.8),
        check("cosine of update and base {value}", middle([abs(c.along_base or 0) for c in case.linears]), 0.8, 0.2),
        check("rows or columns follow W's by {value}", parallel, 0.85, 0.4),
        check("kurtosis {value}", kurtosis, 30, 5),
        check("{share} of the entries became zero", max(c.zeroed / c.entries for c in case.linears), 0.01, 0.0),
    )
    return Finding(NAME, checks, {"relative": middle([c.relative for c in case.linears])})


def _ranks(case: Case) -> str:
    """What is known of the ranks; of a sketch no more than its own size can be seen."""
    sketched = [c for c in case.few_linears if not case.spectra[c.name].exact]
    if not sketched:
        return "{share} of the updates have full rank, or more than half of it"
    seen = [case.spectra[c.name] for c in sketched]
    least, sides = min(s.rank for s in seen), sorted({min(c.shape) for c in sketched})
    of = " or ".join(str(side) for side in sides)
    return (
        f"{{share}} of the updates have a rank that a sketch of {len(seen[0].values)} values does not see the end of, or more "
        f"than half of it: at least {least}, of {of} directions (--spectra sees all)"
    )
