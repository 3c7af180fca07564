"""Select and apply: the compiled kernel is the reference bit for bit, and the reference is a stable sort.

`python tests/kernels/test_select.py LIBRARY` runs the comparison against another build (test_build.py: sanitizers).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import DTYPES, LAYOUTS, laid, load, values

from weightguard.kernels import native, ops, reference
from weightguard.kernels.reference import Choice

SHAPES = ((0, 5), (1, 1), (3, 15), (5, 16), (2, 17), (9, 64), (6, 257), (3, 4096), (70, 1), (31, 33))
RATIOS = ("none", "one", 0.05, 0.5, "all")


def size_of(ratio: str | float, size: int) -> int:
    if isinstance(ratio, str):
        return {"none": 0, "one": min(1, size), "all": size}[ratio]
    return int(ratio * size)


def choices(shape: tuple[int, int], seed: int) -> Iterator[Choice]:
    rows, columns = shape
    generator = torch.Generator().manual_seed(seed)
    some, others = torch.rand(columns, generator=generator), torch.rand(columns, generator=generator)
    few = torch.randint(0, 3, (columns,), generator=generator).float()
    for number, (group, ratio) in enumerate(product(("row", "matrix"), RATIOS)):
        size = columns if group == "row" else rows * columns
        yield Choice(group, size_of(ratio, size), (some, None, few)[(number + seed) % 3])
    for group in ("row", "matrix"):
        size = columns if group == "row" else rows * columns
        yield Choice(group, size // 2, some, size // 3, others)


def outcome(implementation, weights, choice, aligned, layout):
    """What is left of the weights, as bits, and what was counted."""
    edited = laid(weights, layout)
    origin = None if aligned is None else laid(aligned, layout)
    taken = implementation.select_apply(edited, choice, origin, True)
    return edited.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8), taken


def compare(dtype: torch.dtype, restore: bool, isas: tuple[str, ...], monkeypatch) -> int:
    cases = 0
    kinds = ("ties", "normal", "sparse", "tiny")
    for number, shape in enumerate(SHAPES):
        weights = values(kinds[number % 4], shape, dtype, number)
        aligned = values(kinds[(number + 1) % 4], shape, dtype, 100 + number) if restore else None
        for at, choice in enumerate(choices(shape, number)):
            expected, counted = outcome(reference, weights, choice, aligned, "plain")
            for isa, layout in product(isas, LAYOUTS if at % 3 == 0 else LAYOUTS[:1]):
                monkeypatch.setenv("WEIGHTGUARD_ISA", isa)
                found, taken = outcome(native, weights, choice, aligned, layout)
                where = (dtype, shape, replace(choice, norms=None, spare_norms=None), isa, layout)
                assert torch.equal(found, expected), where
                assert taken == counted, where
                cases += 1
    return cases


def loaded() -> tuple[str, ...]:
    """The instruction sets to test; skips where there is no native build and none was demanded."""
    if native.compiled() is None:
        pytest.skip(f"no compiled kernels: {native.status()}")
    return native.available()


@pytest.mark.parametrize("restore", (False, True), ids=("zero", "restore"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_is_the_reference(dtype: torch.dtype, restore: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare(dtype, restore, loaded(), monkeypatch) > 100


@pytest.mark.parametrize("group", ("row", "matrix"))
@pytest.mark.parametrize("kind", ("ties", "normal", "sparse"))
@pytest.mark.parametrize("shape", ((66, 4099), (2800, 96)), ids=str)
def test_large_matrices_and_threads(shape, kind, group, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the sizes at which edges are guessed from a sample; a bracket that misses must not show."""
    weights, norms = values(kind, shape, torch.bfloat16, 1), torch.rand(shape[1])
    aligned = None if kind == "normal" else values("ties", shape, torch.bfloat16, 2)
    size = shape[1] if group == "row" else weights.numel()
    for share in (0.0002, 0.05, 0.7):
        choice = Choice(group, max(1, int(share * size)), None if share == 0.7 else norms)
        expected = outcome(reference, weights, choice, aligned, "plain")
        for isa, count in product(loaded(), (1, 2)):
            monkeypatch.setenv("WEIGHTGUARD_ISA", isa)
            torch.set_num_threads(count)
            found = outcome(native, weights, choice, aligned, "plain")
            torch.set_num_threads(1)
            assert torch.equal(found[0], expected[0]) and found[1] == expected[1], (share, isa, count)


def test_rows_of_very_different_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every guess from the row before is wrong, and so is every sample that misses the few heavy columns."""
    weights = torch.randn(64, 3000) * torch.logspace(-6, 6, 64)[torch.randperm(64)][:, None]
    norms = torch.rand(3000) ** 12
    for group, k in product(("row", "matrix"), (1, 150, 1500)):
        choice = Choice(group, k, norms)
        expected = outcome(reference, weights, choice, None, "plain")
        for isa in loaded():
            monkeypatch.setenv("WEIGHTGUARD_ISA", isa)
            found = outcome(native, weights, choice, None, "plain")
            assert torch.equal(found[0], expected[0]) and found[1] == expected[1]


def stable_sort(keys: numpy.ndarray, k: int) -> numpy.ndarray:
    """bool mask of the k largest of a flat array, ties by lowest index."""
    taken = numpy.zeros(keys.size, dtype=bool)
    taken[numpy.argsort(-keys.astype(numpy.float64), kind="stable")[:k]] = True
    return taken


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_selection_is_a_stable_sort(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 40))
    entries = data.draw(st.lists(st.integers(-3, 3), min_size=rows * columns, max_size=rows * columns))
    scale = data.draw(st.lists(st.integers(0, 2), min_size=columns, max_size=columns))
    group = data.draw(st.sampled_from(("row", "matrix")))
    k = data.draw(st.integers(0, columns if group == "row" else rows * columns))
    dtype = data.draw(st.sampled_from((*DTYPES, torch.float64)))
    weights = torch.tensor(entries).view(rows, columns).to(dtype)
    scores = weights.float().abs().numpy() * numpy.array(scale, dtype=numpy.float32)
    parts = scores if group == "row" else scores.reshape(1, -1)
    taken = numpy.concatenate([stable_sort(part, k) for part in parts]).reshape(rows, columns)
    for implementation in (reference, ops):
        edited = weights.clone()
        choice = Choice(group, k, torch.tensor(scale).float())
        counted = (
            ops.select_apply(edited, choice)
            if implementation is ops
            else reference.select_apply(edited, choice, None, True)
        )
        assert torch.equal(edited, torch.where(torch.from_numpy(taken), 0, weights))
        assert (counted.selected, counted.changed) == (taken.sum(), (taken & (weights != 0).numpy()).sum())


@pytest.mark.parametrize("group", ("row", "matrix"))
@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_are_reported(dtype: torch.dtype, bad: float, group: str) -> None:
    for restore, k, share in product((False, True), (0, 3, 100), (1.0, 0.0)):
        weights = torch.randn(5, 100).to(dtype)
        aligned = torch.randn(5, 100).to(dtype) if restore else None
        (weights if aligned is None else aligned)[3, 99] = bad
        norms = torch.full((100,), share)
        assert not ops.select_apply(weights, Choice(group, k, norms), aligned).finite, (restore, k, share)


@pytest.mark.parametrize("group", ("row", "matrix"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_scores_beyond_float32_are_reported(dtype: torch.dtype, group: str) -> None:
    weights = torch.full((4, 70), 1e30).to(dtype)
    assert not ops.select_apply(weights.clone(), Choice(group, 2, torch.full((70,), 1e30))).finite
    assert not ops.select_apply(weights.clone(), Choice(group, 2, torch.full((70,), -1.0))).finite
    assert ops.select_apply(weights.clone(), Choice(group, 2, torch.full((70,), 1e8))).finite


def test_what_does_not_fit_is_an_error() -> None:
    weights = torch.zeros(3, 4)
    for choice, aligned in (
        (Choice("row", 5), None),
        (Choice("matrix", 13), None),
        (Choice("column", 1), None),
        (Choice("row", 1, torch.ones(3)), None),
        (Choice("row", 1, torch.ones(4, dtype=torch.float64)), None),
        (Choice("row", 1), torch.zeros(4, 3)),
    ):
        with pytest.raises(ValueError):
            ops.select_apply(weights, choice, aligned)


def test_zero_entries_count_as_selected_but_not_as_changed() -> None:
    taken = ops.select_apply(torch.tensor([[0.0, -0.0, 2.0]]), Choice("row", 3))
    assert (taken.selected, taken.changed) == (3, 1)
    same = torch.ones(2, 40)
    taken = ops.select_apply(same.clone(), Choice("row", 7), same)
    assert (taken.selected, taken.changed, taken.squares["after"]) == (14, 0, [0.0, 0.0])


def test_squares_of_a_known_edit() -> None:
    weights, aligned = torch.tensor([[3.0, 1.0], [2.0, 2.0]]), torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    taken = ops.select_apply(weights, Choice("row", 1), aligned)
    assert torch.equal(weights, torch.tensor([[1.0, 1.0], [2.0, 1.0]]))
    expected = {"weight": [10.0, 8.0], "change": [4.0, 1.0], "before": [5.0, 1.0], "after": [1.0, 0.0]}
    assert taken.squares == expected
    assert ops.select_apply(weights, Choice("row", 1), aligned, measure=False).squares == {}


if __name__ == "__main__":
    load(sys.argv[1])
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for dtype, restore in product(DTYPES, (False, True)):
            print(dtype, restore, compare(dtype, restore, native.available(), patch), flush=True)
        for shape, group in product(((66, 4099), (2800, 96)), ("row", "matrix")):
            test_large_matrices_and_threads(shape, "sparse", group, patch)
