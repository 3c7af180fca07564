"""Greedy answers to prompts: batched, left-padded, length-sorted, with the model's own chat template."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from weightguard.data import Row
from weightguard.data.templates import rendered, template_for
from weightguard.errors import DataError

_UNBOUNDED = 2**31


def prompt_ids(rows: Sequence[Row], tokenizer: Any, source: str) -> list[list[int]]:
    """Token ids of each row's prompt, ready for an answer, in the order of the rows; `source` names them in errors."""
    template = template_for(tokenizer, None)
    texts = [each.prompt for each in rendered(rows, template, source)]
    return [
        list(tokenizer(text, add_special_tokens=template.special_tokens, verbose=False)["input_ids"]) for text in texts
    ]


def context_of(model: Any) -> int:
    """Tokens the model was made for, from its config; very many where it names no number."""
    found = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else _UNBOUNDED


def check_room(
    prompts: Sequence[Sequence[int]], rows: Sequence[Row], model: Any, max_new_tokens: int, source: str
) -> None:
    """Refuse prompts that leave no room for the answer in the model's context. Error: DataError naming the first row."""
    context = context_of(model)
    for ids, row in zip(prompts, rows, strict=True):
        if len(ids) + max_new_tokens > context:
            raise DataError(
                f"{source}: the prompt of row {row.number} has {len(ids)} tokens; with {max_new_tokens} for the answer that "
                f"is more than the model's context of {context}; shorten or remove it, or lower --max-new-tokens"
            )


def greedy_answers(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 64, batch_size: int = 32
) -> Iterator[tuple[int, str]]:
    """(index of the prompt, answer) pairs, batch by batch, shortest prompts first; stop early by not asking for more."""
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    ends = _ends(model, tokenizer)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        with _plain(model, pad, ends):
            answers = _generate(model, [prompts[i] for i in batch], pad, max_new_tokens)
        for index, ids in zip(batch, answers, strict=True):
            yield index, tokenizer.decode(_until(ids, ends), skip_special_tokens=True)


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Every id that ends an answer: the tokenizer's, and those of the model (chat models often have several)."""
    own = getattr(model.generation_config, "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return sorted({i for i in found if isinstance(i, int)})


@contextlib.contextmanager
def _plain(model: Any, pad: int, ends: list[int]) -> Iterator[None]:
    """Without the checkpoint's generation settings: a repetition penalty, say, would also see the padding, and the
    answer to a prompt would depend on what it is batched with."""
    from transformers import GenerationConfig

    holders = [model, *([model.get_base_model()] if hasattr(model, "get_base_model") else [])]
    before = [holder.generation_config for holder in holders]
    for holder in holders:
        holder.generation_config = GenerationConfig(pad_token_id=pad, eos_token_id=ends or None)
    try:
        yield
    finally:
        for holder, config in zip(holders, before, strict=True):
            holder.generation_config = config


def _until(ids: list[int], ends: list[int]) -> list[int]:
    return ids[: next((at for at, i in enumerate(ids) if i in ends), len(ids))]


@torch.inference_mode()
def _generate(model: Any, prompts: Sequence[Sequence[int]], pad: int, limit: int) -> list[list[int]]:
    width = max(len(p) for p in prompts)
    device = model.get_input_embeddings().weight.device
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    out = model.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), do_sample=False, num_beams=1, max_new_tokens=limit
    )
    return [row[width:].tolist() for row in out]
