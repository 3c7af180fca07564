"""Safety-critical weights and units against scores written down once more."""

from __future__ import annotations

import numpy
import pytest

import weightguard as wg
from weightguard.parts import Neurons

FAMILIES = ("llama", "phi3", "gpt2")


def same(found: dict[str, numpy.ndarray], wanted: dict[str, numpy.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all((found[n] == wanted[n]).all() for n in wanted)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("score", ["wanda", "snip"])
def test_set_difference_of_the_tops(family: str, score: str, subject, naive, masks_of) -> None:
    it = subject(family)
    safety, utility = (naive.scores(it, role, score) for role in ("safety", "utility"))
    for group in ("matrix", "row", "global"):
        found = it.find(score=score, top_safety="0.2", top_utility="0.1", group=group)
        a, b = naive.tops(safety, "0.2", group), naive.tops(utility, "0.1", group)
        assert same(masks_of(found), {n: a[n] & ~b[n] for n in a}), group


def test_without_utility_exactly_the_top_is_taken(subject, naive) -> None:
    it = subject()
    found = wg.neurons(str(it.path), safety=it.files["safety"], top_safety="0.07", top_utility=0, threads=1)
    for name, part in found.neurons.parts.items():
        assert part.selected == naive.count("0.07", it.weights[name].size)


@pytest.mark.parametrize("steps", [2, 4])
def test_ties_go_to_the_lowest_index(steps: int, subject, naive, masks_of) -> None:
    """Weights of few values have few scores in a column of equal norms; exactly k are taken all the same."""
    it = subject("llama", steps=steps)
    found = it.find(top_safety="0.5", top_utility=0, utility=None)
    norms = {n: numpy.sqrt((x**2).mean(0)) for n, x in naive.inputs(it, "safety").items()}
    for name, mask in masks_of(found).items():
        for column in range(mask.shape[1]):  # within a column equal weights have equal scores
            for value in numpy.unique(abs(it.weights[name][:, column])):
                at = numpy.flatnonzero(abs(it.weights[name][:, column]) == value)
                if value and norms[name][column]:
                    assert (numpy.diff(mask[at, column].astype(int)) <= 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_and_columns_by_the_sum_of_their_scores(family: str, subject, naive, masks_of) -> None:
    it = subject(family)
    for score in ("wanda", "snip"):
        lines = {}
        for role in ("safety", "utility"):
            found = naive.scores(it, role, score)
            axis = {n: 0 if it.linears[n].role in ("o", "down") else 1 for n in found}
            lines[role] = {n: s.mean(axis[n]) for n, s in found.items()}
        for group in ("matrix", "global"):
            a, b = naive.tops(lines["safety"], "0.25", group), naive.tops(lines["utility"], "0.1", group)
            left = {n: a[n] & ~b[n] for n in a}
            wanted = {
                n: numpy.broadcast_to(m if axis[n] == 0 else m[:, None], it.weights[n].shape) for n, m in left.items()
            }
            got = it.find(score=score, units="rows", top_safety="0.25", top_utility="0.1", group=group)
            assert same(masks_of(got), wanted), (score, group)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "gpt2"])
def test_a_head_is_what_its_columns_of_o_hang_on(family: str, subject, naive, masks_of) -> None:
    """Other values in a head's rows of q, k and v change exactly its columns of o's input, and no others."""
    import torch

    it = subject(family)
    kv = it.config.get("num_key_value_heads") or it.config.get("n_head")
    found = it.find(kind="random", units="heads", top_safety=str(1 / kv + 1e-9))
    masks, model = masks_of(found), naive.in_float64(it.path)
    o = next(n for n, linear in it.linears.items() if linear.role == "o" and linear.layer == 0)
    seen: list[torch.Tensor] = []
    naive.module_of(model, o).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()[0]))
    ids = torch.tensor([[3, 9, 4, 17, 5, 6]])
    model(ids)
    for name, linear in it.linears.items():
        if linear.layer == 0 and linear.role in ("q", "k", "v", "qkv"):
            weight = naive.module_of(model, name).weight
            chosen = torch.tensor(masks[name].T if linear.transposed else masks[name])
            weight.data = torch.where(chosen, torch.randn(weight.shape, dtype=torch.float64), weight.data)
    model(ids)
    changed = (seen[0] - seen[1]).abs().amax(0).numpy() > 1e-12
    assert (changed == masks[o].all(0)).all() and 0 < changed.sum() < changed.size
    assert (masks[o].any(0) == masks[o].all(0)).all()
    assert all(not masks[n].any() for n, linear in it.linears.items() if linear.role not in ("q", "k", "v", "qkv", "o"))


def test_heads_by_the_score_over_all_their_tensors(subject, naive, masks_of) -> None:
    it = subject("llama")  # 4 query heads of 4 columns over 2 key-value heads
    scored = naive.scores(it, "safety", "snip")
    got = masks_of(
        it.find(score="snip", units="heads", group="matrix", top_safety="0.5", top_utility="0", utility=None)
    )
    for layer in range(2):
        path = f"model.layers.{layer}.self_attn.{{}}_proj.weight"
        q, k, v, o = (scored[path.format(role)] for role in "qkvo")
        parts = [
            [q[8 * h : 8 * h + 8], k[4 * h : 4 * h + 4], v[4 * h : 4 * h + 4], o[:, 8 * h : 8 * h + 8]] for h in (0, 1)
        ]
        heads = [numpy.concatenate([part.ravel() for part in head]).mean() for head in parts]
        best = int(numpy.argmax(heads))
        assert got[path.format("q")][:, 0].nonzero()[0].tolist() == list(range(8 * best, 8 * best + 8))
        assert got[path.format("v")][:, 0].nonzero()[0].tolist() == list(range(4 * best, 4 * best + 4))
        assert got[path.format("o")][0].nonzero()[0].tolist() == list(range(8 * best, 8 * best + 8))


def test_scope_keeps_to_its_roles(subject) -> None:
    it = subject()
    whole, some = it.find(top_safety="0.2"), it.find(top_safety="0.2", scope="v,down")
    kept = {n: p for n, p in whole.neurons.parts.items() if it.linears[n].role in ("v", "down")}
    assert some.neurons.parts.keys() == kept.keys()
    assert all((some.neurons.parts[n].mask == p.mask).all() for n, p in kept.items())


def test_random_takes_the_share_and_other_ones_under_another_seed(subject, naive, masks_of) -> None:
    it = subject()
    first, again, other = (it.find(kind="random", top_safety="0.3", seed=seed) for seed in (0, 0, 1))
    assert first.neurons.digest() == again.neurons.digest() != other.neurons.digest()
    for name, mask in masks_of(first).items():
        assert mask.sum() == naive.count("0.3", mask.size)
        both = (mask & masks_of(other)[name]).sum() / mask.sum()
        assert both < 0.6
    first_q, second_q = (masks_of(first)[f"model.layers.{layer}.self_attn.q_proj.weight"] for layer in (0, 1))
    assert (first_q != second_q).any()  # tensors of one shape draw differently
    rows = it.find(kind="random", top_safety="0.5", units="rows", group="global")
    total = sum(
        m.shape[0] if it.linears[n].role not in ("o", "down") else m.shape[1] for n, m in masks_of(rows).items()
    )
    marked = sum(m.any(1).sum() if it.linears[n].role not in ("o", "down") else m.any(0).sum()
                 for n, m in masks_of(rows).items())  # fmt: skip
    assert marked == naive.count("0.5", total)


@pytest.mark.parametrize("options", [{}, {"units": "rows"}, {"kind": "rank"}])
def test_a_control_marks_as_much_of_each_tensor(options: dict, subject, tmp_path) -> None:
    it = subject()
    found = it.find(**{"top_safety": "0.2", **options}, out=tmp_path / "found").neurons
    drawn = it.find(kind="random", like=tmp_path / "found", seed=3).neurons
    assert drawn.parts.keys() == found.parts.keys()
    for name, part in found.parts.items():
        assert drawn.parts[name].form == part.form and drawn.parts[name].selected == part.selected
        if part.form == "rank":
            assert drawn.parts[name].left.shape == part.left.shape
            product = drawn.parts[name].left.astype("f8") @ drawn.parts[name].right
            projector = drawn.parts[name].left.astype("f8") @ drawn.parts[name].left.T
            assert numpy.allclose(product, projector @ it.weights[name], atol=1e-5)
            assert numpy.allclose(projector @ projector, projector, atol=1e-5)
        else:
            assert (drawn.parts[name].mask != part.mask).any()
    assert drawn.facts["like"] == found.digest()


def test_the_file_tells_where_it_comes_from(subject, tmp_path) -> None:
    import hashlib
    from pathlib import Path

    it = subject("gpt2")
    found = it.find(out=tmp_path / "found", limit=2)
    read = Neurons.load(tmp_path / "found")
    assert read.digest() == found.neurons.digest() == hashlib.sha256((tmp_path / "found").read_bytes()).hexdigest()
    assert (read.kind, read.paper, dict(read.options)["score"]) == ("set-difference", "arXiv:2402.05162", "wanda")
    from safetensors.numpy import load_file

    stored = load_file(it.path / "model.safetensors")
    assert read.model == {n: hashlib.sha256(stored[n].tobytes()).hexdigest() for n in read.parts}
    for role, file in it.files.items():
        said = read.facts["data"][role]
        assert (
            said["data"]["sha256"] == hashlib.sha256(Path(file).read_bytes()).hexdigest() and said["data"]["rows"] == 2
        )
        assert said["counted_tokens"] > 0 and said["tokens"] == "response"


@pytest.mark.parametrize(
    "options", [{}, {"score": "snip"}, {"kind": "freeze-plus"}, {"kind": "rank"}, {"kind": "rsn", "top_safety": "0.2"}]
)
def test_two_searches_write_the_same_bytes(options: dict, subject) -> None:
    it = subject()
    assert it.find(**options).neurons.to_bytes() == it.find(**options).neurons.to_bytes()
