"""Where SaLoRA begins: the directions of safety and of task, and factors of the weight between them, all in float64."""

from __future__ import annotations

import torch

from weightguard.errors import UsageError
from weightguard.statistics.grams import spectrum, with_fixed_signs

Facts = dict[str, float]
NOTHING = 1e-13  # of the largest eigenvalue of a Gram matrix: below it there is only the rounding of float64


def start_of(
    name: str, weight: torch.Tensor, safety: torch.Tensor, task: torch.Tensor, ranks: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Facts]:
    """(V_s, C B0, A0, facts) of a weight (out, in) with Grams (in, in) of safety and task data; ranks (r_s, r_t, r)."""
    _check(name, weight, ranks)
    r_s, r_t, rank = ranks
    values, vectors = spectrum(weight, safety)
    v_s, v_t = vectors[:, :r_s].contiguous(), spectrum(weight, task)[1][:, :r_t]
    u, root, q = _root_factors(weight.double(), rank)
    begun = v_t @ (v_t.T @ (u * root))
    b, a = begun - v_s @ (v_s.T @ begun), root[:, None] * q.T
    return v_s, b, a, _facts(values, r_s, v_s, v_t, (begun @ a).norm(), (b @ a).norm())


def _check(name: str, weight: torch.Tensor, ranks: tuple[int, int, int]) -> None:
    most = min(weight.shape)
    for flag, rank in zip(("--safety-rank", "--task-rank", "--lora r"), ranks, strict=True):
        if not 0 < rank <= most:
            raise UsageError(f"{flag} {rank}: tensor {name!r} is {list(weight.shape)}, so it must be 1 to {most}")
    if ranks[0] == weight.shape[0]:
        raise UsageError(
            f"--safety-rank {ranks[0]}: takes all {ranks[0]} outputs of tensor {name!r}; nothing could learn"
        )


def _root_factors(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U (out, r), √S (r,) and Q (in, r) of the best approximation of rank r, from the Gram matrix of the shorter side."""
    wide = weight.shape[0] <= weight.shape[1]
    short = weight if wide else weight.T
    values, vectors = torch.linalg.eigh(short @ short.T)
    u = with_fixed_signs(vectors.flip(1)[:, :rank])
    s = values.flip(0)[:rank].clamp(min=0).sqrt()
    q = short.T @ u / torch.where(s > 0, s, 1)
    return (u, s.sqrt(), q) if wide else (q, s.sqrt(), u)


def _facts(
    values: torch.Tensor, r_s: int, v_s: torch.Tensor, v_t: torch.Tensor, before: torch.Tensor, after: torch.Tensor
) -> Facts:
    """spanned: output directions that the safety data reach at all; what V_s holds beyond them is arbitrary.

    spectral_gap: 1 − λ_(r_s+1)/λ_(r_s), 0 where the cut falls among equals or the data span fewer directions.

    safety_energy: share of ‖X_s Wᵀ‖² that V_s holds. Angles in degrees between V_s and V_t, principal ones.
    initialisation_kept: ‖C B0 A0‖/‖B0 A0‖; near 0, task and safety use the same directions and C wipes out the start.
    """
    cosines = torch.linalg.svdvals(v_s.T @ v_t).clamp(0, 1)
    angles = torch.rad2deg(torch.acos(cosines))
    last, following = float(values[r_s - 1]), float(values[r_s]) if r_s < len(values) else 0.0
    spanned = int((values > NOTHING * values[0]).sum())
    return {
        "spanned": float(spanned),
        "spectral_gap": 1 - following / last if spanned >= r_s else 0.0,
        "safety_energy": float(values[:r_s].sum() / values.sum()) if spanned else 1.0,
        "smallest_angle": float(angles.min()),
        "mean_angle": float(angles.mean()),
        "initialisation_kept": float(after / before) if before else 0.0,
    }
