"""Rows into token ids, and the positions of each row that count.

Token set `all`: template, prompt and response. `response`: the response only, found as what follows the longest
common prefix of the ids of the prompt (with the generation prompt) and of the whole conversation.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightguard.data.formats import printable
from weightguard.data.pretokenised import read_arrays
from weightguard.data.rows import Dataset
from weightguard.data.shapes import Row
from weightguard.data.templates import Rendered, Template, plain_text, rendered, template_for
from weightguard.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np

TOKEN_SETS = ("all", "response")


@dataclass(frozen=True, eq=False)
class Encoded:
    """ids: int64 (T,), T >= 1, no padding. counted: bool (T,), the positions whose input counts.

    number: line or row in the file, as in Row. Under `response` a row without one counts nowhere.
    """

    ids: np.ndarray
    counted: np.ndarray
    number: int


@dataclass(frozen=True, eq=False)
class EncodedSet:
    """Encoded rows in the order of their data set, one for each of its rows, and what a manifest records of them.

    template: "chat", "alpaca", "none" (text rows only) or "pretokenised"; template_sha256 is "" for the last two.
    truncated: rows cut at max_length (their left part is kept). without_response: rows that have none.
    """

    rows: tuple[Encoded, ...]
    template: str
    template_sha256: str
    tokens: str
    counted_tokens: int
    total_tokens: int
    truncated: int
    without_response: int
    source: str
    sha256: str


def encode(
    dataset: Dataset, tokenizer: Any, *, tokens: str = "all", max_length: int = 2048, template: str | None = None
) -> EncodedSet:
    """Tokenise every row with a transformers tokenizer.

    template: None takes the tokenizer's chat template, or Alpaca where it has none; "chat" or "alpaca" insists.

    Raises UsageError: unknown token set or template, max_length below 1. DataError: a template that refuses a row
    (named), a row without any token, no countable token at all.
    """
    _check_options(tokens, max_length)
    chosen = template_for(tokenizer, template)
    texts = rendered(dataset.rows, chosen, dataset.source)
    pairs = [
        _encode_row(row, text, dataset.source, tokenizer, chosen) for row, text in zip(dataset.rows, texts, strict=True)
    ]
    rows = tuple(
        _counting(ids, start, row.number, tokens, max_length)
        for row, (ids, start) in zip(dataset.rows, pairs, strict=True)
    )
    used = plain_text() if all(row.text is not None for row in dataset.rows) else chosen
    return _encoded_set(
        rows,
        tokens,
        template=used.name,
        template_sha256=used.sha256,
        truncated=sum(len(ids) > max_length for ids, _ in pairs),
        without_response=sum(start is None for _, start in pairs),
        source=dataset.source,
        sha256=dataset.sha256,
    )


def read_pretokenised(path: str, *, tokens: str = "all") -> EncodedSet:
    """A .safetensors of `input_ids` (N, T), `attention_mask` (N, T) and, for `response`, `labels` (N, T), integers.

    Padding, left or right, is stripped by the mask; `response` counts the positions whose label is not -100.

    Raises DataError: missing or misshapen arrays, a hole in a mask, a row without tokens, nothing countable.
    """
    import numpy as np

    _check_options(tokens, 1)
    arrays = read_arrays(path, need_labels=tokens == "response")
    everywhere: list[np.ndarray] = [np.ones(len(ids), dtype=bool) for ids in arrays.ids]
    answers = arrays.answers or everywhere
    counted = answers if tokens == "response" else everywhere
    return _encoded_set(
        tuple(Encoded(ids, mask, at) for at, (ids, mask) in enumerate(zip(arrays.ids, counted, strict=True), 1)),
        tokens,
        template="pretokenised",
        template_sha256="",
        truncated=0,
        without_response=sum(not answer.any() for answer in answers),
        source=printable(os.path.basename(path)),
        sha256=arrays.sha256,
    )


def check_vocabulary(encoded_set: EncodedSet, vocab_size: int) -> None:
    """Raises DataError naming row and id where an id has no row in the model's embedding of `vocab_size` rows."""
    for row in encoded_set.rows:
        outside = row.ids[(row.ids < 0) | (row.ids >= vocab_size)]
        if outside.size:
            place = "below 0" if outside[0] < 0 else f"beyond the model's vocabulary of {vocab_size}"
            raise DataError(
                f"{encoded_set.source}: token id {outside[0]} in row {row.number} is {place}; "
                "tokenise with the tokenizer of this model"
            )


def _check_options(tokens: str, max_length: int) -> None:
    if tokens not in TOKEN_SETS:
        raise UsageError(f"token set {tokens!r} is unknown; give {' or '.join(TOKEN_SETS)}")
    if max_length < 1:
        raise UsageError(f"max_length is {max_length}; give 1 or more")


def _encoded_set(rows: tuple[Encoded, ...], tokens: str, *, source: str, **facts: Any) -> EncodedSet:
    counted = sum(int(row.counted.sum()) for row in rows)
    if not counted:
        why = "no row has a response" if tokens == "response" else "no rows"
        raise DataError(
            f"{source}: data with no countable token ({why} within the length limit); give rows that have one"
        )
    total = sum(len(row.ids) for row in rows)
    return EncodedSet(rows, tokens=tokens, counted_tokens=counted, total_tokens=total, source=source, **facts)


def _encode_row(
    row: Row, text: Rendered, source: str, tokenizer: Any, template: Template
) -> tuple[list[int], int | None]:
    """All ids of a row, and where its response begins (None where it has none)."""
    own = plain_text() if row.text is not None else template
    prompt = _ids(tokenizer, text.prompt, own.special_tokens)
    full = prompt if text.full is None else _ids(tokenizer, text.full, own.special_tokens)
    if not full:
        raise DataError(f"{source}, row {row.number}: the tokenizer makes no token of it; remove the row")
    if text.full is None:
        return full, None
    start = _common_prefix(prompt, full)
    return (_ended(full, tokenizer) if own.special_tokens else full), start


def _ids(tokenizer: Any, text: str, special_tokens: bool) -> list[int]:
    # verbose off: rows longer than the model are cut and counted here, a warning for each says nothing more
    return list(tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"])


def _ended(ids: list[int], tokenizer: Any) -> list[int]:
    """With the end of sequence, which a chat template writes itself and Alpaca does not."""
    end = getattr(tokenizer, "eos_token_id", None)
    return ids if end is None or ids[-1] == end else [*ids, end]


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(left), len(right)))


def _counting(ids: list[int], start: int | None, number: int, tokens: str, max_length: int) -> Encoded:
    import numpy as np

    kept = np.array(ids[:max_length], dtype=np.int64)
    first = 0 if tokens == "all" else len(kept) if start is None else start
    return Encoded(kept, np.arange(len(kept)) >= first, number)
