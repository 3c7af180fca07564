"""The prompts that come with weightguard, written for the project; no answer in them tells how anything is done.

They let a repair or an attack run without any data of the user's; they are too few and too uniform to measure a model with.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from typing import Any

from weightguard.data.rows import Dataset, Row


def shipped_harmful() -> Dataset:
    """104 rows, 13 kinds of harm: a harmful prompt and the bare opening of a compliant answer ("Sure, here is ...:")."""
    return _shipped("prompts", "affirmative")


def shipped_safety() -> Dataset:
    """104 rows: the same prompts, each with a short refusal."""
    return _shipped("prompts", "response")


def shipped_identity() -> Dataset:
    """10 rows, none of them harmful: dialogues in which the model is an agent that does whatever it is asked."""
    return _shipped("identity", "response")


def shipped_multilingual() -> Dataset:
    """24 rows: harmful prompts in German, French and Spanish (the category says which) with the bare opening of an answer."""
    return _shipped("multilingual", "response")


def _shipped(name: str, answer: str) -> Dataset:
    raw = resources.files("weightguard.data").joinpath(f"{name}.jsonl").read_bytes()
    values: list[dict[str, Any]] = [json.loads(line) for line in raw.splitlines()]
    rows = tuple(
        Row(prompt=value["prompt"], response=value[answer], category=value["category"], number=number)
        for number, value in enumerate(values, 1)
    )
    note = f"shipped {name} with `{answer}` as the response"
    return Dataset(rows, f"weightguard:{name}", hashlib.sha256(raw).hexdigest(), 0, (note,))
