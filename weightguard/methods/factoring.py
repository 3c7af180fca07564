"""A change of a linear cut to its leading singular directions, as the factors of an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from weightguard.plan import LowRank


def factored(name: str, moved: torch.Tensor, rank: int) -> tuple[LowRank, torch.Tensor, dict[str, Any]]:
    """B·A, float32, the `rank` leading directions of a change (out, in), float64, or as many as there are.

    Also their product in float64, and how much of the change's energy (squared Frobenius norm) they hold.
    """
    import torch

    from weightguard.plan import LowRank

    u, s, v = torch.linalg.svd(moved, full_matrices=False)
    root = s[:rank].sqrt()
    left, right = (u[:, :rank] * root).float(), (root[:, None] * v[:rank]).float()
    said = {"rank": len(root), "energy": float(s.square().sum()), "energy_kept": float(s[:rank].square().sum())}
    return LowRank(name, left.numpy(), right.numpy()), left.double() @ right.double(), said


def lost(evidence: Mapping[str, Mapping[str, Any]], rank: int) -> tuple[str, ...]:
    """What an adapter of this rank leaves out of the changes, for the notes of a plan."""
    whole, kept = (sum(said[key] for said in evidence.values()) for key in ("energy", "energy_kept"))
    shares = {name: 1 - said["energy_kept"] / said["energy"] for name, said in evidence.items() if said["energy"]}
    worst = max(shares, key=lambda name: shares[name], default="")
    most = f", most of {worst}: {shares[worst]:.2%}" if worst else ""
    held = max((said["rank"] for said in evidence.values()), default=rank)
    limited = (f"--rank {rank}: no change has more than {held} directions, so the adapter has rank {held}",)
    cut = f"rank {held} leaves out {1 - kept / whole if whole else 0:.2%} of the change's energy{most}"
    return (*(limited if held < rank else ()), cut)
