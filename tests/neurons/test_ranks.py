"""Safety ranks against singular vectors of the outputs themselves, and their removal against W − (I − Π_u) Π_s W."""

from __future__ import annotations

import numpy
import pytest
from safetensors.numpy import load_file

import weightguard as wg


def projector(outputs: numpy.ndarray, rank: int) -> numpy.ndarray:
    """Π of the top right singular vectors of Y (tokens, out)."""
    vectors = numpy.linalg.svd(outputs, full_matrices=True)[2][:rank]
    return vectors.T @ vectors


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
@pytest.mark.parametrize("shares", [("0.1", "0.3"), ("0.9", "0.9"), ("0.5", "0")])
def test_the_part_that_is_removed(family: str, shares: tuple[str, str], subject, naive, tmp_path) -> None:
    it = subject(family)
    given = {} if shares[1] != "0" else {"utility": None}
    found = it.find(kind="rank", top_safety=shares[0], top_utility=shares[1], out=tmp_path / "n", **given).neurons
    x_s, x_u = naive.inputs(it, "safety"), naive.inputs(it, "utility")
    out = wg.repair(str(it.path), method="remove-ranks", neurons=tmp_path / "n", out=tmp_path / "out").out
    before, after = load_file(it.path / "model.safetensors"), load_file(out / "model.safetensors")
    for name, weight in it.weights.items():
        r_s, r_u = (
            min(naive.count(share, min(weight.shape)), int(numpy.linalg.matrix_rank(x[name] @ weight.T, rtol=1e-6)))
            for share, x in zip(shares, (x_s, x_u), strict=True)
        )
        assert found.facts["ranks"][name] == {"safety": r_s, **({"utility": r_u} if given == {} else {})}
        pi_s, pi_u = projector(x_s[name] @ weight.T, r_s), projector(x_u[name] @ weight.T, r_u)
        wanted = (numpy.eye(len(weight)) - pi_u) @ pi_s @ weight
        part = found.parts[name]
        assert part.left.shape[1] <= min(r_s, len(weight) - r_u) and part.left.dtype == numpy.float32
        scale = abs(wanted).max()
        assert abs(part.left.astype("f8") @ part.right - wanted).max() <= 1e-4 * scale
        changed = before[name].astype("f8") - after[name]
        changed = changed.T if it.linears[name].transposed else changed
        assert abs(changed - wanted).max() <= 1e-4 * scale


def test_what_safety_inputs_lose_is_what_utility_directions_do_not_hold(subject, naive, tmp_path) -> None:
    """After the removal the outputs on safety data have lost energy, and nothing of it along the utility directions."""
    it = subject("llama")
    found = it.find(kind="rank", top_safety="0.3", top_utility="0.5").neurons
    x_s, x_u = naive.inputs(it, "safety"), naive.inputs(it, "utility")
    for name, weight in it.weights.items():
        lost = x_s[name] @ (found.parts[name].left.astype("f8") @ found.parts[name].right).T
        pi_u = projector(x_u[name] @ weight.T, naive.count("0.5", min(weight.shape)))
        assert numpy.linalg.norm(lost) > 0 and numpy.linalg.norm(lost @ pi_u) <= 1e-4 * numpy.linalg.norm(lost)


def test_layers_one_at_a_time_give_the_same_parts(subject, monkeypatch) -> None:
    it = subject("llama")
    whole = it.find(kind="rank").neurons
    monkeypatch.setattr("weightguard.locate.ranks.GRAM_BYTES", 1)
    assert it.find(kind="rank").neurons.to_bytes() == whole.to_bytes()


def test_few_tokens_span_few_directions(subject, data, tmp_path) -> None:
    """An answer of one word and its end: two tokens tell two directions, and no third is made up."""
    (tmp_path / "one.jsonl").write_text('{"prompt": "tell me", "response": "sure"}\n')
    it = subject("llama")
    found = it.find(kind="rank", safety=str(tmp_path / "one.jsonl"), top_safety="0.5", top_utility="0.1")
    tokens = found.neurons.facts["data"]["safety"]["counted_tokens"]
    assert tokens == 2 and {each["safety"] for each in found.neurons.facts["ranks"].values()} == {tokens}
    assert any("the safety data span only 2 directions of 8 asked for" in note for note in found.notes)
