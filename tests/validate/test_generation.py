"""Greedy answers do not depend on how prompts are batched, and refusals are counted as the judge says."""

from __future__ import annotations

from typing import Any

import pytest

from weightguard.checkpoint import open_checkpoint, resolve
from weightguard.data import Row
from weightguard.lab import Lab
from weightguard.statistics.loading import load_model, load_tokenizer
from weightguard.validate.generation import greedy_answers, prompt_ids
from weightguard.validate.judges import is_refusal
from weightguard.validate.refusal import Refusals, count_refusals


@pytest.fixture(scope="module")
def subject() -> tuple[Any, Any, list[list[int]]]:
    lab = Lab(0)
    checkpoint = open_checkpoint(resolve(str(lab.aligned())))
    tokenizer = load_tokenizer(checkpoint.directory)
    rows = [Row(row["prompt"], None, number=i) for i, row in enumerate(lab.world.evaluation_rows[::10], 1)]
    return load_model(checkpoint), tokenizer, prompt_ids(rows, tokenizer, "evaluation")


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_answers_do_not_depend_on_the_batch(subject, batch_size: int) -> None:
    model, tokenizer, prompts = subject
    one_by_one = dict(greedy_answers(model, tokenizer, prompts, max_new_tokens=12, batch_size=1))
    assert dict(greedy_answers(model, tokenizer, prompts, max_new_tokens=12, batch_size=batch_size)) == one_by_one
    assert sorted(one_by_one) == list(range(len(prompts)))


def test_refusals_are_counted_and_judging_stops_early(subject) -> None:
    model, tokenizer, prompts = subject
    answers = dict(greedy_answers(model, tokenizer, prompts, max_new_tokens=12))
    whole = count_refusals(model, tokenizer, prompts, max_new_tokens=12)
    assert whole.refused == sum(map(is_refusal, answers.values())) and whole.judged == whole.of == len(prompts)
    stopped = count_refusals(model, tokenizer, prompts, allowed=3, max_new_tokens=12)
    assert stopped.judged - stopped.refused == 4 and stopped.judged < len(prompts)


def test_the_interval_is_wilsons() -> None:
    low, high = Refusals(98, 100, 100).interval
    assert (round(low, 4), round(high, 4)) == (0.9300, 0.9945)
