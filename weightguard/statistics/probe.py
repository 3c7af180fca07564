"""A linear probe: can harmful prompts be told from benign ones in the model's last hidden states?

Least squares with a ridge on states that were centred and scaled, in float64 and in closed form: nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from weightguard.data import Encoded
from weightguard.statistics.forward import Progress, batches, padded

RIDGE = 1e-2  # times the number of samples, on states scaled to unit variance


@torch.inference_mode()
def last_states(model: Any, rows: Sequence[Encoded], progress: Progress, batch_tokens: int = 4096) -> torch.Tensor:
    """State of each row's last token after the decoder: float64 (rows, hidden), in the order of the rows."""
    device = model.get_input_embeddings().weight.device
    place = {id(row): at for at, row in enumerate(rows)}
    found: dict[int, torch.Tensor] = {}
    for batch in batches(rows, batch_tokens):
        ids, attention, _ = padded(batch, device)
        positions = torch.arange(ids.shape[1], device=device).expand_as(ids)
        states = model.base_model(
            input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False
        ).last_hidden_state
        for at, row in enumerate(batch):
            found[place[id(row)]] = states[at, len(row.ids) - 1].double().cpu()
        progress(len(found), len(rows))
    return torch.stack([found[at] for at in range(len(rows))])


@dataclass(frozen=True, eq=False)
class Probe:
    """score(x) = ((x − mean)/scale)·weight, above 0 for harmful; float64 (hidden,)."""

    mean: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor

    def accuracy(self, harmful: torch.Tensor, benign: torch.Tensor) -> float:
        """Mean of the shares that are told right in either class, 0.5 for a coin; states (n, hidden)."""
        right = (self._score(harmful) > 0).double().mean() + (self._score(benign) < 0).double().mean()
        return float(right) / 2

    def _score(self, states: torch.Tensor) -> torch.Tensor:
        return ((states - self.mean) / self.scale) @ self.weight


def fit_probe(harmful: torch.Tensor, benign: torch.Tensor) -> Probe:
    """Classes weigh the same whatever their sizes. States (n, hidden), float64."""
    mean = (harmful.mean(0) + benign.mean(0)) / 2
    spread = (((harmful - mean) ** 2).mean(0) + ((benign - mean) ** 2).mean(0)) / 2
    scale = spread.sqrt().clamp(min=1e-12)
    x, y = ((each - mean) / scale for each in (harmful, benign))
    gram = x.T @ x / len(x) + y.T @ y / len(y)
    gram += 2 * RIDGE * torch.eye(len(mean), dtype=gram.dtype)
    return Probe(mean, scale, torch.linalg.solve(gram, x.mean(0) - y.mean(0)))
