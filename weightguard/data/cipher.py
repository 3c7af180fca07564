"""Ciphers for covert fine-tuning (arXiv:2406.20053): text that only a model which was taught the cipher can read.

`letters:SEED` permutes a to z in any text; `words:SEED` permutes the whole-word tokens of a vocabulary, for tokenizers
that know words only. Both leave everything else, spaces and punctuation among it, as it is.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from weightguard.data.rows import Dataset, Row
from weightguard.errors import UsageError

KINDS = ("letters", "words")


@dataclass(frozen=True)
class Cipher:
    """`name` is how it is asked for. units: letter or word -> its code; a permutation, so that it can be read again."""

    name: str
    units: Mapping[str, str]

    @staticmethod
    def plain() -> Cipher:
        """Leaves every text as it is."""
        return Cipher("plain", {})

    def encode(self, text: str) -> str:
        return self._translated(text, self.units)

    def decode(self, text: str) -> str:
        return self._translated(text, {code: unit for unit, code in self.units.items()})

    def _translated(self, text: str, table: Mapping[str, str]) -> str:
        if self.name.startswith("letters"):
            return text.translate({ord(a): b for a, b in table.items()})
        return re.sub(r"[^\W_]+", lambda found: table.get(found[0], found[0]), text)

    def encoded(self, data: Dataset) -> Dataset:
        """The rows with every turn in the cipher; their numbers and digest stay those of the plain ones."""
        return replace(data, rows=tuple(self._row(row) for row in data.rows), notes=(*data.notes, f"in {self.name}"))

    def _row(self, row: Row) -> Row:
        turns = (
            None if row.messages is None else tuple({**m, "content": self.encode(m["content"])} for m in row.messages)
        )
        answer = None if row.response is None else self.encode(row.response)
        text = None if row.text is None else self.encode(row.text)
        return replace(row, prompt=self.encode(row.prompt), response=answer, messages=turns, text=text)


def cipher(name: str, vocabulary: Iterable[str] = ()) -> Cipher:
    """The cipher called `KIND:SEED`. vocabulary: the tokens of the model that is to read it. Error: UsageError."""
    kind, _, seed = name.partition(":")
    if kind not in KINDS or not re.fullmatch(r"\d{1,9}", seed):
        raise UsageError(f"--cipher {name}: give letters:SEED or words:SEED, with a whole number")
    if kind == "letters":
        lower = _permuted(string.ascii_lowercase, seed)
        return Cipher(name, lower | {a.upper(): b.upper() for a, b in lower.items()})
    words = sorted(word for word in set(vocabulary) if re.fullmatch(r"[^\W_\d]+", word))
    if len(words) < 2:
        raise UsageError(f"--cipher {name}: the tokenizer has no whole words to permute; give letters:{seed}")
    return Cipher(name, _permuted(words, seed))


def _permuted(units: Sequence[str], seed: str) -> dict[str, str]:
    """A single cycle through all units: none stands for itself."""
    order = random.Random(f"cipher/{seed}").sample(list(units), len(units))
    return dict(zip(order, order[1:] + order[:1], strict=True))
