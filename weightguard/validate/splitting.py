"""One data set in two parts that share no prompt: rows to attack or calibrate with, and rows to evaluate on."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from weightguard.data import Dataset
from weightguard.errors import DataError


def halves(data: Dataset) -> tuple[Dataset, Dataset]:
    """(rows to work with, rows to evaluate on), by a hash of the prompt: rows of one prompt stay together.

    Error: DataError where one part would be empty.
    """
    parts = [[row for row in data.rows if _side(row.prompt) == side] for side in (0, 1)]
    if not all(parts):
        raise DataError(
            f"{data.source}: {len(data.rows)} rows are too few to be split into two parts; give data for both"
        )
    first, second = (replace(data, rows=tuple(rows)) for rows in parts)
    return first, second


def _side(prompt: str) -> int:
    plain = " ".join(prompt.casefold().split())
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).digest()[0] & 1
