"""Greedy answers do not depend on how prompts are batched, and refusals are counted as the judge says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from weightguard.checkpoint import open_checkpoint, resolve
from weightguard.data import Row
from weightguard.errors import DataError
from weightguard.lab import Lab
from weightguard.statistics.loading import load_model, load_tokenizer
from weightguard.validate.generation import check_room, greedy_answers, prompt_ids
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


FAMILIES = ("llama", "qwen2", "gemma2", "gemma3_text", "phi3", "gpt2", "mistral")


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_generation_one_prompt_at_a_time_says_the_same(checkpoint, family: str) -> None:
    """Left padding, sorting and the model's own generation settings must not show in any answer."""
    directory = checkpoint(family)
    opened = open_checkpoint(resolve(str(directory)))
    model, tokenizer = load_model(opened), load_tokenizer(directory)
    words = [
        "how",
        "do",
        "i",
        "make",
        "bake",
        "pick",
        "a",
        "the",
        "lock",
        "cake",
        "bread",
        "door",
        "please",
        "tell",
        "me",
    ]
    rows = [Row(" ".join(words[i % 3 : i % 3 + 1 + i]), None, number=i) for i in range(10)]
    prompts = prompt_ids(rows, tokenizer, "test")
    alone = []
    for ids in prompts:
        out = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=8, attention_mask=torch.ones(1, len(ids))
        )
        alone.append(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))
    # Settings that a checkpoint may bring along, and that would see the padding.
    model.generation_config.repetition_penalty, model.generation_config.no_repeat_ngram_size = 1.7, 2
    for size in (1, 3, 32):
        found = dict(greedy_answers(model, tokenizer, prompts, max_new_tokens=8, batch_size=size))
        assert [found[i] for i in range(len(prompts))] == alone
    assert model.generation_config.repetition_penalty == 1.7, "the model's own settings are put back"


def test_a_batch_is_made_of_neighbours_in_length_and_padded_on_the_left(checkpoint, monkeypatch) -> None:
    directory = checkpoint("llama")
    model, tokenizer = load_model(open_checkpoint(resolve(str(directory)))), load_tokenizer(directory)
    widths, generate = [], model.generate

    def spy(**given: Any) -> Any:
        mask = given["attention_mask"]
        widths.append(mask.sum(1).tolist())
        assert (mask.diff(dim=1) >= 0).all() and mask[:, -1].all(), "padding lies before the prompt"
        return generate(**given)

    monkeypatch.setattr(model, "generate", spy)
    lengths = [9, 2, 7, 2, 30, 8, 1]
    found = greedy_answers(model, tokenizer, [[5] * n for n in lengths], max_new_tokens=2, batch_size=3)
    assert sorted(i for i, _ in found) == list(range(len(lengths)))
    assert widths == [[1, 2, 2], [7, 8, 9], [30]]


def test_every_end_of_sequence_ends_an_answer(checkpoint) -> None:
    """Chat models have several; the answer stops at the first, whichever it is."""
    directory = checkpoint("llama")
    model, tokenizer = load_model(open_checkpoint(resolve(str(directory)))), load_tokenizer(directory)
    prompt = [[1, 8, 9, 10]]
    (_, whole), = greedy_answers(model, tokenizer, prompt, max_new_tokens=8)  # fmt: skip
    words = whole.split()
    second = tokenizer.convert_tokens_to_ids(words[1])
    model.generation_config.eos_token_id = [second]
    (_, cut), = greedy_answers(model, tokenizer, prompt, max_new_tokens=8)  # fmt: skip
    assert cut.split() == words[: words.index(words[1])] if words[0] != words[1] else cut == ""


def test_a_prompt_beyond_the_context_is_refused_by_its_row(checkpoint) -> None:
    model = load_model(open_checkpoint(resolve(str(checkpoint("llama")))))
    rows = [Row("a", None, number=3), Row("b", None, number=8)]
    check_room([[1] * 60, [1] * 56], rows, model, 4, "f.jsonl")  # 64 positions
    with pytest.raises(DataError, match=r"f\.jsonl: the prompt of row 8 has 61 tokens.*context of 64"):
        check_room([[1] * 60, [1] * 61], rows, model, 4, "f.jsonl")
