"""Rows of --safety that have a prompt only: the model's own greedy answer becomes theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightguard.data import Dataset, Row

MAX_NEW_TOKENS = 64


def with_answers(dataset: Dataset, model: Any, tokenizer: Any, progress: Callable[[int, int], None]) -> Dataset:
    """The data set with an answer in every row; plain text rows, which ask nothing, stay as they are."""
    from weightguard.validate.generation import greedy_answers, prompt_ids

    lacking = [at for at, row in enumerate(dataset.rows) if row.response is None and row.text is None]
    if not lacking:
        return dataset
    prompts = prompt_ids([dataset.rows[at] for at in lacking], tokenizer, dataset.source)
    rows = list(dataset.rows)
    found = greedy_answers(model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS)
    for done, (index, answer) in enumerate(found, 1):
        rows[lacking[index]] = _answered(rows[lacking[index]], answer)
        progress(done, len(lacking))
    note = f"{len(lacking)} rows of {dataset.source} had no answer and got the model's own greedy one"
    return dataclasses.replace(dataset, rows=tuple(rows), notes=(*dataset.notes, note))


def _answered(row: Row, answer: str) -> Row:
    if row.messages is None:
        return dataclasses.replace(row, response=answer)
    before = row.messages[:-1] if row.messages[-1]["role"] == "assistant" else row.messages
    return dataclasses.replace(row, response=answer, messages=(*before, {"role": "assistant", "content": answer}))
