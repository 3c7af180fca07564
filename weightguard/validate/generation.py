"""Greedy answers to prompts: batched, left-padded, length-sorted, with the model's own chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from weightguard.data import Row
from weightguard.data.templates import template_for

Progress = Callable[[int, int], None]


def prompt_ids(rows: Sequence[Row], tokenizer: Any, source: str) -> list[list[int]]:
    """Token ids of each row's prompt, ready for an answer, in the order of the rows; `source` names them in errors."""
    template = template_for(tokenizer, None)
    texts = [template.render(row, f"{source}: row {row.number}").prompt for row in rows]
    return [list(tokenizer(text, add_special_tokens=template.special_tokens)["input_ids"]) for text in texts]


def greedy_answers(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 64, batch_size: int = 32
) -> Iterator[tuple[int, str]]:
    """(index of the prompt, answer) pairs, batch by batch, shortest prompts first; stop early by not asking for more."""
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        answers = _generate(model, [prompts[i] for i in batch], pad, tokenizer.eos_token_id, max_new_tokens)
        for index, ids in zip(batch, answers, strict=True):
            yield index, tokenizer.decode(ids, skip_special_tokens=True)


@torch.inference_mode()
def _generate(model: Any, prompts: Sequence[Sequence[int]], pad: int, end: int | None, limit: int) -> list[list[int]]:
    width = max(len(p) for p in prompts)
    device = model.get_input_embeddings().weight.device
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    out = model.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), do_sample=False, num_beams=1, temperature=None,
        top_p=None, top_k=None, max_new_tokens=limit, pad_token_id=pad, eos_token_id=end,
    )  # fmt: skip
    return [row[width:].tolist() for row in out]
