"""The loss of every sample's answer in one batched forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from weightguard.data import Encoded
from weightguard.statistics.forward import batches, padded

BATCH_TOKENS = 1024  # each costs a row of logits, as long as the vocabulary


@torch.inference_mode()
def answer_losses(model: Any, rows: Sequence[Encoded], batch_tokens: int = BATCH_TOKENS) -> torch.Tensor:
    """Mean cross entropy over each row's counted tokens, each predicted from what stands before it: float64 (rows,).

    In the order of the rows; every row must have such a token.
    """
    device = model.get_input_embeddings().weight.device
    place = {id(row): at for at, row in enumerate(rows)}
    losses = torch.empty(len(rows), dtype=torch.float64)
    for batch in batches(rows, batch_tokens):
        ids, attention, counted = padded(batch, device)
        positions = torch.arange(ids.shape[1], device=device).expand_as(ids)
        logits = model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False).logits[:, :-1]
        each = -torch.log_softmax(logits.float(), -1).gather(-1, ids[:, 1:, None])[..., 0].double()
        wanted = counted[:, 1:]
        found = torch.where(wanted, each, 0).sum(1) / wanted.sum(1)
        losses[[place[id(row)] for row in batch]] = found.cpu()
    return losses
