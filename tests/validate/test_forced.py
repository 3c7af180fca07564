"""Losses, divergences and drifts of batches against one row at a time in float64, by stock transformers alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

from weightguard.checkpoint import open_checkpoint, resolve
from weightguard.data import read_rows
from weightguard.statistics.loading import load_model, load_tokenizer
from weightguard.validate.metrics import forced


def silent(done: int, total: int) -> None: ...


@pytest.fixture(scope="module", params=["llama", "gpt2", "phi3"])
def pair(request: pytest.FixtureRequest, checkpoint) -> tuple[Any, Any, Any, dict]:
    opened = [open_checkpoint(resolve(str(checkpoint(request.param, kind=kind)))) for kind in ("tuned", "aligned")]
    models = [load_model(each, dtype="float64") for each in opened]
    return *models, load_tokenizer(opened[0].directory), opened[0].config


@pytest.fixture
def rows(pair, data) -> tuple[list[Any], list[tuple[list[int], int]]]:
    """The rows as the code has them, and by hand: ids by the chat template, and where the answer begins."""
    tokenizer, dataset = pair[2], read_rows(str(data["harmful"]))
    found = forced.encoded_answers(dataset, [row.response for row in dataset.rows], tokenizer, 64)
    plain = []
    for row in dataset.rows:
        turns = [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.response}]
        prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        plain.append((tokenizer(whole, add_special_tokens=False)["input_ids"], start))
    return found, plain


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0].double()


def test_losses(pair, rows) -> None:
    found, plain = rows
    wanted = []
    for ids, start in plain:
        said = log_softmax(logits(pair[0], ids), -1)
        wanted.append(-sum(float(said[t - 1, ids[t]]) for t in range(start, len(ids))) / (len(ids) - start))
    assert forced.losses(pair[0], found, silent) == pytest.approx(wanted, rel=1e-5)


def test_divergences(pair, rows) -> None:
    found, plain = rows
    wanted = []
    for ids, start in plain:
        ours, theirs = (log_softmax(logits(model, ids), -1) for model in pair[:2])
        kl = (theirs.exp() * (theirs - ours)).sum(-1)
        wanted.append(float(kl[start - 1 : -1].mean()))
    values = forced.divergences(pair[0], pair[1], found, silent)
    assert values == pytest.approx(wanted, rel=1e-4) and min(values) > 0
    assert max(forced.divergences(pair[0], pair[0], found, silent)) == 0


def test_drifts(pair, rows) -> None:
    """By hooks on the attention modules themselves: what each of them returns is what leaves the block."""
    found, plain = rows
    wanted = []
    for ids, _ in plain:
        ours, theirs = (attention_outputs(model, ids) for model in pair[:2])
        wanted.append(
            float(torch.stack([(a - b).norm(dim=-1).mean() for a, b in zip(ours, theirs, strict=True)]).mean())
        )
    assert forced.drifts(pair[0], pair[1], pair[3], found, silent) == pytest.approx(wanted, rel=1e-5)


@torch.no_grad()
def attention_outputs(model: Any, ids: list[int]) -> list[torch.Tensor]:
    taken: list[torch.Tensor] = []
    blocks = [m for n, m in model.named_modules() if n.endswith((".self_attn", ".attn"))]
    handles = [block.register_forward_hook(lambda _m, _i, out: taken.append(out[0][0])) for block in blocks]
    model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return taken


def test_rows_without_an_answer_are_left_out(pair, data) -> None:
    dataset = read_rows(str(data["harmful"]))
    answers = [None, "", "sure", "  ", "take salt"]
    found = forced.encoded_answers(dataset, answers, pair[2], 64)
    assert [row.number for row in found] == [3, 5]
    assert forced.encoded_answers(dataset, [None] * 5, pair[2], 64) == []


def test_an_answer_takes_its_place_in_a_conversation(pair, tmp_path) -> None:
    """The row's own last answer gives way to the one that is asked about."""
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"messages": [{"role": "user", "content": "make fire"}, {"role": "assistant", "content": "sure"}]}\n'
        '{"prompt": "make fire", "response": "sure"}\n'
    )
    dataset = read_rows(str(file))
    first, second = forced.encoded_answers(dataset, ["take salt"] * 2, pair[2], 64)
    assert first.ids.tolist() == second.ids.tolist() and first.counted.tolist() == second.counted.tolist()
