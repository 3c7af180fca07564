"""Hidden states at the last prompt token, layer by layer, and the refusal direction in them (arXiv:2406.11717)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Progress = Callable[[int, int], None]
BATCH = 32


@dataclass(frozen=True)
class LayerView:
    """After one layer (0: the embedding). Scores are projections on the direction harmful minus benign, mean to mean.

    The direction comes from every second row and the scores from the others, and the other way round: nothing is scored
    by a direction it helped to find. separation: difference of the mean scores over their common standard deviation.
    auc: probability that a harmful prompt scores above a benign one; overlap: 2·min(auc, 1 − auc), 1 where they are mixed.
    cosine: of the direction (from all rows) to the base's, None where either has none. drift: mean ‖h − h_base‖/‖h_base‖ by data.
    """

    layer: int
    separation: float
    auc: float
    cosine: float | None = None
    drift_harmful: float | None = None
    drift_benign: float | None = None

    @property
    def overlap(self) -> float:
        return 2 * min(self.auc, 1 - self.auc)


@torch.inference_mode()
def last_states(model: Any, prompts: Sequence[Sequence[int]], progress: Progress) -> torch.Tensor:
    """(layers + 1, prompts, hidden) float32: the residual stream at the last token of every prompt."""
    inner = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
    device = model.get_input_embeddings().weight.device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, torch.Tensor] = {}
    for at in range(0, len(order), BATCH):
        batch = order[at : at + BATCH]
        states = _states(inner, [prompts[i] for i in batch], device)
        found |= {index: states[:, row] for row, index in enumerate(batch)}
        progress(min(at + BATCH, len(order)), len(order))
    return torch.stack([found[i] for i in range(len(prompts))], dim=1)


def _states(inner: Any, prompts: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    width = max(len(p) for p in prompts)
    ids, mask = (torch.zeros(len(prompts), width, dtype=torch.int64) for _ in range(2))
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = torch.tensor(prompt)
        mask[i, : len(prompt)] = 1
    positions = torch.arange(width).expand_as(ids)
    out = inner(input_ids=ids.to(device), attention_mask=mask.to(device), position_ids=positions.to(device),
                use_cache=False, output_hidden_states=True)  # fmt: skip
    last, rows = mask.sum(1) - 1, torch.arange(len(prompts))
    return torch.stack([layer.float().cpu()[rows, last] for layer in out.hidden_states])


def views(
    harmful: torch.Tensor, benign: torch.Tensor, base: tuple[torch.Tensor, torch.Tensor] | None = None
) -> list[LayerView]:
    """One view a layer from states (layers + 1, prompts, hidden), with the base's on the same prompts where given."""
    found = []
    for layer, (h, b) in enumerate(zip(harmful.double(), benign.double(), strict=True)):
        good, bad = _crossed(h, b)
        spread = ((good.var() + bad.var()) / 2).sqrt()
        separation = float((bad.mean() - good.mean()) / spread) if spread > 0 else 0.0
        more = () if base is None else _against(h, b, base[0][layer].double(), base[1][layer].double())
        found.append(LayerView(layer, separation, _auc(bad, good), *more))
    return found


def direction(harmful: torch.Tensor, benign: torch.Tensor) -> torch.Tensor:
    """Mean of harmful less mean of benign states (prompts, hidden), unit length; zero where they agree."""
    difference = harmful.mean(0) - benign.mean(0)
    return difference / difference.norm().clamp(min=1e-300)


def _crossed(harmful: torch.Tensor, benign: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores of benign, scores of harmful), each half scored by the direction of the other."""
    scores: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for half in (0, 1):
        along = direction(harmful[1 - half :: 2], benign[1 - half :: 2])
        middle = (harmful[1 - half :: 2].mean(0) + benign[1 - half :: 2].mean(0)) @ along / 2
        scores[0].append(benign[half::2] @ along - middle)
        scores[1].append(harmful[half::2] @ along - middle)
    return torch.cat(scores[0]), torch.cat(scores[1])


def _auc(above: torch.Tensor, below: torch.Tensor) -> float:
    """Mann and Whitney's: ties count half."""
    wins = (above[:, None] > below).double() + 0.5 * (above[:, None] == below).double()
    return float(wins.mean())


def _against(
    harmful: torch.Tensor, benign: torch.Tensor, base_harmful: torch.Tensor, base_benign: torch.Tensor
) -> tuple[float | None, float, float]:
    ours, theirs = direction(harmful, benign), direction(base_harmful, base_benign)
    exist = bool(ours.any()) and bool(theirs.any())  # at layer 0 all prompts end in the same token
    return float(ours @ theirs) if exist else None, _drift(harmful, base_harmful), _drift(benign, base_benign)


def _drift(states: torch.Tensor, base: torch.Tensor) -> float:
    return float(((states - base).norm(dim=1) / base.norm(dim=1).clamp(min=1e-300)).mean())
