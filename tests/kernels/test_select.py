"""The selection kernels: the reference against a naive sort, the compiled ones against the reference, to the bit."""

from __future__ import annotations

from itertools import product

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightguard.kernels import native, ops, reference
from weightguard.kernels.reference import Choice

compiled = pytest.mark.skipif(native.library() is None, reason="the package was built without the compiled kernels")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(0, 5), (1, 1), (3, 15), (5, 16), (3, 17), (9, 64), (33, 65), (64, 257), (3, 4096)]
RATIOS = [0.0, 1e-9, 0.05, 0.5, 1.0]


@pytest.fixture(params=[isa for isa in ("portable", "avx2", "avx512") if isa in native.available()])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("WEIGHTGUARD_ISA", request.param)
    return request.param


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def made(shape: tuple[int, int], dtype: torch.dtype, *, ties: bool, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    plain = torch.randint(-5, 6, shape, generator=draw) / 4 if ties else torch.randn(shape, generator=draw)
    return plain.to(dtype)


def choice(shape: tuple[int, int], group: str, ratio: float, seed: int = 1) -> Choice:
    size = shape[1] if group == "row" else shape[0] * shape[1]
    k = min(size, 1) if ratio == 1e-9 else int(ratio * size + 0.5)
    return Choice(group, k, torch.rand(shape[1], generator=torch.Generator().manual_seed(seed)))


def agree(weights: torch.Tensor, chosen: Choice, aligned: torch.Tensor | None) -> None:
    ours, theirs = weights.clone(), weights.clone()
    found = native.select_apply(ours, chosen, aligned, True)
    wanted = reference.select_apply(theirs, chosen, aligned, True)
    assert found == wanted
    assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", ["row", "matrix"])
def test_compiled_equals_reference(dtype: torch.dtype, group: str, isa: str, threads: int) -> None:
    for shape, ratio, ties, restores in product(SHAPES, RATIOS, (True, False), (True, False)):
        weights = made(shape, dtype, ties=ties)
        aligned = (weights + made(shape, dtype, ties=True, seed=2) / 8).to(dtype) if restores else None
        agree(weights, choice(shape, group, ratio), aligned)


@compiled
@pytest.mark.parametrize("group", ["row", "matrix"])
def test_transposed_storage_and_unaligned_rows(group: str, isa: str) -> None:
    stored = made((65, 33), torch.bfloat16, ties=True)
    ours, theirs = stored.clone(), stored.clone()
    chosen = choice((33, 65), group, 0.3)
    assert ops.select_apply(ours.T, chosen) == reference.select_apply(theirs.T, chosen, None, True)
    assert torch.equal(ours, theirs)
    wide = made((33, 67), torch.bfloat16, ties=True)
    agree(wide[:, 1:66].clone(memory_format=torch.contiguous_format), chosen, None)


@compiled
@pytest.mark.parametrize("group", ["row", "matrix"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_reported(group: str, value: float, isa: str) -> None:
    weights = made((9, 64), torch.float32, ties=False)
    weights[7, 63] = value
    for run in (native.select_apply, reference.select_apply):
        assert not run(weights.clone(), choice((9, 64), group, 0.05), None, True).finite


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 6), columns=st.integers(1, 40), k=st.floats(0, 1), group=st.sampled_from(["row", "matrix"]),
    seed=st.integers(0, 2**16), ties=st.booleans(),
)  # fmt: skip
def test_the_selection_is_the_naive_one(rows: int, columns: int, k: float, group: str, seed: int, ties: bool) -> None:
    weights = made((rows, columns), torch.float32, ties=ties, seed=seed)
    norms = torch.randint(0, 3, (columns,), generator=torch.Generator().manual_seed(seed)).float()
    count = round(k * (columns if group == "row" else rows * columns))
    edited = weights.clone()
    taken = ops.select_apply(edited, Choice(group, count, norms))
    score = numpy.abs(weights.numpy()) * norms.numpy()
    lines = score if group == "row" else score.reshape(1, -1)
    mask = numpy.zeros(lines.shape, bool)
    for line, keys in zip(mask, lines, strict=True):
        line[numpy.argsort(-keys, kind="stable")[:count]] = True
    expected = numpy.where(mask.reshape(score.shape), 0, weights.numpy())
    assert taken.selected == mask.sum()
    numpy.testing.assert_array_equal(edited.numpy(), expected)


def test_row_sums_are_exact_where_they_can_be_and_fixed_where_not() -> None:
    whole = torch.arange(3 * 1000, dtype=torch.float64).reshape(3, 1000)
    assert reference.row_sums(whole).tolist() == [sum(range(i * 1000, i * 1000 + 1000)) for i in range(3)]
    rough = torch.rand(4, 777, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.allclose(reference.row_sums(rough), rough.sum(1), rtol=1e-14)
    assert reference.row_sums(rough[1:2]).tolist() == reference.row_sums(rough)[1:2].tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_square_sums_equal_float64(dtype: torch.dtype) -> None:
    inputs = made((2 * 50, 37), dtype, ties=False).reshape(2, 50, 37)
    counted = torch.rand(2, 50, generator=torch.Generator().manual_seed(4)) < 0.6
    expected = (inputs.double()[counted] ** 2).sum(0)
    for run in (ops.square_sums, reference.square_sums):
        assert torch.allclose(run(inputs, counted), expected, rtol=1e-12, atol=0)


def test_a_pair_is_measured_as_in_float64(threads: int) -> None:
    a, b = made((33, 65), torch.bfloat16, ties=False), made((33, 65), torch.bfloat16, ties=False, seed=9)
    b[:10] = a[:10]
    found, d = ops.pair_statistics(a, b), a.double() - b.double()
    assert found == reference.pair_statistics(a, b)
    assert found.finite and found.changed == int((a != b).sum()) and found.largest == float(d.abs().max())
    for key, value in {
        "aa": a.double() ** 2,
        "bb": b.double() ** 2,
        "ab": a.double() * b.double(),
        "dd": d**2,
        "d4": d**4,
    }.items():
        assert getattr(found, key) == pytest.approx(float(value.sum()), rel=1e-12)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_is_finite_sees_every_position(dtype: torch.dtype) -> None:
    for size in (1, 15, 64, 1000):
        tensor = made((1, size), dtype, ties=False)
        assert ops.is_finite(tensor) and reference.is_finite(tensor)
        for position, value in product((0, size // 2, size - 1), (float("nan"), float("inf"))):
            broken = tensor.clone()
            broken[0, position] = value
            assert not ops.is_finite(broken) and not reference.is_finite(broken)


def test_native_can_be_demanded_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTGUARD_NATIVE", "0")
    assert native.library() is None and native.status().startswith("torch reference")


def test_this_suite_ran_what_was_asked_for(request: pytest.FixtureRequest) -> None:
    import os

    if os.environ.get("WEIGHTGUARD_NATIVE") == "1":
        assert native.library() is not None
