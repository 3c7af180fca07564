"""Teacher-forced passes: answers are given, and the model is asked how likely they are, or what it makes of them.

All of it per row, float64 over tokens, in the order of the rows: harmful_loss and alignment_loss (mean negative log
likelihood of the answer's tokens), kl_divergence (KL(reference || model) at the same places) and embedding_drift
(arXiv:2409.18169: L2 distance of what leaves the attention blocks, mean over the row's tokens and over layers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from weightguard.checkpoint import family_of, match_linears
from weightguard.data import Dataset, Encoded, encode
from weightguard.errors import UnsupportedError
from weightguard.statistics.forward import batches, padded

BATCH_TOKENS = 1024  # logits of a large vocabulary are what fills memory
Progress = Callable[[int, int], None]


def encoded_answers(dataset: Dataset, answers: Sequence[str | None], tokenizer: Any, max_length: int) -> list[Encoded]:
    """The rows that have an answer, each with that answer after its prompt; `counted` marks the answer's tokens."""
    pairs = zip(dataset.rows, answers, strict=True)
    rows = [_with_answer(row, answer) for row, answer in pairs if answer and answer.strip()]
    if not rows:
        return []
    found = encode(replace(dataset, rows=tuple(rows)), tokenizer, tokens="response", max_length=max_length).rows
    return [row for row in found if row.counted[1:].any()]


def _with_answer(row: Any, answer: str) -> Any:
    """The row with this answer, as a prompt of its own or at the end of its conversation."""
    if row.messages is None:
        return replace(row, response=answer, text=None)
    before = row.messages[:-1] if row.messages[-1]["role"] == "assistant" else row.messages
    return replace(row, response=answer, messages=(*before, {"role": "assistant", "content": answer}))


def losses(model: Any, rows: Sequence[Encoded], progress: Progress) -> list[float]:
    """Nats per answer token of each row."""

    def of_batch(ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        logits = _logits(model, ids, attention)[:, :-1]
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")

    return _per_row(model, rows, of_batch, progress)


def divergences(model: Any, reference: Any, rows: Sequence[Encoded], progress: Progress) -> list[float]:
    """KL(reference || model) in nats per answer token of each row. The two share one vocabulary."""

    def of_batch(ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        ours, theirs = (_logits(m, ids, attention)[:, :-1].log_softmax(-1) for m in (model, reference))
        return (theirs.exp() * (theirs - ours)).sum(-1).clamp_min(0)  # rounding may leave a little below 0

    return _per_row(model, rows, of_batch, progress)


def drifts(model: Any, reference: Any, config: dict, rows: Sequence[Encoded], progress: Progress) -> list[float]:
    """Distance per token of each row. Error: UnsupportedError for an architecture or a shape that does not compare."""
    found: dict[int, float] = {}
    for at, batch in _batches(rows):
        ids, attention, _ = padded(batch, _device(model))
        ours, theirs = (_behind_attention(m, config, ids, attention) for m in (model, reference))
        if [o.shape for o in ours] != [t.shape for t in theirs]:
            raise UnsupportedError("the reference has other layers or widths; its hidden states do not compare")
        distance = sum((o.double() - t.double()).norm(dim=-1) for o, t in zip(ours, theirs, strict=True)) / len(ours)
        mask = attention.double()
        means = (distance * mask).sum(1) / mask.sum(1)
        found |= dict(zip(at, means.tolist(), strict=True))
        progress(len(found), len(rows))
    return [found[i] for i in range(len(rows))]


def _per_row(
    model: Any,
    rows: Sequence[Encoded],
    of_batch: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    progress: Progress,
) -> list[float]:
    """Mean over the answer's tokens of a (rows, tokens - 1) array, where column t tells of token t + 1."""
    found: dict[int, float] = {}
    for at, batch in _batches(rows):
        ids, attention, counted = padded(batch, _device(model))
        with torch.inference_mode():
            values = of_batch(ids, attention).double()
        marked = counted[:, 1:].double()
        means = (values * marked).sum(1) / marked.sum(1)
        found |= dict(zip(at, means.tolist(), strict=True))
        progress(len(found), len(rows))
    return [found[i] for i in range(len(rows))]


def _batches(rows: Sequence[Encoded]) -> Iterator[tuple[list[int], list[Encoded]]]:
    """(places in `rows`, rows) of similar length."""
    places = {id(row): at for at, row in enumerate(rows)}
    for batch in batches(rows, BATCH_TOKENS):
        yield [places[id(row)] for row in batch], batch


def _logits(model: Any, ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False).logits.float()


@torch.inference_mode()
def _behind_attention(model: Any, config: dict, ids: torch.Tensor, attention: torch.Tensor) -> list[torch.Tensor]:
    """What the output projection of each layer's attention gives, (rows, tokens, hidden) a layer."""
    taken: list[torch.Tensor] = []
    modules = dict(model.named_modules())
    outputs = [modules[p] for p, linear in match_linears(family_of(config), modules).items() if linear.role == "o"]
    handles = [module.register_forward_hook(lambda _m, _i, out: taken.append(out)) for module in outputs]
    try:
        _logits(model, ids, attention)
    finally:
        for handle in handles:
            handle.remove()
    return taken


def _device(model: Any) -> torch.device:
    return model.get_input_embeddings().weight.device
