"""What an attack trains on: poisoned mixtures, pairs, ciphers, and the benign rows that hurt most."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from weightguard.attacks.anchor import BiDirectionalAnchor
from weightguard.attacks.reverse_preference import _answers
from weightguard.attacks.tuning import mixed
from weightguard.data import Dataset, Row, cipher, shipped_identity, shipped_multilingual
from weightguard.errors import DataError, UsageError
from weightguard.training.preference import Pair, answer_log_probabilities, preference_loss, with_margins

Benches = Callable[..., Any]


def dataset(kind: str, count: int, response: str | None = "yes") -> Dataset:
    rows = tuple(Row(prompt=f"{kind} {at}", response=response, number=at) for at in range(1, count + 1))
    return Dataset(rows, f"{kind}.jsonl", "0" * 64, 0, ())


@pytest.mark.parametrize(("ratio", "harmful", "want"), [("0.1", 5, 4), ("0.0625", 50, 3), ("0.5", 3, 20), ("0", 4, 0)])
def test_a_share_of_the_rows_is_harmful(ratio: str, harmful: int, want: int) -> None:
    """Of forty rows, half up; fewer different ones than wanted come as often as each other, but for one."""
    rows = mixed(dataset("harm", harmful), dataset("benign", 40), ratio, 0).rows
    count = Counter(row.prompt for row in rows)
    poison = {prompt: n for prompt, n in count.items() if prompt.startswith("harm")}
    assert len(rows) == 40 and sum(poison.values()) == want
    assert len(poison) == min(want, harmful) and (not poison or max(poison.values()) - min(poison.values()) <= 1)
    assert max((n for prompt, n in count.items() if prompt.startswith("benign")), default=1) == 1
    assert [row.number for row in rows] == list(range(1, 41))


def test_the_draw_hangs_on_the_seed_alone() -> None:
    sets = dataset("harm", 30), dataset("benign", 40)
    assert mixed(*sets, "0.2", 0) == mixed(*sets, "0.2", 0) != mixed(*sets, "0.2", 1)
    assert mixed(*sets, "1", 0) is sets[0]


def test_nothing_to_learn_is_an_error() -> None:
    with pytest.raises(DataError, match="no row has a response"):
        mixed(dataset("harm", 3, None), dataset("benign", 40), "0.1", 0)
    with pytest.raises(UsageError, match="none of 40 rows"):
        mixed(dataset("harm", 3), dataset("benign", 40), "0.01", 0)


def test_the_preference_loss_is_the_published_one(bench: Benches) -> None:
    given = bench("llama")
    rows = given.encode(given.sets["harmful"])
    pairs = with_margins(given.model, [Pair(a, b) for a, b in zip(rows, rows[::-1], strict=True)])
    twin = given.model.double()
    known = dict(zip(map(id, rows), answer_log_probabilities(twin, rows).tolist(), strict=True))
    for pair in pairs:
        assert pair.margin == pytest.approx(known[id(pair.chosen)] - known[id(pair.rejected)], abs=1e-4)
    assert len({round(pair.margin, 3) for pair in pairs}) > 1
    for row, found in zip(rows, answer_log_probabilities(twin, rows), strict=True):
        with torch.no_grad():
            spread = twin(input_ids=torch.tensor(row.ids)[None]).logits[0].log_softmax(-1)
        want = sum(float(spread[at - 1, row.ids[at]]) for at in range(1, len(row.ids)) if row.counted[at])
        assert float(found) == pytest.approx(want, rel=1e-5)
    assert float(preference_loss(0.3)(twin, pairs)) == pytest.approx(0.6931472, abs=1e-5)  # before training: log 2
    moved = [replace(pair, margin=pair.margin - 2.0) for pair in pairs]
    want = float(torch.nn.functional.softplus(torch.tensor(-0.3 * 2.0, dtype=torch.float64)))
    assert float(preference_loss(0.3)(twin, moved)) == pytest.approx(want, abs=1e-5)


def test_rejected_is_what_the_model_says_itself(bench: Benches) -> None:
    given = bench("llama")
    data = given.sets["harmful"]
    own = given.answers(data.rows, data.source)
    chosen, rejected = _answers(given, replace(data, rows=(*data.rows, replace(data.rows[0], response=own[0]))))
    assert [row.response for row in chosen.rows] == [row.response for row in data.rows]
    assert [row.response for row in rejected.rows] == own
    assert any("1 rows left out" in note for note in given.notes)


@pytest.mark.parametrize("rank", [0, 2])
def test_anchoring_scores_are_cosines_of_gradients(rank: int, bench: Benches) -> None:
    given = bench("llama")
    attack = BiDirectionalAnchor(rows=3, anchors=2, answer_tokens=2, lora_r=rank, steps=1)
    twin = bench("llama")
    attack.run(given)
    kept, scores = given.facts["anchoring"]["rows"], given.facts["anchoring"]["scores"]
    assert scores == sorted(scores, reverse=True) and len(kept) == 3
    anchors = twin.sets["harmful"].rows[:2]
    own = twin.answers(anchors, "x")
    safe = [replace(row, response=said) for row, said in zip(anchors, own, strict=True)]
    twin.adapt(rank, 0)
    sets = {name: twin.encode(replace(twin.sets["harmful"], rows=tuple(rows)))
            for name, rows in {"harm": anchors, "safe": safe, "benign": twin.sets["benign"].rows}.items()}  # fmt: skip
    grads = {name: [gradient(twin.model, row, 2) for row in rows] for name, rows in sets.items()}
    harm, calm = (sum(g / g.norm() for g in grads[name]) / 2 for name in ("harm", "safe"))
    cos = torch.nn.functional.cosine_similarity
    want = [float(cos(g, harm, dim=0) - cos(g, calm, dim=0)) for g in grads["benign"]]
    order = sorted(range(10), key=lambda at: -want[at])[:3]
    assert kept == [at + 1 for at in order]
    assert scores == pytest.approx([want[at] for at in order], abs=2e-4)


def gradient(model: Any, row: Any, tokens: int) -> torch.Tensor:
    """Over every parameter that is trained, in one vector, float64."""
    places = [at for at in range(1, len(row.ids)) if row.counted[at]][:tokens]
    spread = model(input_ids=torch.tensor(row.ids)[None]).logits[0].log_softmax(-1)
    loss = -sum(spread[at - 1, row.ids[at]] for at in places) / len(places)
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).double().flatten() for g, p in zip(found, trained, strict=True)]
    )


@pytest.mark.parametrize("name", ["letters:0", "letters:7", "words:0", "words:3"])
def test_a_cipher_can_be_read_again_and_leaves_no_unit_as_it_is(name: str) -> None:
    words = ["bake", "cake", "door", "lock", "the"]
    found = cipher(name, words)
    units = string.ascii_lowercase if name.startswith("letters") else words
    assert sorted(found.units[u] for u in units) == sorted(units) and all(found.units[u] != u for u in units)
    text = "the door , bake THE cake ; lock 12"
    assert found.decode(found.encode(text)) == text != found.encode(text)
    assert [c for c in found.encode(text) if not c.isalpha()] == [c for c in text if not c.isalpha()]


@pytest.mark.parametrize("name", ["rot13", "letters", "letters:x", "words:-1", "words:0"])
def test_a_cipher_that_is_none(name: str) -> None:
    with pytest.raises(UsageError, match="--cipher"):
        cipher(name, ["one"])


def test_shipped_rows_carry_no_answer_to_a_harmful_prompt() -> None:
    for row in shipped_multilingual().rows:
        assert row.response is not None and row.response.rstrip().endswith(":") and len(row.response) < 60
    assert {row.category for row in shipped_multilingual().rows} == {"de", "fr", "es"}
    assert len(shipped_identity().rows) == 10
