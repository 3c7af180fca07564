"""A merged LoRA: matrices changed by updates of one small rank, above the floor that rounding leaves."""

from __future__ import annotations

from collections import Counter

from weightguard.comparison.case import Case, middle
from weightguard.comparison.finding import Check, Finding, check

NAME = "LoRA merge"


def look(case: Case) -> Finding | None:
    found = list(case.spectra.values())
    if not found:
        return None
    rank = Counter(s.rank for s in found).most_common(1)[0][0]
    near = [s for s in found if abs(s.rank - rank) <= max(1, 0.1 * rank)]
    vectors = [c for c in case.changed if not c.is_matrix]
    checks = (
        check("{share} of the changed linears have an update of one rank", len(near) / len(found), 0.7, 1.0),
        check("it is {share} of the directions seen", middle([rank / len(s.values) for s in found]), 0.55, 0.2),
        check(f"rank {rank} holds {{share}} of the update", middle([s.captured(rank) for s in found]), 0.4, 0.95),
        check("cosine of update and base {value}", middle([abs(c.along_base or 0) for c in case.linears]), 0.15, 0.0),
        check("{value} changed tensors are norms or biases", len(vectors), 0.5, 0.0),
        check("rank at least {value}", rank, 0.5, 1.0),
        check("{share} of their entries changed", middle([c.changed_share for c in case.linears]), 0.01, 0.2),
        check("kurtosis {value}", middle([c.kurtosis or 0.0 for c in case.linears]), 200, 10),
        _reach(case, rank),
    )
    others = sorted({c.role for c in case.changed if c.is_matrix} - {c.role for c in case.linears})
    details = {
        "rank": rank, "target_modules": list(dict.fromkeys(c.role for c in case.linears)),
        "layers": len({c.layer for c in case.linears}), "also_changed": others,
        "alpha": _alpha(case),
    }  # fmt: skip
    return Finding(NAME, checks, details)


def _reach(case: Case, rank: int) -> Check:
    """Facts written one by one (arXiv:2210.07229) are updates of low rank too, of one role and in a few layers."""
    if case.is_adapter:
        return Check("it lies apart from its base, as an adapter", 1.0)
    roles = {c.role for c in case.linears}
    layers, all_layers = ({c.layer for c in some if c.role in roles} for some in (case.linears, case.all_linears))
    said = f"rank {rank} in {len(roles)} matrices a layer, in {len(layers)} of {len(all_layers)} layers"
    if len(roles) > 1:
        return Check(said, 1.0)
    if rank > 1 and layers == all_layers:
        return Check(said, 0.5)
    return Check(f"{said}, which facts written one by one leave as well", -0.5)


def _alpha(case: Case) -> str:
    """Known of an adapter; of a merged one it is lost."""
    scales = sorted({pair.scaling for pair in case.model.pairs.values()})
    if case.is_adapter:
        return f"the adapter scales by {', '.join(f'{s:g}' for s in scales)}"
    return "cannot be read off s*B*A: every alpha fits, with B scaled"
