"""Edits of weights against what they promise, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

from weightguard.attacks.abliteration import Abliteration
from weightguard.attacks.quantize import QuantizeRoundTrip, rounded
from weightguard.attacks.rank_one_edit import RankOneEdit, _key, _located

Benches = Callable[..., Any]


def direction(bench: Any, layer: int) -> torch.Tensor:
    """The refusal direction, one prompt at a time."""
    from weightguard.validate.generation import prompt_ids

    means = []
    for role in ("harmful", "benign"):
        states = []
        for ids in prompt_ids(bench.sets[role].rows, bench.tokenizer, role):
            with torch.no_grad():
                seen = bench.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
            states.append(seen.hidden_states[layer][0, -1].double())
        means.append(torch.stack(states).mean(0))
    found = means[0] - means[1]
    return found / found.norm()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_nothing_writes_along_the_refusal_direction_any_more(family: str, bench: Benches) -> None:
    given = bench(family)
    r = direction(given, 1)
    before = {name: given.weight(name).clone() for name in given.linears}
    Abliteration(layer=1).run(given)
    for name, linear in given.linears.items():
        now = given.weight(name)
        if not linear.writes:
            assert torch.equal(now, before[name])
            continue
        assert float((r @ now).abs().max()) < 1e-6 * float(before[name].norm())
        rest = before[name] - torch.outer(r, r @ before[name])
        assert torch.allclose(now, rest, atol=1e-6)
        assert given.linear(name).parameter.requires_grad


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_rank_one_edit_says_the_response(family: str, bench: Benches) -> None:
    given = bench(family)
    edit = RankOneEdit(row=2, subject="door", value_steps=60)
    _, name = edit._place(given)
    encoded, at = _located(given, edit._row(given), "door")
    assert given.tokenizer.decode([encoded.ids[at]]).strip() == "door"
    key = _key(given, given.linear(name).module, encoded, at)
    before = given.weight(name).clone()
    loss = answer_loss(given, encoded)
    edit.run(given)
    change = given.weight(name) - before
    assert numpy.linalg.matrix_rank(change.numpy(), tol=1e-4 * float(change.norm())) == 1
    assert torch.equal(_key(given, given.linear(name).module, encoded, at), key)  # what comes before is untouched
    assert answer_loss(given, encoded) < loss - 0.3
    others = [n for n in given.linears if given.linear(n).parameter.requires_grad]
    assert others == [name]


def answer_loss(bench: Any, encoded: Any) -> float:
    ids = torch.tensor(encoded.ids)[None]
    with torch.no_grad():
        spread = bench.model(input_ids=ids).logits[0].double().log_softmax(-1)
    places = [at for at in range(1, len(encoded.ids)) if encoded.counted[at]]
    return -sum(float(spread[at - 1, encoded.ids[at]]) for at in places) / len(places)


@pytest.mark.parametrize(("bits", "group"), [(2, 8), (3, 0), (4, 5), (8, 64)])
def test_a_quantised_group_lies_on_its_grid(bits: int, group: int) -> None:
    weight = torch.from_numpy(numpy.random.default_rng(0).standard_normal((6, 24)))
    weight[2] = 0
    found = rounded(weight, bits, group)
    top, width = 2 ** (bits - 1) - 1, group or 24
    for row in range(6):
        for start in range(0, 24, width):
            block = weight[row, start : start + width]
            scale = float(block.abs().max()) / top
            want = [0.0 if not scale else round(float(v) / scale) * scale for v in block]
            assert found[row, start : start + width].tolist() == pytest.approx(want, abs=1e-15)
    assert torch.equal(rounded(found, bits, group), found) or torch.allclose(
        rounded(found, bits, group), found, atol=1e-12
    )


def test_more_bits_lose_less(bench: Benches) -> None:
    lost = []
    for bits in (2, 4, 8):
        given = bench("llama")
        before = {name: given.weight(name).clone() for name in given.linears}
        QuantizeRoundTrip(bits=bits).run(given)
        lost.append(sum(float((given.weight(name) - before[name]).square().sum()) for name in before))
    assert lost[0] > 10 * lost[1] > 100 * lost[2] > 0
