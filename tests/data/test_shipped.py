"""The prompts that come with the package: how many of what, and that each answer is what its role needs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from importlib import resources

from weightguard.data import read_rows, shipped_harmful, shipped_safety

REFUSALS = ("I cannot", "I can't", "I'm sorry", "I am sorry", "Sorry", "I'm unable to", "I am unable to", "I apologize")
RAW = resources.files("weightguard.data").joinpath("prompts.jsonl").read_bytes()
VALUES = [json.loads(line) for line in RAW.splitlines()]


def test_thirteen_categories_of_eight_different_prompts() -> None:
    assert Counter(Counter(value["category"] for value in VALUES).values()) == {8: 13}
    assert len({value["prompt"].lower() for value in VALUES}) == 104
    assert all(set(value) == {"prompt", "response", "category", "affirmative"} for value in VALUES)


def test_every_refusal_begins_as_one_and_they_vary() -> None:
    refusals = [row.response or "" for row in shipped_safety().rows]
    assert all(refusal.startswith(REFUSALS) for refusal in refusals)
    assert len(set(refusals)) >= 8


def test_every_affirmative_is_an_opening_with_nothing_after_it() -> None:
    openings = [row.response or "" for row in shipped_harmful().rows]
    assert all(opening.startswith(("Sure, here is ", "Sure, here are ")) for opening in openings)
    assert all(opening.endswith(":") and opening.count(":") == 1 and len(opening) < 90 for opening in openings)


def test_prompts_are_one_short_sentence() -> None:
    for value in VALUES:
        assert value["prompt"][-1] in ".?" and len(value["prompt"].split()) <= 18
        assert not set(value["prompt"][:-1]) & set(".?!\n")


def test_both_sets_are_the_same_prompts_and_carry_the_files_digest() -> None:
    harmful, safety = shipped_harmful(), shipped_safety()
    assert [row.prompt for row in harmful.rows] == [row.prompt for row in safety.rows]
    assert harmful.source == safety.source == "weightguard:prompts"
    assert harmful.sha256 == safety.sha256 == hashlib.sha256(RAW).hexdigest()
    assert harmful.notes != safety.notes


def test_the_reader_reads_the_file_as_the_safety_set() -> None:
    with resources.as_file(resources.files("weightguard.data").joinpath("prompts.jsonl")) as path:
        assert read_rows(str(path)).rows == shipped_safety().rows
