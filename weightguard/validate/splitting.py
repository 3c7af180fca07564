"""One data set in two parts that share no prompt: rows to attack or calibrate with, and rows to evaluate on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from weightguard.data import Dataset
from weightguard.errors import DataError
from weightguard.validate.overlap import plain_prompt


def halves(data: Dataset, least: int = 0, seen: Collection[str] = ()) -> tuple[Dataset, Dataset]:
    """(rows to work with, rows to evaluate on) in the order of the file; the first are half of all, or `least` if that is more.

    seen: plain prompts that were worked with elsewhere and so are not evaluated on. A hash of the prompt decides on the
    others, so that rows of one prompt stay together. Error: DataError where nothing would be left to evaluate on.
    """
    counts = Counter(plain_prompt(row.prompt) for row in data.rows)
    taken = {prompt for prompt in counts if prompt in seen}
    wanted = max((len(data.rows) + 1) // 2, least) - sum(counts[prompt] for prompt in taken)
    for prompt in sorted(counts.keys() - taken, key=_hash):
        if wanted <= 0:
            break
        taken.add(prompt)
        wanted -= counts[prompt]
    first, second = (tuple(r for r in data.rows if (plain_prompt(r.prompt) in taken) is side) for side in (True, False))
    if not first or not second:
        raise DataError(
            f"{data.source}: {len(data.rows)} rows are too few to be split in two; give data for both parts"
        )
    return replace(data, rows=first), replace(data, rows=second)


def unseen(data: Dataset, seen: Collection[str]) -> Dataset:
    """The rows whose prompt was not worked with. Error: DataError where none is left."""
    rows = tuple(row for row in data.rows if plain_prompt(row.prompt) not in seen)
    if not rows:
        raise DataError(f"{data.source}: every row is in the data that the repair uses; give others to evaluate on")
    return replace(data, rows=rows)


def _hash(prompt: str) -> bytes:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
