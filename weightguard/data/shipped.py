"""The prompts that come with weightguard: 13 kinds of harm, 8 short general requests each, written for the project.

They let a repair run without any data of the user's; they are too few and too uniform to measure a model with.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources

from weightguard.data.rows import Dataset, Row

SOURCE = "weightguard:prompts"


def shipped_harmful() -> Dataset:
    """104 rows: a harmful prompt and the bare opening of a compliant answer ("Sure, here is ...:", nothing after)."""
    return _shipped("affirmative")


def shipped_safety() -> Dataset:
    """104 rows: the same prompts, each with a short refusal."""
    return _shipped("response")


def _shipped(answer: str) -> Dataset:
    raw = resources.files("weightguard.data").joinpath("prompts.jsonl").read_bytes()
    values = [json.loads(line) for line in raw.splitlines()]
    rows = tuple(
        Row(prompt=value["prompt"], response=value[answer], category=value["category"], number=number)
        for number, value in enumerate(values, 1)
    )
    note = f"shipped prompts with `{answer}` as the response"
    return Dataset(rows, SOURCE, hashlib.sha256(raw).hexdigest(), 0, (note,))
